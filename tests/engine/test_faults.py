"""Faults of the machine: full disks, killed workers, memory that gives out. One line, or the run goes on."""

import errno
import json
import logging
import multiprocessing
import os
import signal
import subprocess
import sys

import pytest
import torch
from fastreid.engine.train_loop import HookBase

from fastreid_star.engine import device as devices
from fastreid_star.engine.checkpoint import read_checkpoint
from fastreid_star.engine.defaults import LOGGERS, argument_parser, run_tool
from fastreid_star.engine.faults import explain, in_one_line
from fastreid_star.engine.trainer import Trainer, train_or_evaluate
from fastreid_star.errors import UserError
from fastreid_star.modeling import SAD

from .conftest import DEMO, REPOSITORY, fill, tiny_options


@pytest.fixture(autouse=True)
def _no_handlers_of_other_runs():
    yield
    for name in LOGGERS:
        logging.getLogger(name).handlers.clear()


class At(HookBase):
    """Does something before an iteration."""

    def __init__(self, iteration, what):
        self.iteration, self.what = iteration, what

    def before_step(self):
        if self.trainer.iter == self.iteration:
            self.what()


def train(monkeypatch, root, output, hooks, *more):
    """As tools/train_net.py does, with hooks of our own before the others."""
    build = Trainer.build_hooks
    monkeypatch.setattr(Trainer, "build_hooks", lambda self: [*hooks, *build(self)])
    arguments = ["--config-file", DEMO, *tiny_options(root, output, *more)]
    return train_or_evaluate(argument_parser("test").parse_args(arguments))


def test_a_disk_too_small_for_a_checkpoint_ends_in_one_line(tiny_root, disk):
    output = disk("300k") / "out"
    command = [
        sys.executable,
        "tools/train_net.py",
        "--config-file",
        DEMO,
        *tiny_options(tiny_root, output),
    ]
    ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: ")
    assert "No space left on device" in line
    assert "make room" in line
    assert "Traceback" not in ended.stdout
    assert "the checkpoints of this run take about" in ended.stdout, "it was said before training"
    log = (output / "log.txt").read_text()
    assert "Training ended: " in log
    assert "Traceback" in log, "for whoever wants to know more"
    assert not [name for name in os.listdir(output) if name.endswith((".tmp", ".pth"))]


def test_a_disk_that_fills_up_leaves_the_checkpoint_before_whole(monkeypatch, tiny_root, disk):
    folder = disk("30m")
    with pytest.raises(UserError, match="No space left on device") as caught:
        train(monkeypatch, tiny_root, folder / "out", [At(4, lambda: fill(folder))])
    assert "\n" not in str(caught.value)
    assert read_checkpoint(str(folder / "out" / "model_last.pth"))["epoch"] == 0
    assert not [name for name in os.listdir(folder / "out") if name.endswith(".tmp")]
    (folder / "filler").unlink()
    monkeypatch.undo()
    arguments = ["--config-file", DEMO, "--resume", *tiny_options(tiny_root, folder / "out")]
    assert train_or_evaluate(argument_parser("test").parse_args(arguments))["mean/mAP"] > 0


def test_a_disk_full_between_checkpoints_does_not_end_the_run(monkeypatch, tiny_root, disk, capsys):
    """Log and metrics have no room for a while; where the room is back, the log goes on."""
    folder = disk("30m")
    hooks = [At(2, lambda: fill(folder)), At(28, (folder / "filler").unlink)]
    options = ["SOLVER.CHECKPOINT_PERIOD", "0", "SOLVER.LOG_PERIOD", "1", "SOLVER.MAX_EPOCH", "10"]
    results = train(
        monkeypatch, tiny_root, folder / "out", hooks, *options, "TEST.EVAL_PERIOD", "10"
    )
    assert results["mean/mAP"] > 0
    assert read_checkpoint(str(folder / "out" / "model_final.pth"))["epoch"] == 9
    said = capsys.readouterr()
    assert "Traceback" not in said.out + said.err
    assert said.out.count("metrics.json cannot be written any more (No space left on device)") == 1
    assert "log.txt cannot be written (No space left on device): the run goes on" in said.err
    assert said.err.count("log.txt") <= len(LOGGERS)
    log = (folder / "out" / "log.txt").read_text()
    assert "Saving checkpoint" in log, "the log goes on once there is room"
    assert "epoch/iter: 6/20" in log, "what had no room is not lost"


def test_a_read_only_folder_is_one_line_with_all_else_that_is_wrong(monkeypatch, tiny_root, disk):
    folder = disk("1m")
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    with pytest.raises(
        UserError, match=r"^OUTPUT_DIR .* cannot be written: Read-only file system"
    ) as caught:
        train(monkeypatch, tiny_root, folder, [])
    assert "\n" not in str(caught.value)
    with pytest.raises(
        UserError,
        match=r"^2 problems:\n1\. SOLVER\.BASE_LR .*\n2\. OUTPUT_DIR .* cannot be written",
    ):
        train(monkeypatch, tiny_root, folder, [], "SOLVER.BASE_LR", "0.0")


def hit_a_worker(number):
    def hit():
        workers = [child for child in multiprocessing.active_children() if "Process" in child.name]
        assert workers
        os.kill(workers[0].pid, number)

    return hit


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (
            signal.SIGKILL,
            r"^a loading worker was killed \(Killed\), .* lower DATALOADER\.NUM_WORKERS, .* --resume$",
        ),
        (signal.SIGBUS, r"^the loading workers found no room in shared memory .* --shm-size"),
    ],
)
def test_a_loading_worker_that_is_killed_is_one_line(
    monkeypatch, tiny_root, tmp_path, number, message
):
    options = ["DATALOADER.NUM_WORKERS", "1", "SOLVER.MAX_EPOCH", "2000", "TEST.EVAL_PERIOD", "0"]
    with pytest.raises(UserError, match=message) as caught:
        train(monkeypatch, tiny_root, tmp_path, [At(4, hit_a_worker(number))], *options)
    assert "\n" not in str(caught.value)
    assert "Training ended: " in (tmp_path / "log.txt").read_text()
    assert read_checkpoint(str(tmp_path / "model_last.pth"))["epoch"] >= 0


# what torch and torch_npu say, and what a CPU of ours does
DEVICE_FULL = "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.15 GiB of which ..."
NPU_FULL = "NPU out of memory. Tried to allocate 2.50 GiB (NPU 0; 60.97 GiB total capacity; 57.6 GiB already ...)"


def too_much():
    torch.empty(2**55, dtype=torch.uint8)


@pytest.mark.parametrize("fail", [DEVICE_FULL, NPU_FULL, too_much], ids=["cuda", "npu", "cpu"])
def test_a_step_without_memory_is_one_line_that_says_what_to_lower(
    monkeypatch, tiny_root, tmp_path, fail
):
    def forward(self, batch):
        if callable(fail):
            fail()
        raise RuntimeError(fail)

    monkeypatch.setattr(SAD, "forward", forward)
    monkeypatch.setattr(devices, "peak_memory", lambda device: 3 * 2**30)
    with pytest.raises(
        UserError, match=r"^out of memory, .* more were wanted: lower SOLVER\.IMS_PER_BATCH"
    ) as caught:
        train(monkeypatch, tiny_root, tmp_path, [])
    assert str(caught.value).endswith("; at most 3,072 MiB were in use on cpu")
    assert "\n" not in str(caught.value)
    assert "2.50 GiB" in str(caught.value) or callable(fail)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "out of memory"),
        (OSError(errno.EROFS, "x", "logs/a"), "logs/a: Read-only file system: look after the disk"),
        (OSError(errno.EDQUOT, "x"), "make room"),
        (OSError(errno.EMFILE, "x"), "ulimit -n"),
        (RuntimeError("received 0 items of ancdata"), "ulimit -n"),
        (
            RuntimeError(
                "unable to allocate shared memory(shm) for file </torch_1_2>: No space (28)"
            ),
            "/dev/shm",
        ),
        (
            RuntimeError("unable to write to file </torch_1_2>: No space left on device (28)"),
            "/dev/shm",
        ),
        (
            RuntimeError("DataLoader worker (pid(s) 12, 13) exited unexpectedly"),
            "a loading worker was killed, as",
        ),
    ],
)
def test_what_else_is_known(error, said):
    line = explain(error)
    assert said in line
    assert "\n" not in line


def test_a_cause_further_down_is_found():
    error = RuntimeError("unexpected pos 64 vs 0")  # as torch's writer says
    error.__context__ = OSError(errno.ENOSPC, "x")
    assert "make room" in explain(error)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("x"),
        RuntimeError("shapes differ"),
        FileNotFoundError(errno.ENOENT, "x"),
        KeyError(1),
    ],
)
def test_bugs_are_left_alone(error):
    assert explain(error) is None
    with pytest.raises(type(error)), in_one_line():
        raise error


def test_tools_end_with_the_line(capsys):
    def main():
        raise OSError(errno.ENOSPC, "x", "features.npz")

    with pytest.raises(SystemExit) as caught:
        run_tool(main)
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith(
        "error: features.npz: No space left on device: make room"
    )


def test_the_last_line_of_a_run_is_in_its_log_without_a_traceback_on_the_terminal(
    monkeypatch, tiny_root, tmp_path, capsys
):
    def fail():
        raise UserError("the dataset has gone")

    with pytest.raises(UserError, match="gone"):
        train(monkeypatch, tiny_root, tmp_path, [At(1, fail)], "SOLVER.LOG_PERIOD", "1")
    said = capsys.readouterr().out
    assert "Training ended: the dataset has gone" in said
    assert "Traceback" not in said
    lines = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert lines
