"""A benchmark so small that its figures mean nothing and its machinery shows."""

from pathlib import Path

import pytest

from fastreid_star.benchmark.options import Options
from fastreid_star.benchmark.parts import loader
from fastreid_star.benchmark.process import Outcome
from fastreid_star.data.datasets.synthetic import SyntheticOptions

CONFIGS = Path(__file__).parents[2] / "configs"
TINY = {"backbone": "tiny", "clips": 4, "frames": 2, "size": (32, 16)}


@pytest.fixture
def options(tmp_path):
    return Options(
        configs=CONFIGS,
        folder=tmp_path,
        quick=True,
        device="cpu",
        repeats=1,
        progress=False,
        **TINY,
    )


@pytest.fixture
def small_loader(monkeypatch):
    """The loader's data at the size of a stamp."""
    made = SyntheticOptions(train_ids=8, test_ids=2, tracklets=2, frames=24, size=(32, 16))
    monkeypatch.setattr(loader, "DATASET", made)
    return made


@pytest.fixture
def here(monkeypatch):
    """Have work for a process of its own done in this one, as a process takes seconds to start: (module) -> None."""

    def stay(module):
        monkeypatch.setattr(
            module, "in_own_process", lambda function, *args: Outcome(function(*args), 0.0, 10**6)
        )

    return stay
