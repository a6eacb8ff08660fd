"""Checks of a config that need neither data nor a model."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator

from fastreid.modeling.backbones import BACKBONE_REGISTRY
from fastreid.modeling.heads import REID_HEADS_REGISTRY
from fastreid.modeling.meta_arch import META_ARCH_REGISTRY

from fastreid_star.data.build import all_video, is_video_dataset
from fastreid_star.data.transforms import build_transforms
from fastreid_star.engine.checks.run import Problem, Run
from fastreid_star.evaluation.retrieval import check_ranks

ABOVE_ZERO = 5e-324
# Smallest values of keys that nothing else checks: of any run, and of training.
MINIMA = {"TEST.IMS_PER_BATCH": 1, "INPUT.CLIP.LENGTH": 1, "DATASETS.MIN_FRAMES": 0,
          "DATALOADER.NUM_WORKERS": 0}  # fmt: skip
MINIMA_OF_TRAINING = {
    "SOLVER.MAX_EPOCH": 1, "SOLVER.BASE_LR": ABOVE_ZERO, "SOLVER.BACKBONE_LR_FACTOR": 0,
    "SOLVER.GAMMA": ABOVE_ZERO, "SOLVER.DELAY_EPOCHS": 0, "SOLVER.WARMUP_ITERS": 0,
    "SOLVER.WARMUP_EPOCHS": 0, "SOLVER.CHECKPOINT_PERIOD": 0, "SOLVER.CHECKPOINT_KEEP": 1,
    "SOLVER.LOG_PERIOD": 1, "TEST.EVAL_PERIOD": 0, "INPUT.CLIP.TRAIN_LENGTH": 0,
}  # fmt: skip


def names(run: Run) -> Iterator[Problem]:
    """Unknown networks and datasets, and networks and datasets of two kinds."""
    model, data = run.cfg.MODEL, run.cfg.DATASETS
    for key, name, registry in (
        ("MODEL.META_ARCHITECTURE", model.META_ARCHITECTURE, META_ARCH_REGISTRY),
        ("MODEL.HEADS.NAME", model.HEADS.NAME, REID_HEADS_REGISTRY),
        ("MODEL.BACKBONE.NAME", model.BACKBONE.NAME, BACKBONE_REGISTRY),
    ):
        if name not in registry._obj_map:
            known = ", ".join(sorted(registry._obj_map))
            yield Problem(
                f"{key} {name!r} is not registered: load your own package with --import, or choose "
                f"one of {known}"
            )
    for name in run.dataset_names:
        is_video_dataset(name)
    video = all_video(data.TESTS, "TESTS")
    takes_clips = getattr(run.network, "takes_clips", False)
    if run.training and video != all_video(data.NAMES):
        yield Problem(
            f"DATASETS.NAMES {tuple(data.NAMES)} and TESTS {tuple(data.TESTS)} must be of one "
            "kind, video or image"
        )
    elif run.network is not None and video != takes_clips:
        kind, other = ("clips", "images") if video else ("images", "clips")
        yield Problem(
            f"MODEL.META_ARCHITECTURE {model.META_ARCHITECTURE} takes {other}, but the datasets "
            f"are of {kind}"
        )


def numbers(run: Run) -> Iterator[Problem]:
    """Numbers out of their range, and an unknown precision."""
    cfg = run.cfg
    for key, least in (MINIMA | (MINIMA_OF_TRAINING if run.training else {})).items():
        value = functools.reduce(getattr, key.split("."), cfg)
        if not least <= value < math.inf:
            limit = "a number above 0" if least == ABOVE_ZERO else f"{least} or more"
            yield Problem(f"{key} is {value!r}: give {limit}")
    if cfg.SOLVER.AMP.ENABLED and cfg.SOLVER.AMP.DTYPE not in ("float16", "bfloat16"):
        yield Problem(f"SOLVER.AMP.DTYPE is {cfg.SOLVER.AMP.DTYPE!r}: use float16 or bfloat16")
    if not all(value > 0 for value in cfg.MODEL.PIXEL_STD):
        yield Problem(f"MODEL.PIXEL_STD is {list(cfg.MODEL.PIXEL_STD)}: give numbers above 0")


def training_input(run: Run) -> Iterable[Problem]:
    """Augmentations that clips do not have, or a wrong size, which evaluation probes with too."""
    if run.video:
        build_transforms(run.cfg, is_train=True)
    return ()


def test_input(run: Run) -> Iterable[Problem]:
    """The same for testing, and wrong ranks."""
    if run.video:
        build_transforms(run.cfg, is_train=False)
        check_ranks(run.cfg.TEST.RANKS)
    return ()
