"""A run that grows is seen to grow, and ours does not."""

import pytest

from fastreid_star.benchmark.parts import drift
from fastreid_star.benchmark.parts.drift import Sample, compare
from fastreid_star.data.datasets.synthetic import SyntheticOptions, write_synthetic_vcm

from ..conftest import CONFIGS

MADE = SyntheticOptions(train_ids=4, test_ids=4, tracklets=2, frames=12, size=(32, 16))
SMALL = (
    "MODEL.BACKBONE.DEPTH", "tiny", "INPUT.SIZE_TRAIN", "[32,16]", "INPUT.SIZE_TEST", "[32,16]",
    "DATALOADER.NUM_WORKERS", "1", "SOLVER.IMS_PER_BATCH", "8",
)  # fmt: skip


def test_late_against_early_without_the_warm_up():
    samples = [Sample(9.0, 9e9, 99, 99)] * 20
    samples += [Sample(0.010, 1e9, 10, 4)] * 20 + [Sample(0.020, 2e9, 15, 5)] * 40
    samples += [Sample(0.011, 1.5e9, 12, 8)] * 20
    found = {figure.name: (figure.value, figure.limit, figure.ratio) for figure in compare(samples)}
    assert found == {
        "drift_memory_mb": (pytest.approx(1500), pytest.approx(1000), pytest.approx(1.5)),
        "drift_step_ms": (pytest.approx(11), pytest.approx(10), pytest.approx(1.1)),
        "drift_files": (12, 10, 1.2),
        "drift_threads": (8, 4, 2),
    }


def test_one_slow_step_is_no_drift():
    samples = [Sample(0.01, 1e9, 10, 4)] * 99 + [Sample(30.0, 5e9, 90, 90)]
    assert all(figure.ratio == 1 for figure in compare(samples))


def test_a_run_holds_its_files_and_threads(options, amount):
    write_synthetic_vcm(options.folder / "SyntheticVCM", MADE)
    path = CONFIGS / "Synthetic" / drift.CONFIG
    steps = amount(60, 2000)
    figures = {
        f.name: f for f in drift.measure(path, options.folder, MADE, options, *SMALL, steps=steps)
    }
    assert figures["drift_files"].ratio == 1
    assert figures["drift_threads"].ratio == 1
    assert figures["drift_memory_mb"].ratio < amount(1.1, 1.02)
    assert f"of {steps}" in figures["drift_memory_mb"].note
    assert (options.folder / "run" / "model_final.pth").exists()
