"""The example, copied out of the project and renamed, is a method of one's own."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import fastreid_star
from fastreid_star.methods import example
from fastreid_star.pose.movenet import has_onnx

NAMES = {"AttentionReID": "MyReID", "CenterLoss": "MyCenterLoss"}
OPTIONS = {
    "MODEL.DEVICE": "cpu",
    "MODEL.BACKBONE.DEPTH": "tiny",
    "MODEL.LOSSES.CE_ONLY_EPOCHS": 1,
    "INPUT.SIZE_TRAIN": [32, 16],
    "INPUT.SIZE_TEST": [32, 16],
    "INPUT.CLIP.LENGTH": 3,
    "DATALOADER.NUM_WORKERS": 0,
    "DATASETS.ROOT": "datasets",
    "DATASETS.SYNTHETIC.TRAIN_IDS": 6,
    "DATASETS.SYNTHETIC.TEST_IDS": 4,
    "DATASETS.SYNTHETIC.TRACKLETS": 2,
    "DATASETS.SYNTHETIC.FRAMES": 12,
    "DATASETS.SYNTHETIC.SIZE": [32, 16],
    "SOLVER.IMS_PER_BATCH": 8,
    "SOLVER.MAX_EPOCH": 2,
    "SOLVER.STEPS": [2],
    "TEST.EVAL_PERIOD": 2,
}
# one process for the commands that only read the run: importing torch takes the time
LATER = """
from fastreid_star.cli.main import run
for command in {commands!r}:
    assert not run(*command), command
"""


def run(folder: Path, *command: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(Path(fastreid_star.__file__).parents[1])}
    environment.pop("FASTREID_STAR_IMPORT", None)
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=environment,
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def test_a_copied_method_trains_exports_and_reports(tmp_path):
    source, copy = Path(example.__file__).parent, tmp_path / "my_method"
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__"))
    for path in copy.iterdir():
        text = path.read_text(encoding="utf-8")
        for old, new in NAMES.items():
            text = text.replace(old, new)
        path.write_text(text, encoding="utf-8")
    before = {path: path.read_bytes() for path in source.iterdir() if path.is_file()}

    pairs = [str(part) for pair in OPTIONS.items() for part in pair]
    start = ("-m", "fastreid_star", "train", "--import", "my_method")
    run(tmp_path, *start, "--config-file", "my_method/example.yml", *pairs)
    folder = tmp_path / "logs" / "example"
    metrics = (folder / "metrics.json").read_text(encoding="utf-8")
    assert "loss_center" in metrics
    assert {"loss_cls", "I2V/mAP"} <= {
        key for line in metrics.splitlines() for key in json.loads(line)
    }

    commands = [["report", str(folder), "--output", "report.html"]]
    if has_onnx():
        commands.append(["export", "model.onnx", "--run", str(folder)])
    run(tmp_path, "-c", LATER.format(commands=commands))
    assert not has_onnx() or (tmp_path / "model.onnx").stat().st_size > 100_000
    assert "MyReID" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert before == {path: path.read_bytes() for path in source.iterdir() if path.is_file()}
