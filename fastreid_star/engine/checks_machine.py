"""What a run wants of its machine: a device, files to start from, and room: on disk and in shared memory."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator

import torch
from fastreid.config import CfgNode
from fastreid.utils import comm

from fastreid_star.engine import device as devices
from fastreid_star.engine.problems import Check, Problem
from fastreid_star.engine.problems import Run as Job
from fastreid_star.engine.weights import read_weights

SHARED_MEMORY = "/dev/shm"  # where loading workers hand over batches, on Linux
BATCHES_OF_A_WORKER = 3  # two that are loaded ahead, as torch does, and one in the making


def device(job: Job) -> Iterator[Problem]:
    """A device that is not there, or fewer of them than processes."""
    count = devices.device_count(job.cfg.MODEL.DEVICE)
    if count is not None and job.local_size > count:
        yield Problem(f"--num-devices {job.local_size}: this machine shows {count} device(s)")


def weights(job: Job) -> Iterator[Problem]:
    """A checkpoint to start from, or to evaluate, that is not there or is none."""
    cfg = job.cfg
    if not job.training and not cfg.MODEL.WEIGHTS:
        yield Problem("--eval-only needs weights: add MODEL.WEIGHTS path/to/model.pth")
    # a run that goes on from its own checkpoint does without
    going_on = job.training and os.path.isfile(os.path.join(cfg.OUTPUT_DIR, "last_checkpoint"))
    if cfg.MODEL.WEIGHTS and not going_on and comm.is_main_process():
        read_weights(cfg.MODEL.WEIGHTS)


def pretrained(job: Job) -> Iterator[Problem]:
    """Pretrained weights that are not where the config says."""
    node = job.cfg.MODEL.BACKBONE
    if (
        job.training
        and node.PRETRAIN
        and node.PRETRAIN_PATH
        and not os.path.isfile(node.PRETRAIN_PATH)
    ):
        yield Problem(
            f"the pretrained weights of {node.NAME} {node.DEPTH} cannot be had ({node.PRETRAIN_PATH} does not exist): "
            "set MODEL.BACKBONE.PRETRAIN_PATH to a file, or MODEL.BACKBONE.PRETRAIN False"
        )


def output(job: Job) -> Iterator[Problem]:
    """A folder that cannot be written."""
    problem = why_unwritable(job.cfg.OUTPUT_DIR) if comm.is_main_process() else None
    if problem:
        yield Problem(problem)


def shared_memory(job: Job) -> Iterator[Problem]:
    """Less shared memory than the loading workers may fill; one that finds none left is killed by a bus error."""
    if job.cfg.DATALOADER.NUM_WORKERS > 0 and job.video and os.path.isdir(SHARED_MEMORY):
        wanted, free = bytes_of_workers(job), shutil.disk_usage(SHARED_MEMORY).free
        if wanted > free:
            yield Problem(
                f"the loading workers may fill {wanted / 2**20:,.0f} MiB of {SHARED_MEMORY}, which has "
                f"{free / 2**20:,.0f} MiB: lower DATALOADER.NUM_WORKERS, or give more (docker run --shm-size)",
                fatal=False,
            )


CHECKS: tuple[Check, ...] = (device, weights, pretrained, output, shared_memory)


def why_unwritable(folder: str) -> str | None:
    """Make a folder and write into it; what went wrong and the cure, None where nothing did."""
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"room for a line")
    except (OSError, ValueError) as error:  # a name with a zero in it is no OSError
        return (
            f"OUTPUT_DIR {folder} cannot be written: {getattr(error, 'strerror', None) or error}; name another "
            "folder, or make it writable and leave some room"
        )
    return None


def bytes_of_workers(job: Job) -> int:
    """What the loading workers of this machine may hold in shared memory at a time, in training or in testing."""
    cfg = job.cfg
    train = (
        cfg.SOLVER.IMS_PER_BATCH // max(1, job.world_size) * _pixels(cfg.INPUT.SIZE_TRAIN)
        if job.training
        else 0
    )
    batch = (
        max(train, cfg.TEST.IMS_PER_BATCH * _pixels(cfg.INPUT.SIZE_TEST))
        * 3
        * cfg.INPUT.CLIP.LENGTH
    )
    return batch * BATCHES_OF_A_WORKER * cfg.DATALOADER.NUM_WORKERS * job.local_size


def little_room(
    cfg: CfgNode, model: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> str | None:
    """A warning where the disk has no room for a run's checkpoints; None where it has.

    Args:
        cfg: of the run.
        model, optimizer: whose states they hold; the optimizer's is counted as it will be after a step.
    """
    checkpoints = 2 + cfg.SOLVER.CHECKPOINT_KEEP  # model_best, model_final, and those of model_last
    weights = sum(value.numel() * value.element_size() for value in model.state_dict().values())
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    copies = 2 if "betas" in optimizer.defaults else int(bool(optimizer.defaults.get("momentum")))
    wanted, free = (
        checkpoints * (weights + copies * trained),
        shutil.disk_usage(cfg.OUTPUT_DIR).free,
    )
    if wanted <= free:
        return None
    return (
        f"the checkpoints of this run take about {wanted / 2**20:,.0f} MiB, and the disk of OUTPUT_DIR "
        f"{cfg.OUTPUT_DIR} has {free / 2**20:,.0f} MiB: make room, or the run ends at the one that finds none"
    )


def _pixels(size: list[int]) -> int:
    """Height x width; 0 for what is no size, which is refused elsewhere."""
    sides = [side for side in size if isinstance(side, int)]
    return sides[0] * sides[1] if len(sides) == 2 else 0
