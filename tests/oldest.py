"""Train, resume, evaluate, report, export: once each, with the oldest packages that setup.py allows.

`python tools/dev.py oldest` runs this file; the suite does not collect it.
"""

import pytest
import torch

from fastreid_star.cli.main import run

from .tiny import STAR_DEMO, tiny_options

TABLE = "per_query_SyntheticVCM.csv"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Gets the data and the runs."""
    return tmp_path_factory.mktemp("oldest")


@pytest.fixture(scope="module")
def trained(folder):
    call("train", folder, "whole")
    return folder / "whole"


def call(command, folder, name, *flags, **more):
    pairs = [part for pair in {"DATALOADER.NUM_WORKERS": 1, **more}.items() for part in pair]
    options = tiny_options(folder, folder / name, *pairs)
    run(command, "--config-file", STAR_DEMO, *flags, *options)


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
