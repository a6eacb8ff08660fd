import json
import re
import runpy
import shutil
import sys
from dataclasses import replace

import pytest

from fastreid_star.errors import UserError
from fastreid_star.report.gather import gather
from fastreid_star.report.zoo import BEGIN, END, format_runs, write_table

from .conftest import REPOSITORY


@pytest.fixture
def run(folders):
    return gather(folders.star)


def cells(table, row):
    return [cell.strip() for cell in table.splitlines()[row].strip("|").split("|")]


def test_a_line_for_each_run(run, star):
    table = format_runs([run], "logs")
    values = dict(zip(cells(table, 0), cells(table, 2), strict=True))
    metrics = star.ranking.results.metrics()
    assert values["run"] == "[STAR](logs/STAR.json)"
    assert values["test set"] == "SyntheticVCM"
    assert values["seed"] == str(run.trained.SEED)
    assert values["epochs"] in ("1", "2")
    for header, key in (
        ("I2V Rank-1", "I2V/Rank-1"),
        ("V2I mAP", "V2I/mAP"),
        ("mean mAP", "mean/mAP"),
    ):
        assert values[header] == f"{metrics[key]:.2f}"
    assert values["weights"] == run.weights.sha256[:8]


def test_the_command_names_no_disk(run, folders):
    command = format_runs([run], "logs").splitlines()[-1]
    assert command.startswith("- STAR: `python ")
    assert str(folders.root) not in command
    assert not re.search(r"[ ']/(?!path/to/)", command)
    words = (
        "/home/me/tools/train_net.py --config-file=/home/me/a.yml DATASETS.ROOT /home/me/data/ configs/b.yml",
    )
    assert format_runs([replace(run, commands=words)], "logs").splitlines()[-1].partition(
        "python "
    )[2] == (
        "/path/to/train_net.py --config-file=/path/to/a.yml DATASETS.ROOT /path/to/data configs/b.yml`"
    )


def test_refusals(run, folders, tmp_path):
    with pytest.raises(UserError, match="two runs are called STAR"):
        format_runs([run, run], "logs")
    with pytest.raises(UserError, match=r"no log\.txt with the command"):
        format_runs([gather(folders.sad)], "logs")
    shutil.copytree(folders.star, tmp_path / "STAR")
    (tmp_path / "STAR" / "metrics.json").unlink()
    with pytest.raises(UserError, match=r"no evaluation of model_best\.pth"):
        format_runs([gather(tmp_path / "STAR")], "logs")


def test_only_what_is_between_the_marks_changes(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"# Größe\n{BEGIN}\nold\n{END}\nrest\n", encoding="utf-8")
    for table in ("first", "second"):
        write_table(page, table)
        assert page.read_text(encoding="utf-8") == f"# Größe\n{BEGIN}\n\n{table}\n\n{END}\nrest\n"


@pytest.mark.parametrize("text", ["", BEGIN, f"{END}\n{BEGIN}", f"{BEGIN}\n{BEGIN}\n{END}"])
def test_a_page_without_a_place_is_left_alone(tmp_path, text):
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(UserError, match="no place for the table"):
        write_table(page, "table")
    assert page.read_text() == text
    with pytest.raises(UserError, match="cannot be read"):
        write_table(tmp_path / "none.md", "table")


def test_the_tool(folders, tmp_path, monkeypatch, capsys):
    page = tmp_path / "page.md"
    page.write_text(f"{BEGIN}\n{END}\n")
    monkeypatch.setattr(
        sys,
        "argv",
        [
            "model_zoo.py",
            str(folders.star),
            "--page",
            str(page),
            *("--set", "DATASETS.TESTS", "('SyntheticVCM',)"),
        ],
    )
    runpy.run_path(str(REPOSITORY / "tools" / "model_zoo.py"), run_name="__main__")
    assert "1 runs" in capsys.readouterr().out
    assert "[STAR](logs/STAR.json)" in page.read_text()
    lines = (tmp_path / "logs" / "STAR.json").read_text().splitlines()
    assert all(json.loads(line) for line in lines)


def test_the_tool_writes_nothing_beside_a_page_that_is_not_there(folders, tmp_path, monkeypatch):
    page = tmp_path / "none.md"
    monkeypatch.setattr(
        sys,
        "argv",
        [
            "model_zoo.py",
            str(folders.star),
            "--page",
            str(page),
            *("--set", "DATASETS.TESTS", "('SyntheticVCM',)"),
        ],
    )
    with pytest.raises(SystemExit):
        runpy.run_path(str(REPOSITORY / "tools" / "model_zoo.py"), run_name="__main__")
    assert not (tmp_path / "logs").exists()


def test_the_projects_page_has_a_place():
    text = (REPOSITORY / "configs" / "README.md").read_text(encoding="utf-8")
    assert text.count(BEGIN) == text.count(END) == 1
