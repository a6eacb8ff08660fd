"""Report whether this machine, and a run, are ready to train.

Run as a program by several processes, this module is the all-reduce: ``doctor.py DEVICE FOLDER``.
"""

from __future__ import annotations

import functools
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
import torch.distributed as dist
from fastreid.config import get_cfg
from fastreid.utils import comm

import fastreid_star
from fastreid_star.coco import NUM_JOINTS
from fastreid_star.engine import device as devices
from fastreid_star.engine.checks import check
from fastreid_star.engine.configs import load_config
from fastreid_star.engine.launch import launch, run_command
from fastreid_star.engine.trainer import Trainer
from fastreid_star.errors import UserError
from fastreid_star.structures import Modality

PACKAGES = ("torch", "torchvision", "fastreid", "numpy", "yacs")
CLIPS, LENGTH, SIZE = 8, 2, (32, 16)
TINY = {
    "MODEL.META_ARCHITECTURE": "STAR",
    "MODEL.BACKBONE.NAME": "build_small_resnet_backbone",
    "MODEL.BACKBONE.DEPTH": "tiny",
    "MODEL.BACKBONE.FEAT_DIM": 0,
    "MODEL.HEADS.NAME": "GATGeMHead",
    "MODEL.HEADS.NUM_CLASSES": 2,
    "MODEL.FRAME_CORRECTOR.NAME": "SkeletonFrameCorrector",
    "MODEL.LOSSES.NAME": (
        "CrossEntropyLoss", "TripletLoss", "StyleAttackLoss", "StyleDefenseLoss",
        "SkeletonConsistencyLoss",
    ),
    "INPUT.SIZE_TRAIN": list(SIZE),
    "SOLVER.BASE_LR": 0.01,
}  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """One line of the report. `good`: ready; False: must be fixed; None: not needed."""

    name: str
    good: bool | None
    text: str

    def __str__(self) -> str:
        mark = {True: " ok ", False: "FAIL", None: " -- "}[self.good]
        return f"{mark}  {self.name:14} {self.text}"


def doctor(
    device: str = "auto",
    num_devices: int = 1,
    *,
    config_file: str = "",
    opts: list[str] | None = None,
) -> Iterator[Finding]:
    """Examine the machine, and a run if a config is given. All is examined, also after a failure.

    Args:
        device: ``MODEL.DEVICE`` of the training.
        num_devices: the number of processes of the all-reduce and of the run.
        config_file: the config of a run. Its datasets are opened.
        opts: ``[KEY, VALUE, ...]`` that change the config.
    """
    yield Finding("python", True, platform.python_version())
    yield Finding("fastreid-star", True, fastreid_star.__version__)
    for package in PACKAGES:
        try:
            yield Finding(package, True, version(package))
        except PackageNotFoundError:
            yield Finding(package, False, "its version is unknown: install it again")
    for name, found in devices.inventory().items():
        yield Finding(name, True, found)
    for kind in devices.DEVICE_NAMES[1:]:
        reason = devices.why_unusable(kind)
        if reason is None:
            yield _try(kind, functools.partial(_count, kind))
        else:
            needed = device.partition(":")[0] == kind
            text = reason.partition(": ")[2]
            good, text = (False, text) if needed else (None, f"not needed here ({text})")
            yield Finding(kind, good, text)
    yield _try("training step", lambda: train_step(device))
    yield _try("all-reduce", lambda: all_reduce(device, num_devices))
    if config_file:
        yield from _examine_run(config_file, opts or [], num_devices)


def _count(kind: str) -> str:
    return f"{devices.device_count(kind) or 1} device(s)"


def _examine_run(path: str, opts: list[str], num_devices: int) -> Iterator[Finding]:
    try:
        cfg = load_config(path, opts)
        found = check(cfg, world_size=num_devices, local_size=num_devices)
    except UserError as error:
        yield Finding("config", False, str(error))
        return
    for problem in found:
        yield Finding("run", False if problem.fatal else None, problem.text)
    if not any(problem.fatal for problem in found):
        names = ", ".join(cfg.DATASETS.NAMES)
        yield Finding("run", True, f"{cfg.MODEL.META_ARCHITECTURE} on {names}: no problem found")


def _try(name: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding(name, True, check())
    except UserError as error:
        return Finding(name, False, str(error))
    except Exception as error:  # drivers raise errors of any type
        lines = str(error).strip().splitlines()
        return Finding(name, False, f"{type(error).__name__}: {lines[-1] if lines else ''}")


def train_step(device: str) -> str:
    """Train STAR with all its parts, on the smallest backbone, for two steps on noise.

    Raises:
        UserError: the device cannot be used, a loss is not finite, or the weights do not change.
    """
    chosen = devices.choose_device(device)
    cfg = get_cfg()
    cfg.merge_from_list([str(part) for pair in TINY.items() for part in pair])
    cfg.MODEL.DEVICE = device
    model = Trainer.build_model(cfg).train()
    optimizer, _ = Trainer.build_optimizer(cfg, model)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    joints = torch.rand(CLIPS, LENGTH, NUM_JOINTS, 3) * torch.tensor([*SIZE[::-1], 1.0])
    images = torch.randint(0, 256, (CLIPS, LENGTH, 3, *SIZE), dtype=torch.uint8)
    modalities = torch.tensor([Modality.VISIBLE, Modality.INFRARED])
    batch = {
        "images": images.to(chosen),
        "modality": modalities.repeat_interleave(CLIPS // 2),
        "targets": torch.tensor([0, 0, 1, 1] * (CLIPS // 4)).to(chosen),
        "skeletons": joints.to(chosen),
        "has_skeleton": torch.ones(CLIPS, LENGTH, dtype=torch.bool).to(chosen),
    }
    for _ in range(2):
        losses = model(batch)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    devices.synchronize(chosen)
    wrong = [name for name, loss in losses.items() if not torch.isfinite(loss)]
    if wrong:
        raise UserError(f"{', '.join(wrong)} is not finite on {chosen}: its results are wrong")
    after = model.parameters()
    moved = sum(not torch.equal(old, new) for old, new in zip(before, after, strict=True))
    if moved < len(before) // 2:
        raise UserError(f"the optimizer has changed only {moved} of {len(before)} weights")
    return f"STAR on {chosen}"


def all_reduce(device: str, num_devices: int) -> str:
    """Add up the numbers 1, 2, ... of the processes; each process must get the sum.

    Raises:
        UserError: there are fewer devices, or a sum is wrong.
    """
    if num_devices < 2:
        return "not tested with one process (--num-devices sets the number)"
    with tempfile.TemporaryDirectory() as folder:
        run_command(["-m", __name__, device, folder], num_devices)
        files = [Path(folder, str(rank)) for rank in range(num_devices)]
        sums = [float(file.read_text(encoding="utf-8")) for file in files]
    expected = num_devices * (num_devices + 1) / 2
    if sums != [expected] * num_devices:
        raise UserError(f"1 + ... + {num_devices} is {expected:g}, but the processes got {sums}")
    return f"{num_devices} processes over {devices.collective_backend(device)}"


def _reduce(device: str, folder: str) -> None:
    chosen = devices.choose_device(device, comm.get_local_rank())
    number = torch.tensor([comm.get_rank() + 1.0], device=chosen)
    dist.all_reduce(number)
    (Path(folder) / str(comm.get_rank())).write_text(str(number.item()), encoding="utf-8")


if __name__ == "__main__":
    from fastreid_star.engine.defaults import run_tool

    run_tool(lambda: launch(_reduce, 1, device=sys.argv[1], args=tuple(sys.argv[1:])))
