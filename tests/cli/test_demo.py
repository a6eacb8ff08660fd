"""The demo at a size that fits a test: interrupted, resumed, its table, and what it refuses."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fastreid_star.cli import demo
from fastreid_star.cli.main import run
from fastreid_star.errors import UserError

REPOSITORY = Path(__file__).parents[2]
OPTIONS = {
    "MODEL.DEVICE": "cpu",
    "MODEL.BACKBONE.DEPTH": "tiny",
    "INPUT.SIZE_TRAIN": [32, 16],
    "INPUT.SIZE_TEST": [32, 16],
    "INPUT.CLIP.LENGTH": 2,
    "SOLVER.IMS_PER_BATCH": 8,
    "SOLVER.MAX_EPOCH": 2,
    "SOLVER.STEPS": [],
    "TEST.EVAL_PERIOD": 2,
    "DATALOADER.NUM_WORKERS": 0,
    "DATASETS.SYNTHETIC.TRAIN_IDS": 6,
    "DATASETS.SYNTHETIC.TEST_IDS": 4,
    "DATASETS.SYNTHETIC.TRACKLETS": 2,
    "DATASETS.SYNTHETIC.FRAMES": 12,
    "DATASETS.SYNTHETIC.SIZE": [32, 16],
}
ARGUMENTS = [str(part) for pair in OPTIONS.items() for part in pair]


def start(output):
    command = [sys.executable, "-u", "-m", "fastreid_star", "demo", "--output", str(output)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # under nohup SIGINT is ignored, also in child processes
    reset = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.default_int_handler)}
    return subprocess.Popen([*command, *ARGUMENTS], cwd=REPOSITORY, **pipes, **reset)


def test_it_stops_at_ctrl_c_resumes_and_ends_with_the_table(tmp_path):
    output = tmp_path / "demo"
    mine = output / "runs" / "mine" / "model_final.pth"
    mine.parent.mkdir(parents=True)
    mine.write_text("a run of the user in this folder")

    first = start(output)
    for line in first.stdout:
        if line.startswith("[3/5]"):
            first.send_signal(signal.SIGINT)
            break
    _, error = first.communicate(timeout=600)
    assert first.returncode == 130, error
    assert "Traceback" not in error
    assert "the same command continues" in error
    assert (output / "runs" / "warm-up" / "model_final.pth").exists()
    assert not (output / "report.html").exists()
    trained = (output / "runs" / "warm-up" / "model_final.pth").stat().st_mtime_ns

    second = start(output)
    text, error = second.communicate(timeout=600)
    assert second.returncode == 0, error
    assert (output / "runs" / "warm-up" / "model_final.pth").stat().st_mtime_ns == trained
    assert mine.read_text() == "a run of the user in this folder"
    assert [line[:5] for line in text.splitlines() if line.startswith("[")][-5:] == [
        f"[{number}/5]" for number in range(1, 6)
    ]
    table = text[text.rindex("| %") :]
    for name in ("untrained", "SAD", "STAR"):
        assert all(f"| {name} {way}" in table for way in ("I2V", "V2I", "mean"))
    for name in ("SAD", "STAR"):
        left = {path.name for path in (output / "runs" / name).iterdir()}
        assert {"model_best.pth", "metrics.json", "per_query_SyntheticVCM.csv"} <= left
    page = (output / "report.html").read_text(encoding="utf-8")
    means = [line.split("|")[-3].strip() for line in table.splitlines() if "AR mean" in line]
    assert means
    assert all(mean in page for mean in means), "the report has the mAP of the table"
    assert str(output / "report.html") in text
    assert "SyntheticVCM are drawn" in text


def test_runs_of_other_options_or_of_the_user_are_refused_and_kept(tmp_path):
    folder = tmp_path / "runs" / "SAD"
    folder.mkdir(parents=True)
    with pytest.raises(UserError, match="not from this demo"):
        run("demo", "--output", tmp_path, *ARGUMENTS)
    (tmp_path / "runs" / "demo.yaml").write_text("other")
    with pytest.raises(UserError, match="other options"):
        run("demo", "--output", tmp_path, *ARGUMENTS)
    assert folder.is_dir()
    assert not (tmp_path / "datasets").exists()


def test_a_phase_says_how_long_the_rest_takes(monkeypatch, capsys):
    monkeypatch.setattr(demo.time, "monotonic", lambda: 130.0)
    demo.announce(2, start=100.0)  # after 30 % of the whole
    demo.announce(2)
    assert capsys.readouterr().out.splitlines() == [
        "[3/5] training the baseline (SAD) (about 70 s left)",
        "[3/5] training the baseline (SAD)",
    ]
