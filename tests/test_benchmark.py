"""The benchmark at a tiny size: its figures mean nothing here, but its arithmetic shows."""

import types

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fastreid_star import benchmark
from fastreid_star.benchmark import BARE, Figure, TrainingStep, in_turns, run
from fastreid_star.errors import UserError

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


@pytest.fixture(autouse=True)
def _threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_it_measures_and_prints_each_part(monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "RANKED", (900, 600, 8))
    figures = {f.name: f for f in run(device="cpu", quick=True, opts=OPTS)}
    assert figures["STAR step"].ratio == pytest.approx(
        figures["STAR step"].value / figures[f"{BARE} step"].value
    )
    assert {f.name: f.limit for f in figures.values() if f.limit} == {
        "STAR step": ">= 0.88",
        "loader": ">= 0.65",
        "ranking": "<= 0.05",
        "start": "<= 10",
    }
    assert all(f.value > 0 for f in figures.values())
    printed = capsys.readouterr().out
    assert all(name in printed for name in figures)
    for figure in figures.values():
        assert figure.is_outside == (figure.name in printed.splitlines()[-1])


@pytest.mark.parametrize(
    ("value", "ratio", "limit", "outside"),
    [
        (44, 0.88, ">= 0.88", False),
        (44, 0.87, ">= 0.88", True),
        (1, 0.05, "<= 0.05", False),
        (1, 0.06, "<= 0.05", True),
        (10.1, None, "<= 10", True),
        (9.9, None, "<= 10", False),
        (99, 1, "", False),
    ],
)
def test_limits(value, ratio, limit, outside):
    assert Figure("name", "s", value, ratio, limit, "").is_outside == outside


def test_sides_run_in_turns_and_the_fastest_run_counts(monkeypatch):
    calls, clock = [], iter([0, 0, 0, 4, 0, 3, 0, 2, 0, 5])  # warm-up reads it once
    monkeypatch.setattr(benchmark, "time", types.SimpleNamespace(perf_counter=clock.__next__))
    sides = {name: lambda name=name: calls.append(name) for name in "ab"}
    assert in_turns(sides, repeats=2, warm_up=1) == {"a": 2, "b": 4}
    assert "".join(calls) == "abbaab"


def convolutions(network):
    """Floating point operations of a step's convolutions."""
    settings = {"MODEL.DEVICE": "cpu", "MODEL.BACKBONE.PRETRAIN": False}
    settings["MODEL.HEADS.NUM_CLASSES"] = 5
    cfg = benchmark._config(benchmark.NETWORKS[network], settings, OPTS)
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


def test_unknown_parts_are_named():
    with pytest.raises(UserError, match="loader"):
        run(["loaders"])
