"""Checks of the machine before a run: device, weight files, disk space and shared memory."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator

import torch
from fastreid.config import CfgNode
from fastreid.utils import comm

from fastreid_star.engine import device as devices
from fastreid_star.engine.checks.run import Check, Problem, Run
from fastreid_star.weights import read_weights

SHARED_MEMORY = "/dev/shm"  # loader workers pass batches through it, on Linux
BATCHES_OF_A_WORKER = 3  # two prefetched by torch, and one in progress


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


def output(run: Run) -> Iterator[Problem]:
    """OUTPUT_DIR can be written."""
    problem = why_unwritable(run.cfg.OUTPUT_DIR) if comm.is_main_process() else None
    if problem:
        yield Problem(problem)


def shared_memory(run: Run) -> Iterator[Problem]:
    """There is enough shared memory; the system kills a loader worker that finds none."""
    if run.cfg.DATALOADER.NUM_WORKERS > 0 and run.video and os.path.isdir(SHARED_MEMORY):
        needed, free = bytes_of_workers(run), shutil.disk_usage(SHARED_MEMORY).free
        if needed > free:
            yield Problem(
                f"the loader workers may use {needed / 2**20:,.0f} MiB of {SHARED_MEMORY}, which "
                f"has {free / 2**20:,.0f} MiB: lower DATALOADER.NUM_WORKERS, or enlarge it (docker "
                "run --shm-size)",
                fatal=False,
            )


CHECKS: tuple[Check, ...] = (device, weights, pretrained, output, shared_memory)


def why_unwritable(folder: str) -> str | None:
    """Make a folder and write into it. Returns what went wrong and the cure, or None."""
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"test")
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        reason = getattr(error, "strerror", None) or error
        return (
            f"OUTPUT_DIR {folder} cannot be written ({reason}): use another folder, or free space"
        )
    return None


def bytes_of_workers(run: Run) -> int:
    """The largest number of bytes that the loader workers of this machine hold in shared memory."""
    cfg = run.cfg
    batch = cfg.TEST.IMS_PER_BATCH * _pixels(cfg.INPUT.SIZE_TEST)
    if run.training:
        clips = cfg.SOLVER.IMS_PER_BATCH // max(1, run.world_size)
        batch = max(batch, clips * _pixels(cfg.INPUT.SIZE_TRAIN))
    workers = cfg.DATALOADER.NUM_WORKERS * run.local_size
    return 3 * batch * cfg.INPUT.CLIP.LENGTH * BATCHES_OF_A_WORKER * workers


def little_room(
    cfg: CfgNode, model: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> str | None:
    """A warning if the disk has too little space for the checkpoints of a run, else None.

    Args:
        cfg: the config of the run.
        model, optimizer: their states are in each checkpoint. The optimizer is counted as after its
            first step.
    """
    checkpoints = 2 + cfg.SOLVER.CHECKPOINT_KEEP  # model_best, model_final and model_last
    weights = sum(value.numel() * value.element_size() for value in model.state_dict().values())
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    copies = 2 if "betas" in optimizer.defaults else int(bool(optimizer.defaults.get("momentum")))
    needed = checkpoints * (weights + copies * trained)
    free = shutil.disk_usage(cfg.OUTPUT_DIR).free
    if needed <= free:
        return None
    return (
        f"the checkpoints of this run need about {needed / 2**20:,.0f} MiB, and the disk of "
        f"OUTPUT_DIR {cfg.OUTPUT_DIR} has {free / 2**20:,.0f} MiB: free some space, or the run "
        "will end when it is full"
    )


def _pixels(size: list[int]) -> int:
    """Height x width; 0 for an invalid size, which another check reports."""
    sides = [side for side in size if isinstance(side, int)]
    return sides[0] * sides[1] if len(sides) == 2 else 0
