"""A learning rate that is far too high, from the command line to the module where the numbers ran out."""

import runpy
import subprocess
import sys

import pytest
import torch

STAR = "configs/Synthetic/STAR_demo.yml"
OPTIONS = """
    MODEL.DEVICE cpu MODEL.BACKBONE.DEPTH tiny MODEL.LOSSES.CE_ONLY_EPOCHS 1 INPUT.CLIP.LENGTH 3
    INPUT.SIZE_TRAIN [32,16] INPUT.SIZE_TEST [32,16] DATALOADER.NUM_WORKERS 0 TEST.EVAL_PERIOD 0
    SOLVER.IMS_PER_BATCH 8 SOLVER.CHECKPOINT_PERIOD 1 SOLVER.MAX_EPOCH 5
    SOLVER.OPT SGD SOLVER.BASE_LR 100.0 SOLVER.WARMUP_EPOCHS 3 SOLVER.STEPS ()
"""


@pytest.fixture(scope="module")
def diverged(request, tmp_path_factory):
    """A run that has diverged: its folder, and how it ended."""
    root, output = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("run")
    sizes = ["TRAIN_IDS", 6, "TEST_IDS", 4, "TRACKLETS", 2, "FRAMES", 12, "SIZE", "[32,16]"]
    sizes = [
        f"DATASETS.SYNTHETIC.{part}" if number % 2 == 0 else part
        for number, part in enumerate(sizes)
    ]
    options = ["DATASETS.ROOT", root, "OUTPUT_DIR", output, *OPTIONS.split(), *sizes]
    command = [sys.executable, "tools/train_net.py", "--config-file", STAR, *map(str, options)]
    return output, subprocess.run(
        command, cwd=request.config.rootpath, capture_output=True, text=True, timeout=180
    )


@pytest.fixture
def replay(request, monkeypatch):
    """``replay(file)``: run the tool in this process."""

    def run(file):
        monkeypatch.setattr(sys, "argv", ["replay.py", str(file)])
        runpy.run_path(str(request.config.rootpath / "tools" / "replay.py"), run_name="__main__")

    return run


def test_divergence_ends_in_one_line_and_spoils_no_checkpoint(diverged):
    output, done = diverged
    assert done.returncode == 2, done.stdout + done.stderr
    (kept,) = output.glob("nonfinite-*.pth")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: loss_")
    assert line.endswith(f"; see where it began: tools/replay.py {kept}")
    assert "lower SOLVER.BASE_LR" in line
    assert "Traceback" not in done.stdout
    last = torch.load(output / "model_last.pth", weights_only=True)
    assert all(value.isfinite().all() for value in last["model"].values())
    assert not (output / "model_final.pth").exists()


def test_the_tool_shows_where_it_began(diverged, replay, capsys):
    output, _ = diverged
    (kept,) = output.glob("nonfinite-*.pth")
    replay(kept)
    told = capsys.readouterr().out
    assert "The losses are the same, bit for bit. Not finite" in told
    assert "It began in the forward pass, in aten::" in told
    assert "huge" in told
    assert max(len(line) for line in told.splitlines()) < 160


def test_a_file_that_is_no_step_is_refused(diverged, replay, capsys):
    output, _ = diverged
    with pytest.raises(SystemExit) as ended:
        replay(output / "model_last.pth")
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
