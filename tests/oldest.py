"""Train, resume, evaluate, report, export: once each, with the oldest packages that setup.py allows.

`python tools/dev.py oldest` runs this file; the suite does not collect it.
"""

from pathlib import Path

import pytest
import torch

from fastreid_star.cli.main import run

TABLE = "per_query_SyntheticVCM.csv"
CONFIGS = Path(__file__).parents[1] / "configs" / "Synthetic"
OPTIONS = {
    "MODEL.DEVICE": "cpu",
    "MODEL.BACKBONE.DEPTH": "tiny",
    "MODEL.LOSSES.CE_ONLY_EPOCHS": 1,
    "INPUT.SIZE_TRAIN": [32, 16],
    "INPUT.SIZE_TEST": [32, 16],
    "INPUT.CLIP.LENGTH": 3,
    "DATALOADER.NUM_WORKERS": 1,
    "SOLVER.IMS_PER_BATCH": 8,
    "SOLVER.MAX_EPOCH": 3,
    "SOLVER.STEPS": [2],
    "SOLVER.CHECKPOINT_PERIOD": 1,
    "TEST.EVAL_PERIOD": 3,
    "DATASETS.SYNTHETIC.TRAIN_IDS": 6,
    "DATASETS.SYNTHETIC.TEST_IDS": 4,
    "DATASETS.SYNTHETIC.TRACKLETS": 2,
    "DATASETS.SYNTHETIC.FRAMES": 12,
    "DATASETS.SYNTHETIC.SIZE": [32, 16],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Gets the data and the runs."""
    return tmp_path_factory.mktemp("oldest")


@pytest.fixture(scope="module")
def trained(folder):
    call("train", folder, "whole")
    return folder / "whole"


def call(command, folder, name, *flags, **more):
    options = {"DATASETS.ROOT": folder, "OUTPUT_DIR": folder / name, **OPTIONS, **more}
    pairs = [part for pair in options.items() for part in pair]
    run(command, "--config-file", CONFIGS / "STAR_demo.yml", *flags, *pairs)


def test_resume(folder, trained):
    call("train", folder, "parts", **{"SOLVER.MAX_EPOCH": 2})
    call("train", folder, "parts", "--resume")
    states = [
        torch.load(path / "model_final.pth", map_location="cpu", weights_only=True)["model"]
        for path in (trained, folder / "parts")
    ]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_evaluate(folder, trained):
    call("eval", folder, "eval", **{"MODEL.WEIGHTS": trained / "model_final.pth"})
    tables = [(path / TABLE).read_text() for path in (trained, folder / "eval")]
    assert tables[0] == tables[1]
    assert tables[0].count("\n") == 1 + 2 * 8


def test_report(trained):
    run("report", trained)
    assert "<img" in (trained / "report.html").read_text(encoding="utf-8")


def test_export(folder, trained):
    run("export", "--run", trained, folder / "star.onnx")  # it compares the features itself
    assert (folder / "star.onnx").stat().st_size > 10_000
