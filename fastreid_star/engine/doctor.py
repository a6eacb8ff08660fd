"""Is this machine ready to train, and a run ready for it? Versions, devices, a tiny step, a config and its data."""

from __future__ import annotations

import functools
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
import torch.distributed as dist
from fastreid.config import CfgNode, get_cfg
from fastreid.utils import comm

from fastreid_star.coco import NUM_JOINTS
from fastreid_star.engine import device as devices
from fastreid_star.engine.checks import check
from fastreid_star.engine.defaults import load_config
from fastreid_star.engine.launch import launch
from fastreid_star.engine.trainer import Trainer
from fastreid_star.errors import UserError
from fastreid_star.structures import Modality

PACKAGES = (
    "torch",
    "torchvision",
    "fastreid",
    "fastreid-star",
    "numpy",
    "yacs",
)  # whatever imports this has them
CLIPS, LENGTH, SIZE = 8, 4, (64, 32)


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Args:
        name: of what was looked at.
        good: True; False: it must be cured before training; None: it is not needed for what was asked.
        text: what was found, with the cure where there is something to cure.
    """

    name: str
    good: bool | None
    text: str

    def __str__(self) -> str:
        return f"{ {True: ' ok ', False: 'FAIL', None: ' -- '}[self.good] }  {self.name:14} {self.text}"


def examine(device: str, num_devices: int) -> Iterator[Finding]:
    """Look at everything, one finding after the other; a failure does not keep the later ones from being looked at.

    Args:
        device: as ``MODEL.DEVICE``: what training is to run on.
        num_devices: how many processes shall add up their numbers.
    """
    yield Finding("python", True, platform.python_version())
    for package in PACKAGES:
        try:
            yield Finding(package, True, version(package))
        except PackageNotFoundError:
            yield Finding(
                package,
                False,
                "its version cannot be told: install it anew, with tools/dev.py setup",
            )
    for name, found in devices.inventory().items():
        yield Finding(name, True, found)
    wanted = device.partition(":")[0]
    for kind in devices.DEVICE_NAMES[1:]:
        reason = devices.why_unusable(kind)
        if reason is not None:
            yield Finding(kind, False if kind == wanted else None, reason.partition(": ")[2])
        else:
            yield _tried(kind, functools.partial(_count, kind))
    for name, check in (
        ("training step", lambda: train_step(device)),
        ("all-reduce", lambda: add_up(device, num_devices)),
    ):
        yield _tried(name, check)


def examine_run(path: str, opts: list[str], num_devices: int) -> Iterator[Finding]:
    """All that training with a config would be refused for, or warned of, one finding each.

    The datasets are opened; one that draws itself is drawn.

    Args:
        path: of the config file.
        opts: ``[KEY, VALUE, ...]`` that change it.
        num_devices: how many processes are to train.
    """
    try:
        cfg = load_config(path, opts)
        found = check(cfg, world_size=num_devices, local_size=num_devices)
    except UserError as error:
        yield Finding("config", False, str(error))
        return
    for problem in found:
        yield Finding("run", False if problem.fatal else None, problem.text)
    if not any(problem.fatal for problem in found):
        text = f"{cfg.MODEL.META_ARCHITECTURE} on {', '.join(cfg.DATASETS.NAMES)}: nothing is in its way"
        yield Finding("run", True, text)


def _count(kind: str) -> str:
    count = devices.device_count(kind)
    return "usable" if count is None else f"{count} device(s)"


def _tried(name: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding(name, True, check())
    except UserError as error:
        return Finding(name, False, str(error))
    except Exception as error:  # whatever a driver or a library throws is the finding
        lines = str(error).strip().splitlines()
        return Finding(name, False, f"{type(error).__name__}: {lines[-1] if lines else ''}")


def tiny_config(device: str) -> CfgNode:
    """STAR, whole, on the smallest backbone there is."""
    cfg = get_cfg()
    cfg.MODEL.DEVICE = device
    cfg.MODEL.META_ARCHITECTURE = "STAR"
    cfg.MODEL.BACKBONE.NAME = "build_small_resnet_backbone"
    cfg.MODEL.BACKBONE.DEPTH = "tiny"
    cfg.MODEL.BACKBONE.FEAT_DIM = 0
    cfg.MODEL.HEADS.NAME = "GATGeMHead"
    cfg.MODEL.HEADS.NUM_CLASSES = 2
    cfg.MODEL.LOSSES.NAME = (
        "CrossEntropyLoss", "TripletLoss", "StyleAttackLoss", "StyleDefenseLoss", "SkeletonConsistencyLoss"
    )  # fmt: skip
    cfg.INPUT.SIZE_TRAIN = list(SIZE)
    cfg.SOLVER.BASE_LR = 0.01
    return cfg


def train_step(device: str) -> str:
    """Two steps of STAR on noise: the losses must be finite, and the weights must move.

    Returns:
        the device, the time of the second step and the memory taken.

    Raises:
        UserError: the device is not usable, a loss is not finite, or nothing moved.
    """
    chosen = devices.choose_device(device)
    cfg = tiny_config(device)
    model = Trainer.build_model(cfg).train()
    optimizer, _ = Trainer.build_optimizer(cfg, model)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    batch = {
        "images": torch.randint(0, 256, (CLIPS, LENGTH, 3, *SIZE), dtype=torch.uint8).to(chosen),
        "modality": torch.tensor([Modality.VISIBLE, Modality.INFRARED]).repeat_interleave(
            CLIPS // 2
        ),
        "targets": torch.tensor([0, 0, 1, 1] * (CLIPS // 4)).to(chosen),
        "skeletons": (
            torch.rand(CLIPS, LENGTH, NUM_JOINTS, 3) * torch.tensor([*SIZE[::-1], 1.0])
        ).to(chosen),
        "has_skeleton": torch.ones(CLIPS, LENGTH, dtype=torch.bool).to(chosen),
    }
    for _ in range(2):
        start = time.perf_counter()
        losses = model(batch)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        devices.synchronize(chosen)
        seconds = time.perf_counter() - start
    wrong = [name for name, loss in losses.items() if not torch.isfinite(loss)]
    if wrong:
        raise UserError(
            f"{', '.join(wrong)} not finite on {chosen}: the device or its libraries compute wrongly"
        )
    moved = sum(
        not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True)
    )
    if moved < len(before) // 2:
        raise UserError(
            f"only {moved} of {len(before)} weights moved: the optimizer does not reach the model"
        )
    memory = devices.peak_memory(chosen)
    return f"STAR on {chosen}, {1000 * seconds:.0f} ms" + (
        f", {memory / 2**20:.0f} MiB" if memory is not None else ""
    )


def add_up(device: str, num_devices: int) -> str:
    """Every process gives its number, from 1; each must get the sum.

    Raises:
        UserError: not so many devices, or a wrong sum.
    """
    if num_devices < 2:
        return "one process: nothing to add up (--num-devices says how many)"
    with tempfile.TemporaryDirectory() as folder:
        launch(_reduce, num_devices, device=device, args=(device, folder))
        sums = [float((Path(folder) / str(rank)).read_text()) for rank in range(num_devices)]
    expected = num_devices * (num_devices + 1) / 2
    if sums != [expected] * num_devices:
        raise UserError(f"1 + ... + {num_devices} is {expected:g}, but the processes got {sums}")
    return f"{num_devices} processes over {devices.collective_backend(device)}"


def _reduce(device: str, folder: str) -> None:
    number = torch.tensor(
        [comm.get_rank() + 1.0], device=devices.choose_device(device, comm.get_local_rank())
    )
    dist.all_reduce(number)
    (Path(folder) / str(comm.get_rank())).write_text(str(number.item()))
