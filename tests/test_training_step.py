"""A training step on noise: turns, the reference's operations, and what is kept."""

import types

import torch
from torch.utils.flop_counter import FlopCounterMode

from fastreid_star import training_step
from fastreid_star.engine.configs import load_config
from fastreid_star.training_step import BARE, TrainingStep, in_turns

TINY = {
    "MODEL.BACKBONE.NAME": "build_small_resnet_backbone",
    "MODEL.BACKBONE.DEPTH": "tiny",
    "INPUT.SIZE_TRAIN": [32, 16],
    "INPUT.CLIP.LENGTH": 3,
    "SOLVER.IMS_PER_BATCH": 8,
    "DATASETS.SYNTHETIC.TRAIN_IDS": 8,
    "DATASETS.SYNTHETIC.SIZE": [32, 16],
    "DATASETS.SYNTHETIC.FRAMES": 12,
    "DATALOADER.NUM_WORKERS": 0,
}
OPTS = [str(part) for pair in TINY.items() for part in pair]


def test_sides_run_in_turns_and_the_fastest_run_counts(monkeypatch):
    calls, clock = [], iter([0, 0, 0, 4, 0, 3, 0, 2, 0, 5])  # warm-up reads it once
    monkeypatch.setattr(training_step, "time", types.SimpleNamespace(perf_counter=clock.__next__))
    sides = {name: lambda name=name: calls.append(name) for name in "ab"}
    assert in_turns(sides, repeats=2, warm_up=1) == {"a": 2, "b": 4}
    assert "".join(calls) == "abbaab"


def convolutions(network):
    """Floating point operations of a step's convolutions."""
    settings = {"MODEL.DEVICE": "cpu", "MODEL.BACKBONE.PRETRAIN": False}
    settings["MODEL.HEADS.NUM_CLASSES"] = 5
    cfg = training_step.changed_config(training_step.NETWORKS[network], settings, OPTS)
    step = TrainingStep(network, cfg)
    with FlopCounterMode(display=False) as counter:
        step()
    counts = counter.get_flop_counts()["Global"]
    return {str(name): count for name, count in counts.items() if "convolution" in str(name)}


def test_the_bare_backbone_computes_the_convolutions_of_a_step():
    """Otherwise the reference would be dishonest."""
    bare = convolutions(BARE)
    assert bare
    assert convolutions("SAD") == convolutions("STAR") == bare


def test_what_a_step_keeps_is_counted_once_and_without_weights():
    """Two layers and a ReLU, whose output both the ReLU and the second layer keep."""
    options = [*OPTS, "MODEL.DEVICE", "cpu", "MODEL.HEADS.NUM_CLASSES", "4"]
    step = TrainingStep("small", load_config("Synthetic/SAD_small.yml", options))

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = torch.nn.Linear(8, 5), torch.nn.Linear(5, 3)

        def forward(self, batch):
            inputs = batch["images"].float().flatten(0, 1).flatten(1)[:, :8].contiguous()
            return self.second(self.first(inputs).relu())

    step.model = Net()
    assert step.kept_by_frame() == 4 * (8 + 5)
