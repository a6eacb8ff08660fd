"""What can be said of a config without looking at data: names, numbers, and what does not go together."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from fastreid.config import CfgNode
from fastreid.modeling.backbones import BACKBONE_REGISTRY
from fastreid.modeling.heads import REID_HEADS_REGISTRY
from fastreid.modeling.meta_arch import META_ARCH_REGISTRY

from fastreid_star.data.build import all_video, identities_per_batch, is_video_dataset
from fastreid_star.data.transforms import build_transforms
from fastreid_star.engine.job import Check, Job, Problem
from fastreid_star.engine.solver import SCHEDULES, optimizer_class
from fastreid_star.evaluation.retrieval import check_ranks


class Rule(NamedTuple):
    """What a number must be: in words, and as a test."""

    text: str
    holds: Callable[[float], bool]


POSITIVE = Rule("a number above 0", lambda n: n > 0)
NOT_NEGATIVE = Rule("0 or more", lambda n: n >= 0)
AT_LEAST_ONE = Rule("1 or more", lambda n: n >= 1)
SHARE = Rule("a share, from 0 to 1", lambda n: 0 <= n <= 1)
BELOW_ONE = Rule("0 or more and below 1", lambda n: 0 <= n < 1)

NUMBERS = {
    "TEST.IMS_PER_BATCH": AT_LEAST_ONE,
    "INPUT.CLIP.LENGTH": AT_LEAST_ONE,
    "DATASETS.MIN_FRAMES": NOT_NEGATIVE,
    "DATALOADER.NUM_WORKERS": NOT_NEGATIVE,
    "MODEL.HEADS.GEM_P": POSITIVE,
}
NUMBERS_OF_TRAINING = {
    "SOLVER.BASE_LR": POSITIVE,
    "SOLVER.MAX_EPOCH": AT_LEAST_ONE,
    "SOLVER.BACKBONE_LR_FACTOR": NOT_NEGATIVE,
    "SOLVER.HEADS_LR_FACTOR": NOT_NEGATIVE,
    "SOLVER.BIAS_LR_FACTOR": NOT_NEGATIVE,
    "SOLVER.WEIGHT_DECAY": NOT_NEGATIVE,
    "SOLVER.WEIGHT_DECAY_NORM": NOT_NEGATIVE,
    "SOLVER.WEIGHT_DECAY_BIAS": NOT_NEGATIVE,
    "SOLVER.MOMENTUM": BELOW_ONE,
    "SOLVER.GAMMA": POSITIVE,
    "SOLVER.ETA_MIN_LR": NOT_NEGATIVE,
    "SOLVER.DELAY_EPOCHS": NOT_NEGATIVE,
    "SOLVER.WARMUP_FACTOR": SHARE,
    "SOLVER.WARMUP_ITERS": NOT_NEGATIVE,
    "SOLVER.WARMUP_EPOCHS": NOT_NEGATIVE,
    "SOLVER.FREEZE_ITERS": NOT_NEGATIVE,
    "SOLVER.CHECKPOINT_PERIOD": NOT_NEGATIVE,
    "SOLVER.CHECKPOINT_KEEP": AT_LEAST_ONE,
    "SOLVER.LOG_PERIOD": AT_LEAST_ONE,
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": POSITIVE,
    "TEST.EVAL_PERIOD": NOT_NEGATIVE,
    "SOLVER.AMP.MAX_SKIPPED": AT_LEAST_ONE,
    "INPUT.FLIP.PROB": SHARE,
    "INPUT.REA.PROB": SHARE,
    "MODEL.LOSSES.CE_ONLY_EPOCHS": NOT_NEGATIVE,
    "MODEL.LOSSES.CE.SCALE": NOT_NEGATIVE,
    "MODEL.LOSSES.TRI.SCALE": NOT_NEGATIVE,
    "MODEL.LOSSES.TRI.MARGIN": NOT_NEGATIVE,
}
NUMBERS_OF_STAR: dict[str, Rule] = {}
CHOICES_OF_TRAINING = {
    "SOLVER.SCHED": SCHEDULES,
    "SOLVER.WARMUP_METHOD": ("linear", "constant", "exp"),  # fast-reid's
    "DATASETS.SKELETONS_TRAIN": ("own", "other", "none"),
}
CHOICES_OF_STAR: dict[str, tuple] = {}


def names(job: Job) -> Iterator[Problem]:
    """Nobody has registered a network, head or backbone of that name."""
    for key, registry in (
        ("MODEL.META_ARCHITECTURE", META_ARCH_REGISTRY),
        ("MODEL.HEADS.NAME", REID_HEADS_REGISTRY),
        ("MODEL.BACKBONE.NAME", BACKBONE_REGISTRY),
    ):
        if value_of(job.cfg, key) not in registry._obj_map:
            known = ", ".join(sorted(registry._obj_map))
            yield Problem(
                f"{key} is {value_of(job.cfg, key)!r}, which nobody has registered: there are {known}"
            )


def dataset_names(job: Job) -> Iterator[Problem]:
    """Unknown datasets, and datasets and networks of two kinds."""
    datasets, network = job.cfg.DATASETS, job.network
    for name in job.dataset_names:
        is_video_dataset(name)
    video = all_video(datasets.TESTS, "TESTS")
    if job.training and video != all_video(datasets.NAMES):
        yield Problem(
            f"DATASETS.NAMES {tuple(datasets.NAMES)} and TESTS {tuple(datasets.TESTS)} must be of one kind, video or "
            "image"
        )
    elif network is not None and video != getattr(network, "takes_clips", False):
        kind, other = ("clips", "images") if video else ("images", "clips")
        yield Problem(
            f"MODEL.META_ARCHITECTURE {job.cfg.MODEL.META_ARCHITECTURE} takes {other}, but the datasets are of {kind}"
        )
    if video and job.cfg.TEST.FLIP.ENABLED:
        yield Problem("TEST.FLIP.ENABLED is for image datasets: set it to False")


def numbers(job: Job) -> Iterator[Problem]:
    """Numbers that are none, infinite, or out of their range."""
    rules = (
        NUMBERS
        | (NUMBERS_OF_TRAINING if job.training else {})
        | (NUMBERS_OF_STAR if is_star(job) else {})
    )
    for key, rule in rules.items():
        value = value_of(job.cfg, key)
        if not is_number(value) or not rule.holds(value):
            yield Problem(f"{key} is {value!r}: give {rule.text}")


def choices(job: Job) -> Iterator[Problem]:
    """Words that are none of those that are understood."""
    known = {"DATASETS.SKELETONS_TEST": ("own", "other", "none")}
    known |= CHOICES_OF_TRAINING if job.training else {}
    known |= CHOICES_OF_STAR if is_star(job) else {}
    if job.cfg.SOLVER.AMP.ENABLED:
        known["SOLVER.AMP.DTYPE"] = ("float16", "bfloat16")
    for key, words in known.items():
        if value_of(job.cfg, key) not in words:
            yield Problem(f"{key} is {value_of(job.cfg, key)!r}: choose one of {', '.join(words)}")


def optimizer(job: Job) -> Iterator[Problem]:
    """An optimizer that there is not, or that does not take these numbers."""
    solver = job.cfg.SOLVER
    if job.training:
        optimizer_class(solver.OPT)
        if solver.OPT == "SGD" and solver.NESTEROV and solver.MOMENTUM == 0:
            yield Problem(
                "SOLVER.NESTEROV needs SOLVER.MOMENTUM above 0: set one of them otherwise"
            )


def milestones(job: Job) -> Iterator[Problem]:
    """Milestones out of order or never reached, and a cosine without an epoch to fall in."""
    solver = job.cfg.SOLVER
    if not job.training:
        return
    steps = list(solver.STEPS)
    if any(not isinstance(step, int) or step < 1 for step in steps) or steps != sorted(set(steps)):
        yield Problem(
            f"SOLVER.STEPS is {steps}: give whole numbers of epochs from 1 on, in ascending order"
        )
    elif (
        solver.SCHED == "MultiStepLR"
        and steps
        and is_number(solver.MAX_EPOCH)
        and steps[-1] >= solver.MAX_EPOCH
    ):
        yield Problem(
            f"SOLVER.STEPS {steps} reaches beyond SOLVER.MAX_EPOCH, {solver.MAX_EPOCH}", fatal=False
        )
    before = [number for number in (solver.WARMUP_EPOCHS, solver.DELAY_EPOCHS) if is_number(number)]
    if (
        solver.SCHED == "CosineAnnealingLR"
        and is_number(solver.MAX_EPOCH)
        and max(before) >= solver.MAX_EPOCH
    ):
        yield Problem(
            f"SOLVER.MAX_EPOCH is {solver.MAX_EPOCH}, and the warm-up or the delay takes {max(before)}: no epoch is "
            "left for CosineAnnealingLR; raise MAX_EPOCH or lower WARMUP_EPOCHS and DELAY_EPOCHS"
        )


def ranges(job: Job) -> Iterator[Problem]:
    """Means and deviations that no image can be normalized by, or a range of styles out of order."""
    model = job.cfg.MODEL
    for key, values, rule in (
        ("MEAN", model.PIXEL_MEAN, NOT_NEGATIVE),
        ("STD", model.PIXEL_STD, POSITIVE),
    ):
        if len(values) != 3 or not all(is_number(value) and rule.holds(value) for value in values):
            yield Problem(
                f"MODEL.PIXEL_{key} is {list(values)}: give three numbers, each {rule.text}"
            )


def training_transforms(job: Job) -> Iterable[Problem]:
    """An augmentation that clips do not have, or a size that is none; of testing too, which probes the network."""
    if job.video:
        build_transforms(job.cfg, is_train=True)
    return ()


def test_transforms(job: Job) -> Iterable[Problem]:
    """The same of the clips for testing."""
    if job.video:
        build_transforms(job.cfg, is_train=False)
    return ()


def ranks(job: Job) -> Iterable[Problem]:
    """Ranks that are none."""
    if job.video:
        check_ranks(job.cfg.TEST.RANKS)
    return ()


def batch(job: Job) -> Iterator[Problem]:
    """A batch that is not made of whole identities, or has too few of them for the triplet loss."""
    cfg = job.cfg
    if not job.training:
        return
    if not job.video:
        if job.world_size > cfg.SOLVER.IMS_PER_BATCH:
            yield Problem(
                f"SOLVER.IMS_PER_BATCH is {cfg.SOLVER.IMS_PER_BATCH}: give at least one image to each of "
                f"{job.world_size} processes"
            )
        return
    identities = identities_per_batch(cfg)
    share = identities if cfg.MODEL.LOSSES.TRI.ALL_RANKS else identities // job.world_size
    if "TripletLoss" in cfg.MODEL.LOSSES.NAME and share < 2:
        yield Problem(
            "TripletLoss needs two identities in each process's share of a batch, and there would be one: raise "
            "SOLVER.IMS_PER_BATCH, use fewer devices, or mine in the whole batch (MODEL.LOSSES.TRI.ALL_RANKS True)"
        )


def skeletons(job: Job) -> Iterator[Problem]:
    """A network that wants skeletons and is given none."""
    if getattr(job.network, "wants_skeletons", False) and not job.cfg.DATASETS.SKELETONS:
        text = "DATASETS.SKELETONS is empty: without skeletons every clip takes the baseline's path"
        yield Problem(text, fatal=False)


CHECKS: tuple[Check, ...] = (
    names, dataset_names, numbers, choices, optimizer, milestones, ranges, training_transforms,
    test_transforms, ranks, batch, skeletons,
)  # fmt: skip


def value_of(cfg: CfgNode, key: str) -> Any:
    """The value of a key with dots; None where there is no such key."""
    return functools.reduce(lambda node, name: getattr(node, name, None), key.split("."), cfg)


def is_number(value: Any) -> bool:
    """Whether it is a finite one."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_star(job: Job) -> bool:
    """Whether MODEL.STAR is read."""
    return bool(getattr(job.network, "wants_skeletons", False))
