"""The table of trained models: its numbers, its commands, and that nothing else changes."""

import json
import shlex
from dataclasses import replace

import pytest

from fastreid_star.errors import UserError
from fastreid_star.report.runs import read_run
from fastreid_star.report.zoo import format_runs, repeat_command, update_zoo

from ..tiny import REPOSITORY

BEGIN, END = "<!-- runs: begin -->", "<!-- runs: end -->"


@pytest.fixture(scope="module")
def run(folders):
    return read_run(folders.star)


def cells(table, row):
    return [cell.strip() for cell in table.splitlines()[row].strip("|").split("|")]


def test_a_row_for_each_run(run, star):
    table = format_runs([run], "logs")
    values = dict(zip(cells(table, 0), cells(table, 2), strict=True))
    assert values["run"] == "[STAR](logs/STAR.json)"
    assert values["test set"] == "SyntheticVCM"
    assert values["seed"] == str(run.trained.SEED)
    assert values["epochs"] == str(run.weights.epochs)
    for key in ("I2V/Rank-1", "I2V/mAP", "V2I/Rank-1", "V2I/mAP", "mean/mAP"):
        assert values[key.replace("/", " ")] == f"{star.metrics[key]:.2f}"
    assert values["weights"] == run.weights.sha256[:8]


def test_the_command_can_be_repeated_elsewhere(run):
    words = ["/me/tools/train_net.py", "--config-file=/me/a.yml", "DATASETS.ROOT", "/me/data/"]
    words += ["DATASETS.TESTS", "('A', 'B')", "OUTPUT_DIR", "a `b` $c"]
    other = replace(run, commands=(shlex.join(words), "tools/train_net.py --eval-only"))
    assert shlex.split(repeat_command(other)) == [
        *("python", "/path/to/train_net.py", "--config-file=/path/to/a.yml"),
        *("DATASETS.ROOT", "/path/to/data", "DATASETS.TESTS", "('A', 'B')"),
        *("OUTPUT_DIR", "a `b` $c"),
    ]
    apostrophe = replace(run, commands=("/me/train_net.py it's",))  # of an old log
    assert shlex.split(repeat_command(apostrophe)) == ["python", "/path/to/train_net.py", "it's"]
    console = replace(run, commands=("fastreid-star train --config-file a.yml",))
    assert repeat_command(console) == "fastreid-star train --config-file a.yml"


def test_only_what_is_between_the_marks_changes(folders, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"# Größe\n{BEGIN}\nthe table before\n{END}\nrest\n", encoding="utf-8")
    for _ in range(2):
        update_zoo([folders.star], page=page)
        text = page.read_text(encoding="utf-8")
        assert text.startswith(f"# Größe\n{BEGIN}\n\n| run")
        assert text.endswith(f"`\n\n{END}\nrest\n")
        assert "the table before" not in text
    lines = (tmp_path / "logs" / "STAR.json").read_text().splitlines()
    assert lines
    assert all(json.loads(line) for line in lines)
    projects = (REPOSITORY / "configs" / "README.md").read_text(encoding="utf-8")
    assert projects.count(BEGIN) == projects.count(END) == 1


def test_refusals_write_nothing(run, sad, folders, tmp_path):
    page = tmp_path / "page.md"
    once = f"{BEGIN}\n{END}\n"
    for text in ("", BEGIN, f"{END}\n{BEGIN}", once + "mine" + once, once + END):
        page.write_text(text)
        with pytest.raises(UserError, match="no place"):
            update_zoo([folders.star], page=page)
        assert page.read_text() == text
    with pytest.raises(UserError, match="cannot be read"):
        update_zoo([folders.star], page=tmp_path / "none.md")
    page.write_bytes(b"\xe9")
    with pytest.raises(UserError, match="is not UTF-8"):
        update_zoo([folders.star], page=page)
    assert not (tmp_path / "logs").exists()
    for runs, message in (
        ([run, run], "two runs"),
        ([sad.run], r"log\.txt"),
        ([replace(run, history=())], "no evaluation"),
    ):
        with pytest.raises(UserError, match=message):
            format_runs(runs, "logs")
