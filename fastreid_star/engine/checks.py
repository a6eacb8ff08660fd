"""All that is wrong with a run, found before its first step and reported at once.

What only building can tell, such as the name of a loss, is reported where it is built.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from fastreid.config import CfgNode
from fastreid.modeling.backbones import BACKBONE_REGISTRY
from fastreid.modeling.heads import REID_HEADS_REGISTRY
from fastreid.modeling.meta_arch import META_ARCH_REGISTRY
from fastreid.utils import comm

from fastreid_star.data.build import (
    all_video,
    build_sampler,
    identities_per_batch,
    is_video_dataset,
    join_tracklets,
    open_store,
    shown_with,
)
from fastreid_star.data.images import BrokenImage, read_frame
from fastreid_star.data.skeleton_stats import what_is_wrong
from fastreid_star.data.skeletons import SkeletonStore
from fastreid_star.data.transforms import build_transforms
from fastreid_star.engine import checks_machine
from fastreid_star.engine.problems import Check, Problem, Run
from fastreid_star.engine.solver import resolve_schedule
from fastreid_star.errors import UserError
from fastreid_star.evaluation.retrieval import check_ranks
from fastreid_star.structures import Modality, Tracklet

logger = logging.getLogger(__name__)

SAMPLE = 20  # tracklets looked up, of thousands: enough to find a missing folder
# Smallest values of keys that nothing else checks; those of training, and those of both.
MINIMA_OF_TRAINING = {
    "SOLVER.MAX_EPOCH": 1,
    "SOLVER.BASE_LR": 1e-300,
    "SOLVER.BACKBONE_LR_FACTOR": 0,
    "SOLVER.GAMMA": 1e-300,
    "SOLVER.DELAY_EPOCHS": 0,
    "SOLVER.WARMUP_ITERS": 0,
    "SOLVER.WARMUP_EPOCHS": 0,
    "SOLVER.CHECKPOINT_PERIOD": 0,
    "SOLVER.CHECKPOINT_KEEP": 1,
    "SOLVER.LOG_PERIOD": 1,
    "SOLVER.AMP.MAX_SKIPPED": 1,
    "TEST.EVAL_PERIOD": 0,
}
MINIMA = {
    "TEST.IMS_PER_BATCH": 1,
    "INPUT.CLIP.LENGTH": 1,
    "DATASETS.MIN_FRAMES": 0,
    "DATALOADER.NUM_WORKERS": 0,
}
# fast-reid's samplers that take DATALOADER.NUM_INSTANCE images of each identity
BY_IDENTITY = ("NaiveIdentitySampler", "BalancedIdentitySampler", "SetReWeightSampler")


def names(run: Run) -> Iterator[Problem]:
    """Unknown networks and datasets, and networks and datasets of two kinds."""
    cfg = run.cfg
    for key, name, registry in (
        ("MODEL.META_ARCHITECTURE", cfg.MODEL.META_ARCHITECTURE, META_ARCH_REGISTRY),
        ("MODEL.HEADS.NAME", cfg.MODEL.HEADS.NAME, REID_HEADS_REGISTRY),
        ("MODEL.BACKBONE.NAME", cfg.MODEL.BACKBONE.NAME, BACKBONE_REGISTRY),
    ):
        if name not in registry._obj_map:
            known = ", ".join(sorted(registry._obj_map))
            yield Problem(f"{key} {name!r} is not registered: choose one of {known}")
    for name in run.dataset_names:
        is_video_dataset(name)
    video = all_video(cfg.DATASETS.TESTS, "TESTS")
    if run.training and video != all_video(cfg.DATASETS.NAMES):
        yield Problem(
            f"DATASETS.NAMES {tuple(cfg.DATASETS.NAMES)} and TESTS {tuple(cfg.DATASETS.TESTS)} "
            "must be of one kind, video or image"
        )
    elif run.network is not None and video != getattr(run.network, "takes_clips", False):
        kind, other = ("clips", "images") if video else ("images", "clips")
        yield Problem(
            f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE} takes {other}, but the "
            f"datasets are of {kind}"
        )


def numbers(run: Run) -> Iterator[Problem]:
    """Numbers out of their range, and an unknown precision."""
    cfg = run.cfg
    for key, least in (MINIMA | (MINIMA_OF_TRAINING if run.training else {})).items():
        value: Any = cfg
        for part in key.split("."):
            value = value[part]
        if isinstance(value, bool) or not least <= value < math.inf:
            limit = "a number above 0" if 0 < least < 1 else f"{least} or more"
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


def datasets(run: Run) -> Iterator[Problem]:
    """Datasets that cannot be opened, and tracklets whose files are missing."""
    for outcome in run.opened.values():
        if isinstance(outcome, UserError):
            yield Problem(str(outcome))
    for data in run.videos(run.dataset_names):
        for split, tracklets in _splits(run, data):
            sample = spread(tracklets, SAMPLE)
            gone = [
                t
                for t in sample
                if not any(os.path.isfile(t.path(index)) for index in (0, len(t) // 2, -1))
            ]
            if gone:
                yield Problem(
                    f"{len(gone)} of {len(sample)} {split} tracklets looked up in {data.folder} "
                    f"have no images, such as {gone[0].path(0)}: copy them; "
                    "`fastreid-star check` lists all"
                )


def matches(run: Run) -> Iterator[Problem]:
    """A test set in which no query has a match in the gallery."""

    def both(data, other_role: str) -> list[Tracklet]:
        whole = [*data.query, *data.gallery]
        return [t for t in whole if getattr(t, "role", None) != other_role]

    def pair(tracklet: Tracklet) -> tuple[int, int]:
        return tracklet.pid, tracklet.camid

    names = [name for name in run.cfg.DATASETS.TESTS if isinstance(name, str)]
    for name, data in ((name, data) for name in names for data in run.datasets([name])):
        if run.video:
            ways: dict[str, tuple[list, list]] = {}
            for label, ours in (("infrared", Modality.INFRARED), ("visible", Modality.VISIBLE)):
                ways[f"{label} query"] = (
                    [pair(t) for t in both(data, "gallery") if t.modality == ours],
                    [pair(t) for t in both(data, "query") if t.modality != ours],
                )
            same_camera = not run.cfg.TEST.CAMERA_FILTER
        else:
            ways = {"query": tuple([item[1:3] for item in part] for part in (data.query, data.gallery))}  # type: ignore[misc]
            same_camera = False
        for label, (queries, gallery) in ways.items():
            cameras = defaultdict(set)
            for pid, camid in gallery:
                cameras[pid].add(camid)
            if not any(cameras[p] if same_camera else cameras[p] - {c} for p, c in queries):
                cure = ", or set TEST.CAMERA_FILTER False" if run.video and not same_camera else ""
                yield Problem(
                    f"{name}: no {label} has a gallery entry of the same identity from another "
                    f"camera ({len(queries)} queries, {len(gallery)} entries, "
                    f"{len({c for _, c in gallery})} cameras): check the lists{cure}"
                )
                break


def batches(run: Run) -> Iterator[Problem]:
    """Too few identities for a batch, or a batch that is not made of whole identities."""
    cfg, names = run.cfg, run.cfg.DATASETS.NAMES
    if not run.training:
        return
    data = run.datasets(names)
    complete = bool(data) and len(data) == len(names)
    if run.video:
        identities = identities_per_batch(cfg)
        share = identities if cfg.MODEL.LOSSES.TRI.ALL_RANKS else identities // run.world_size
        if "TripletLoss" in cfg.MODEL.LOSSES.NAME and share < 2:
            yield Problem(
                "TripletLoss needs two identities in each process's share of a batch: raise "
                "SOLVER.IMS_PER_BATCH, use fewer devices, or set MODEL.LOSSES.TRI.ALL_RANKS True"
            )
        if not complete:
            return
        tracklets = join_tracklets(data)
        pids = {tracklet.pid for tracklet in tracklets}
        resolve_schedule(
            cfg, build_sampler(cfg, tracklets, seed=0, world_size=run.world_size).batches_per_epoch
        )
        _require_others("SKELETONS_TRAIN", cfg, tracklets)
    else:
        size = cfg.SOLVER.IMS_PER_BATCH // run.world_size
        if size < 1:
            yield Problem(
                f"SOLVER.IMS_PER_BATCH {cfg.SOLVER.IMS_PER_BATCH} is less than one image for each "
                f"of {run.world_size} processes"
            )
        by_identity = cfg.DATALOADER.SAMPLER_TRAIN in BY_IDENTITY
        instances = cfg.DATALOADER.NUM_INSTANCE
        if by_identity and (instances < 1 or size % instances):
            yield Problem(
                f"SOLVER.IMS_PER_BATCH {cfg.SOLVER.IMS_PER_BATCH} over {run.world_size} processes "
                f"is not a multiple of DATALOADER.NUM_INSTANCE {instances}: "
                f"{cfg.DATALOADER.SAMPLER_TRAIN} would never fill a batch"
            )
            return
        if not complete:
            return
        pids = {item[1] for dataset in data for item in dataset.train}
        wanted = run.world_size * size // instances if by_identity else 0
        if len(pids) < wanted:
            yield Problem(
                f"a batch needs {wanted} identities (SOLVER.IMS_PER_BATCH / NUM_INSTANCE), but the "
                f"training set has {len(pids)}: {cfg.DATALOADER.SAMPLER_TRAIN} would never fill it"
            )
    if len(pids) < 2:
        yield Problem(f"the training set has {len(pids)} identity: training needs two or more")
    elif 0 < cfg.MODEL.HEADS.NUM_CLASSES < len(pids):
        yield Problem(
            f"MODEL.HEADS.NUM_CLASSES is {cfg.MODEL.HEADS.NUM_CLASSES}, but the training set has "
            f"{len(pids)} identities: set it to 0, and it is read from the data"
        )


def skeletons(run: Run) -> Iterator[Problem]:
    """Skeleton stores that are missing, that do not know the data or do not fit the frames."""
    cfg = run.cfg
    if getattr(run.network, "wants_skeletons", False) and not cfg.DATASETS.SKELETONS:
        yield Problem(
            "DATASETS.SKELETONS is empty: without skeletons every clip takes the baseline's path",
            fatal=False,
        )
    for data in run.videos(run.dataset_names):
        try:
            store = open_store(cfg, data)
        except UserError as error:
            yield Problem(str(error))
            continue
        if store is not None:
            splits = _splits(run, data)
            yield from misplaced(store, [t for _, whole in splits for t in spread(whole, SAMPLE)])
            store.close()
    for data in run.videos(cfg.DATASETS.TESTS):
        _require_others("SKELETONS_TEST", cfg, [*data.query, *data.gallery])


def misplaced(store: SkeletonStore, sample: list[Tracklet]) -> Iterator[Problem]:
    """Skeletons of which most cannot belong to their frames."""
    found = []
    for tracklet in sample:
        joints, present = store.read([tracklet.key(0)])
        size = None
        with contextlib.suppress(BrokenImage, OSError):  # reported by others
            size = read_frame(tracklet.path(0)).shape[:2] if present[0] else None
        if size is not None:
            found.append(what_is_wrong(joints[0, :, :2].astype(np.float64), np.array(size)))
    wrong = [text for text in found if text]
    if len(wrong) > len(found) / 2:
        yield Problem(
            f"{len(wrong)} of {len(found)} skeletons looked up in {store.path} do not fit their "
            f"frames; the first: {wrong[0]} See `fastreid-star check`",
            fatal=False,
        )


CHECKS: tuple[Check, ...] = (
    names, numbers, training_input, test_input, datasets, matches, batches, skeletons,
    *checks_machine.CHECKS,
)  # fmt: skip


def check(
    cfg: CfgNode,
    *,
    training: bool = True,
    world_size: int | None = None,
    local_size: int | None = None,
) -> list[Problem]:
    """Everything that the checks report about a run, each problem once, equal on every rank.

    Args:
        cfg: a complete config.
        training: False: only an evaluation of MODEL.WEIGHTS.
        world_size, local_size: number of processes, in all and on this machine; None: those that
            run now.
    """
    run = Run(
        cfg, training, world_size or comm.get_world_size(), local_size or comm.get_local_size()
    )
    found: list[Problem] = []
    for one in CHECKS:
        try:
            found.extend(one(run))
        except UserError as error:
            found.append(Problem(str(error)))
    # all ranks must know what only one machine lacks: they would wait for it
    return list(dict.fromkeys(problem for of_rank in comm.all_gather(found) for problem in of_rank))


def require(cfg: CfgNode, *, training: bool = True) -> None:
    """Log the warnings of :func:`check`, and refuse a run with fatal problems.

    Raises:
        UserError: all fatal problems, on every rank.
    """
    found = check(cfg, training=training)
    for problem in found:
        if not problem.fatal:
            logger.warning(problem.text)
    if any(problem.fatal for problem in found):
        raise UserError.of(problem.text for problem in found if problem.fatal)


@contextlib.contextmanager
def building(section: str) -> Iterator[None]:
    """A context around fast-reid's builders, whose errors become one line.

    Args:
        section: the config keys that the builder reads, for the message.

    Raises:
        UserError: instead of an error that a wrong value causes.
    """
    try:
        yield
    except UserError:
        raise
    except (KeyError, AssertionError, AttributeError, IndexError, TypeError, ValueError, OSError,
            RuntimeError, NotImplementedError) as error:  # fmt: skip
        if isinstance(error, RuntimeError) and "out of memory" in str(error):
            raise
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"{section}: a value is not supported ({type(error).__name__}: {reason})"
        ) from error


def spread(tracklets: list[Tracklet], count: int) -> list[Tracklet]:
    """At most `count` of them, from the first to the last."""
    if len(tracklets) <= count:
        return tracklets
    return [tracklets[round(position)] for position in np.linspace(0, len(tracklets) - 1, count)]


def _splits(run: Run, data) -> list[tuple[str, list[Tracklet]]]:
    """The parts of a dataset that the run reads."""
    read = []
    if run.training and data in run.datasets(run.cfg.DATASETS.NAMES):
        read.append(("training", list(data.train)))
    if data in run.datasets(run.cfg.DATASETS.TESTS):
        read.append(("test", [*data.query, *data.gallery]))
    return read


def _require_others(key: str, cfg: CfgNode, tracklets: list[Tracklet]) -> None:
    value = cfg.DATASETS[key]
    if value != "own":
        shown_with(key, value, cfg.DATASETS.SKELETONS or None, tracklets)
