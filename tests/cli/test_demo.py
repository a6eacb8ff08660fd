"""The demo, at a size that fits a test: its runs, its table, its page, and what it leaves behind."""

import importlib.util
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from fastreid_star.errors import UserError

REPOSITORY = Path(__file__).parent.parent
OPTIONS = {
    "MODEL.BACKBONE.DEPTH": "tiny",
    "INPUT.SIZE_TRAIN": [32, 16],
    "INPUT.SIZE_TEST": [32, 16],
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


def test_the_demo_trains_both_and_prints_the_table(tmp_path):
    arguments = [str(part) for pair in OPTIONS.items() for part in pair]
    command = [sys.executable, "tools/demo.py", "--output", str(tmp_path / "demo"), *arguments]
    for _ in range(2):  # the second time over its own results
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    table = done.stdout[done.stdout.rindex("| %") :]
    for run in ("untrained", "SAD", "STAR"):
        assert all(f"| {run} {way}" in table for way in ("I2V", "V2I", "mean"))
    for run in ("SAD", "STAR"):
        left = {path.name for path in (tmp_path / "demo" / "runs" / run).iterdir()}
        assert {"model_best.pth", "metrics.json", "per_query_SyntheticVCM.csv"} <= left
    assert "STAR: mean mAP" in done.stdout
    page = tmp_path / "demo" / "report.html"
    assert done.stdout.splitlines()[-1].startswith(f"see all of it: {page} (")
    text = page.read_text(encoding="utf-8")
    means = [
        line.split("|")[-3].strip()
        for line in table.splitlines()
        if "STAR mean" in line or "SAD mean" in line
    ]
    assert len(means) == 2
    assert all(f"<td>{mean}</td>" in text for mean in means), "the page has the table's mAP"
    assert "Won and lost: STAR against SAD" in text

    (tmp_path / "mine" / "runs").mkdir(parents=True)
    refused = subprocess.run(
        [*command[:3], str(tmp_path / "mine")], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert refused.returncode == 2
    assert "is not an earlier demo's" in refused.stderr


def test_without_grad_cam_it_says_so_before_it_deletes_an_earlier_demo(tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "config.yaml").write_text("")
    main = runpy.run_path(str(REPOSITORY / "tools" / "demo.py"))["main"]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["demo.py", "--output", str(tmp_path)])
    with pytest.raises(
        UserError, match=r"Grad-CAM needs .*: pip install --no-deps grad-cam ttach$"
    ):
        main()
    assert (tmp_path / "runs" / "config.yaml").is_file()
