"""tools/report.py as it is called: the page where it says, and bad input in one line."""

import importlib.util
import re
import sys

import pytest

from fastreid_star.errors import UserError

from .conftest import REPOSITORY
from .page import Page


@pytest.fixture
def tool(monkeypatch):
    """Its main function, called with arguments."""
    spec = importlib.util.spec_from_file_location("report_tool", REPOSITORY / "tools" / "report.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["report.py", *map(str, arguments)])
        module.main()

    return call


def test_the_page_lies_in_the_runs_folder_and_its_size_is_said(folders, tool, capsys):
    tool(
        folders.star,
        "--queries",
        1,
        "--no-gradcam",
        "--device",
        "cpu",
        "--set",
        "TEST.CAMERA_FILTER",
        "False",
    )
    page = folders.star / "report.html"
    said = capsys.readouterr().out.splitlines()
    assert any(line == "STAR: extracting the features of SyntheticVCM ..." for line in said)
    path, size = re.fullmatch(r"(.*) \(([\d.]+) MB, \d+ s\)", said[-1]).groups()
    assert path == str(page)
    assert float(size) == pytest.approx(page.stat().st_size / 1e6, abs=0.05)
    text = page.read_text(encoding="utf-8")
    assert "same identity and camera kept in the gallery" in text
    assert ["TEST.CAMERA_FILTER", "True", "False"] in Page(text).tables[1], "in training, here"
    assert "left out, as in the evaluation" not in text, (
        "where the rule is off, it is not said to hold"
    )
    page.unlink()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name the folder of a run, or give --ablation"),
        (["{star}", "--ablation", "{star}"], "name the folder of a run, or give --ablation"),
        (["{star}", "--queries", "0"], "--queries 0"),
        (["{star}", "--output", "{star}"], "STAR is a folder: name the file to write"),
        (["{star}", "--output", "{star}/config.yaml/r.html"], r"r\.html cannot be written"),
        (
            ["{star}", "{sad}", "--set", "MODEL.WEIGHTS", "x.pth"],
            "MODEL.WEIGHTS is one file, but there are two runs",
        ),
        (["{star}", "--device", "tpu"], "MODEL.DEVICE 'tpu' is not a device"),
        (["{star}", "--set", "MODEL.WEIGHTS", "{sad}/model_best.pth"], "is of another model"),
        (["{star}", "--set", "DATASETS.ROOT"], "come in pairs"),
        (["--ablation", "{star}"], "holds no finished runs"),
        (["nowhere"], "nowhere is no folder"),
    ],
)
def test_bad_input_is_one_clear_line_before_the_work(
    folders, tool, arguments, message, monkeypatch
):
    monkeypatch.setattr(
        "fastreid_star.report.build.rank_run", lambda *args: pytest.fail("work was begun")
    )
    with pytest.raises(UserError, match=message) as caught:
        tool(*(argument.format(star=folders.star, sad=folders.sad) for argument in arguments))
    assert "\n" not in str(caught.value)
