"""The benchmark at a tiny size: its figures mean nothing here, but its arithmetic shows."""

import multiprocessing.dummy
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
    # threads in place of processes, which take seconds to start
    threads = types.SimpleNamespace(get_context=lambda method: multiprocessing.dummy)
    monkeypatch.setattr(benchmark, "multiprocessing", threads)
    figures = {f.name: f for f in run(device="cpu", quick=True, opts=OPTS)}
    bare, star = figures[f"{BARE} step"], figures["STAR step"]
    assert star.reference == bare.value
    assert star.ratio == pytest.approx(star.value / bare.value)
    assert figures["STAR step memory"].reference == figures[f"{BARE} step memory"].value
    assert {f.name: f.limit for f in figures.values() if f.limit} == {
        "STAR step": ">= 0.88",
        "loader": ">= 0.65",
        "ranking": "<= 0.05",
        "start": "<= 10",
    }
    assert all(f.value > 0 for f in figures.values() if f.unit != "MB")
    printed = capsys.readouterr().out
    assert all(name in printed for name in figures)
    for figure in figures.values():
        assert figure.is_outside == (figure.name in printed.splitlines()[-1])


@pytest.mark.parametrize(
    ("value", "reference", "limit", "outside"),
    [
        (44, 50, ">= 0.88", False),
        (43.9, 50, ">= 0.88", True),
        (1, 20, "<= 0.05", False),
        (1, 19, "<= 0.05", True),
        (10.1, None, "<= 10", True),
        (9.9, None, "<= 10", False),
        (float("nan"), 1, ">= 0.65", True),
        (99, 1, "", False),
    ],
)
def test_limits(value, reference, limit, outside):
    assert Figure("name", "s", value, reference, limit).is_outside == outside


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
    cfg = benchmark._config(f"HITSZ-VCM/{benchmark.NETWORKS[network]}", settings, OPTS)
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


def test_unknown_parts_end_in_one_line():
    with pytest.raises(UserError, match="loader"):
        run(["loaders"])
