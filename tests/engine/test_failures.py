"""Failures of the machine: full disks, killed workers, lack of memory. Each ends a run with one
line.
"""

import contextlib
import errno
import logging
import multiprocessing
import os
import signal
import subprocess

import pytest
import torch
from fastreid.engine.train_loop import HookBase

from fastreid_star.engine.defaults import LOGGERS, argument_parser, run_tool
from fastreid_star.engine.failures import explain, in_one_line
from fastreid_star.engine.trainer import Trainer, train_or_evaluate
from fastreid_star.errors import UserError
from fastreid_star.methods.sad import SAD
from fastreid_star.weights import read_checkpoint

from ..tiny import DEMO, tiny_options
from .conftest import fill


@pytest.fixture(autouse=True)
def _no_handlers_of_other_runs():
    yield
    for name in LOGGERS:
        for handler in logging.getLogger(name).handlers:
            with contextlib.suppress(OSError):
                handler.close()
        logging.getLogger(name).handlers.clear()


class At(HookBase):
    """Call a function before an iteration."""

    def __init__(self, iteration, function):
        self.iteration, self.function = iteration, function

    def before_step(self):
        if self.trainer.iter == self.iteration:
            self.function()


def train(monkeypatch, root, output, hooks, *more):
    """Train as the command does, with hooks before the others."""
    build = Trainer.build_hooks
    monkeypatch.setattr(Trainer, "build_hooks", lambda self: [*hooks, *build(self)])
    arguments = ["--config-file", DEMO, *tiny_options(root, output, *more)]
    return train_or_evaluate(argument_parser("test").parse_args(arguments))


def refused(*arguments, match):
    """The line of a training that is refused or ends."""
    with pytest.raises(UserError, match=match) as caught:
        train(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- disks ---------------------------------------------------------------------------------------


def test_a_disk_too_small_for_a_checkpoint_ends_in_one_line(monkeypatch, tiny_root, disk, capfd):
    output = disk("300k") / "out"
    refused(monkeypatch, tiny_root, output, [], match="No space left on device")
    said = capfd.readouterr()
    assert "Traceback" not in said.out + said.err
    assert not [name for name in os.listdir(output) if name.endswith((".tmp", ".pth"))]


def test_a_disk_that_fills_up_leaves_the_checkpoint_before_whole(
    monkeypatch, tiny_root, disk, capfd
):
    folder = disk("30m")
    hooks = [At(4, lambda: fill(folder))]
    options = ("SOLVER.LOG_PERIOD", "1")
    refused(monkeypatch, tiny_root, folder / "out", hooks, *options, match="No space left")
    said = capfd.readouterr()
    assert "Traceback" not in said.out + said.err
    assert read_checkpoint(str(folder / "out" / "model_last.pth"))["epoch"] == 0
    assert not [name for name in os.listdir(folder / "out") if name.endswith(".tmp")]
    (folder / "filler").unlink()
    monkeypatch.undo()
    arguments = ["--config-file", DEMO, "--resume", *tiny_options(tiny_root, folder / "out")]
    assert train_or_evaluate(argument_parser("test").parse_args(arguments))["mean/mAP"] > 0


def test_a_read_only_folder_is_one_line_with_all_else_that_is_wrong(monkeypatch, tiny_root, disk):
    folder = disk("1m")
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    refused(monkeypatch, tiny_root, folder, [], match=r"OUTPUT_DIR .*Read-only file system")
    with pytest.raises(UserError, match=r"2 problems:\n.*SOLVER\.BASE_LR.*\n.*OUTPUT_DIR"):
        train(monkeypatch, tiny_root, folder, [], "SOLVER.BASE_LR", "0.0")


# --- workers and memory --------------------------------------------------------------------------


def test_a_loading_worker_that_is_killed_is_one_line(monkeypatch, tiny_root, tmp_path):
    def hit_a_worker():
        workers = [child for child in multiprocessing.active_children() if "Process" in child.name]
        os.kill(workers[0].pid, signal.SIGKILL)

    options = ["DATALOADER.NUM_WORKERS", "1", "SOLVER.MAX_EPOCH", "2000", "TEST.EVAL_PERIOD", "0"]
    words = "was killed"
    line = refused(monkeypatch, tiny_root, tmp_path, [At(4, hit_a_worker)], *options, match=words)
    assert "DATALOADER.NUM_WORKERS" in line
    assert "Training ended: " in (tmp_path / "log.txt").read_text()
    assert read_checkpoint(str(tmp_path / "model_last.pth"))["epoch"] >= 0


def test_a_step_without_memory_is_one_line_that_says_what_to_lower(
    monkeypatch, tiny_root, tmp_path
):
    original = SAD.forward

    def forward(self, batch):
        if len(batch["images"]) < 8:  # of a check before training
            return original(self, batch)
        return torch.empty(2**55, dtype=torch.uint8)

    monkeypatch.setattr(SAD, "forward", forward)
    line = refused(monkeypatch, tiny_root, tmp_path, [], match=r"out of memory, .* requested")
    assert "SOLVER.IMS_PER_BATCH" in line


# the messages of torch and torch_npu
DEVICE_FULL = "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79 GiB"
NPU_FULL = "NPU out of memory. Tried to allocate 2.50 GiB (NPU 0; 60.97 GiB total capacity; ...)"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), "out of memory"),
        (RuntimeError(DEVICE_FULL), "out of memory, 2.50 GiB more were requested"),
        (RuntimeError(NPU_FULL), "out of memory, 2.50 GiB more were requested"),
        (OSError(errno.EROFS, "x", "logs/a"), "logs/a: Read-only file system"),
        (OSError(errno.EDQUOT, "x"), "free some space"),
        (OSError(errno.EMFILE, "x"), "ulimit -n"),
        (RuntimeError("received 0 items of ancdata"), "ulimit -n"),
        (RuntimeError("unable to write to file </torch_1_2>: No space left (28)"), "/dev/shm"),
        (
            RuntimeError("DataLoader worker (pid(s) 12, 13) exited unexpectedly"),
            "worker was killed",
        ),
    ],
)
def test_known_failures(error, words):
    line = explain(error)
    assert words in line
    assert "\n" not in line


def test_a_cause_further_down_is_found():
    error = RuntimeError("unexpected pos 64 vs 0")  # as torch's writer says
    error.__context__ = OSError(errno.ENOSPC, "x")
    assert "free some space" in explain(error)


@pytest.mark.parametrize(
    "error", [ValueError("x"), RuntimeError("shapes"), FileNotFoundError(errno.ENOENT, "x")]
)
def test_bugs_are_left_alone(error):
    assert explain(error) is None
    with pytest.raises(type(error)), in_one_line():
        raise error


def test_a_command_ends_with_the_line(capsys):
    def main():
        raise OSError(errno.ENOSPC, "x", "features.npz")

    with pytest.raises(SystemExit) as caught:
        run_tool(main)
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("error: features.npz: No space left on device")


def test_the_last_line_of_a_run_is_in_its_log_and_the_traceback_is_not_on_the_terminal(
    monkeypatch, tiny_root, tmp_path, capsys
):
    def fail():
        raise UserError("the dataset has gone")

    refused(monkeypatch, tiny_root, tmp_path, [At(1, fail)], match="gone")
    said = capsys.readouterr().out
    assert "Training ended: the dataset has gone" in said
    assert "Traceback" not in said
    assert "Traceback" in (tmp_path / "log.txt").read_text()
