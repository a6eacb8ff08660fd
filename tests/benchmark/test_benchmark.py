"""The tool, and that what it can do is written down."""

import json
import runpy
import sys
from pathlib import Path

import pytest

from fastreid_star.benchmark.figures import BEGIN, END
from fastreid_star.benchmark.parts import PARTS

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools" / "benchmark.py"


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", [str(TOOL), *map(str, arguments)])
    runpy.run_path(str(TOOL), run_name="__main__")


def test_a_quick_run_of_one_part(tmp_path, monkeypatch, capsys):
    document, figures = tmp_path / "performance.md", tmp_path / "figures.json"
    document.write_text(f"# Performance\n\n{BEGIN}\n{END}\n\nThe end.\n")
    run(
        monkeypatch,
        "--quick",
        "store",
        "--device",
        "cpu",
        "--json",
        figures,
        "--markdown",
        document,
    )
    said = capsys.readouterr()
    names = [row["name"] for row in json.loads(figures.read_text())]
    assert names == ["cores", "store_clips_per_s", "store_clips_per_s_over_hdf5"]
    assert [
        line.split()[0]
        for line in said.out.splitlines()
        if line.split()[:1] and line.split()[0] in names
    ] == names
    assert "[2/2] store: Skeletons of 12-frame clips" in said.err
    text = document.read_text()
    assert "| `store_clips_per_s`" in text
    assert text.startswith("# Performance\n")
    assert text.endswith(f"{END}\n\nThe end.\n")
    # and again, from the file alone
    document.write_text(f"{BEGIN}{END}\n")
    run(monkeypatch, "--read", figures, "--markdown", document)
    assert document.read_text().split(END)[0] == text.split("# Performance\n\n")[1].split(END)[0]
    assert "store_clips_per_s" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["stroe"], "there is no part stroe: choose from machine, open, store"),
        (["--device", "tpu", "machine"], "MODEL.DEVICE 'tpu' is not a device"),
        (["--json", "nowhere/figures.json"], "nowhere does not exist: make it, or write elsewhere"),
        (["--read", "nowhere.json"], "nowhere.json cannot be read"),
        (["--read", "figures.json", "step"], "--read measures nothing"),
        (["machine", "--markdown", "README.md"], "README.md has no place for the table"),
        (
            ["--clips", "5", "machine"],
            "--clips 5: two modalities of two identities take a multiple of 4",
        ),
    ],
)
def test_what_cannot_be_is_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "README.md").write_text("# Another document\n")
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, *arguments)
    assert stop.value.code == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]


def test_what_was_measured_is_kept_when_a_later_part_fails(tmp_path, monkeypatch):
    def broken(options):
        """Breaks."""
        raise RuntimeError("the device has gone")
        yield

    monkeypatch.setitem(PARTS, "step", broken)
    with pytest.raises(RuntimeError, match="the device has gone"):
        run(monkeypatch, "machine", "step", "--device", "cpu", "--json", tmp_path / "figures.json")
    assert [row["name"] for row in json.loads((tmp_path / "figures.json").read_text())] == ["cores"]


def test_every_part_is_described(monkeypatch, capsys):
    document = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    with pytest.raises(SystemExit):
        run(monkeypatch, "--help")
    told = capsys.readouterr().out
    for name, part in PARTS.items():
        assert part.__doc__.splitlines()[0] in told
        assert f"`{name}`" in document, f"docs/performance.md does not say what {name} is"
    assert document.count(BEGIN) == document.count(END) == 1
