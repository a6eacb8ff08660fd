"""Checks of the machine before a run: the device, files of weights and the output folder."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator

from fastreid.utils import comm

from fastreid_star.engine import device as devices
from fastreid_star.engine.checks.run import Problem, Run
from fastreid_star.engine.trackers import why_unusable
from fastreid_star.weights import read_weights


def device(run: Run) -> Iterator[Problem]:
    """MODEL.DEVICE can be used, and there is one for each process."""
    count = devices.device_count(run.cfg.MODEL.DEVICE)
    if count is not None and run.local_size > count:
        yield Problem(f"--num-devices {run.local_size}: this machine has {count} device(s)")


def weights(run: Run) -> Iterator[Problem]:
    """MODEL.WEIGHTS is a checkpoint, if it is needed."""
    cfg = run.cfg
    if not run.training and not cfg.MODEL.WEIGHTS:
        yield Problem("--eval-only needs weights: add MODEL.WEIGHTS path/to/model.pth")
    # a resumed run does not read them
    resumed = run.training and os.path.isfile(os.path.join(cfg.OUTPUT_DIR, "last_checkpoint"))
    if cfg.MODEL.WEIGHTS and not resumed and comm.is_main_process():
        read_weights(cfg.MODEL.WEIGHTS)


def pretrained(run: Run) -> Iterator[Problem]:
    """MODEL.BACKBONE.PRETRAIN_PATH exists, if it is needed."""
    node = run.cfg.MODEL.BACKBONE
    needed = run.training and node.PRETRAIN and node.PRETRAIN_PATH
    if needed and not os.path.isfile(node.PRETRAIN_PATH):
        yield Problem(
            f"the pretrained weights {node.PRETRAIN_PATH} of {node.NAME} {node.DEPTH} do not "
            "exist: set MODEL.BACKBONE.PRETRAIN_PATH to a file, or MODEL.BACKBONE.PRETRAIN False"
        )


def trackers(run: Run) -> Iterator[Problem]:
    """The trackers of TRACKERS exist and are installed, where the run is recorded."""
    if run.training and comm.is_main_process():
        yield from map(Problem, why_unusable(run.cfg.TRACKERS))


def output(run: Run) -> Iterator[Problem]:
    """OUTPUT_DIR can be written."""
    problem = why_unwritable(run.cfg.OUTPUT_DIR) if comm.is_main_process() else None
    if problem:
        yield Problem(problem)


def why_unwritable(folder: str | os.PathLike[str], name: str = "OUTPUT_DIR") -> str | None:
    """Make a folder and write into it. Returns what went wrong and the cure, or None.

    Args:
        folder: the folder.
        name: what the user calls it.
    """
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"test")
    except OSError as error:
        return (
            f"{name} {folder} cannot be written ({error.strerror}): use another folder, or "
            "free space"
        )
    return None
