"""The benchmark at a tiny size: its figures mean nothing here, but its arithmetic shows."""

import pytest
import torch

from fastreid_star import benchmark
from fastreid_star.benchmark import BARE, Figure, run
from fastreid_star.errors import UserError

from .test_training_step import OPTS


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


def test_unknown_parts_are_named():
    with pytest.raises(UserError, match="loader"):
        run(["loaders"])
