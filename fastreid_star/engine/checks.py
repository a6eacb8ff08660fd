"""What is wrong with a run, found before its first step and reported at once.

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
from fastreid_star.data.io import BrokenImage, read_frame
from fastreid_star.data.skeleton_stats import what_is_wrong
from fastreid_star.data.skeletons import SkeletonStore
from fastreid_star.data.transforms import build_transforms
from fastreid_star.engine import checks_machine, checks_meaning
from fastreid_star.engine.problems import Check, Problem, Run
from fastreid_star.engine.solver import resolve_schedule
from fastreid_star.errors import UserError
from fastreid_star.evaluation.retrieval import check_ranks
from fastreid_star.modeling import FRAME_CORRECTOR_REGISTRY
from fastreid_star.structures import Modality, Tracklet

logger = logging.getLogger(__name__)

SAMPLE = 20  # tracklets looked up, of thousands: enough to find a missing folder
ABOVE_ZERO = 5e-324
# Smallest values of keys that nothing else checks: of any run, and of training.
MINIMA = {"TEST.IMS_PER_BATCH": 1, "INPUT.CLIP.LENGTH": 1, "DATASETS.MIN_FRAMES": 0,
          "DATALOADER.NUM_WORKERS": 0}  # fmt: skip
MINIMA_OF_TRAINING = {
    "SOLVER.MAX_EPOCH": 1, "SOLVER.BASE_LR": ABOVE_ZERO, "SOLVER.BACKBONE_LR_FACTOR": 0,
    "SOLVER.GAMMA": ABOVE_ZERO, "SOLVER.DELAY_EPOCHS": 0, "SOLVER.WARMUP_ITERS": 0,
    "SOLVER.WARMUP_EPOCHS": 0, "SOLVER.CHECKPOINT_PERIOD": 0, "SOLVER.CHECKPOINT_KEEP": 1,
    "SOLVER.LOG_PERIOD": 1, "SOLVER.AMP.MAX_SKIPPED": 1, "TEST.EVAL_PERIOD": 0,
}  # fmt: skip
# fast-reid's samplers that take DATALOADER.NUM_INSTANCE images of each identity
BY_IDENTITY = ("NaiveIdentitySampler", "BalancedIdentitySampler", "SetReWeightSampler")


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
            yield Problem(f"{key} {name!r} is not registered: choose one of {known}")
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
        value: Any = cfg
        for part in key.split("."):
            value = value[part]
        if isinstance(value, bool) or not least <= value < math.inf:
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


def datasets(run: Run) -> Iterator[Problem]:
    """Datasets that cannot be opened, and tracklets whose files are missing."""
    for outcome in run.opened.values():
        if isinstance(outcome, UserError):
            yield Problem(str(outcome))
    for data, split, tracklets in _splits(run):
        sample = spread(tracklets, SAMPLE)
        places = [[t.path(index) for index in (0, len(t) // 2, -1)] for t in sample]
        gone = [paths[0] for paths in places if not any(map(os.path.isfile, paths))]
        if gone:
            yield Problem(
                f"{len(gone)} of {len(sample)} {split} tracklets looked up in {data.folder} have "
                f"no images, such as {gone[0]}: copy them; `fastreid-star check` lists all"
            )


def matches(run: Run) -> Iterator[Problem]:
    """A test set in which no query has a match in the gallery."""
    for data in run.datasets(run.cfg.DATASETS.TESTS):
        name = type(data).__name__
        if run.video:
            both = [*data.query, *data.gallery]
            queries = [t for t in both if getattr(t, "role", None) != "gallery"]
            gallery = [t for t in both if getattr(t, "role", None) != "query"]
            for way in Modality:
                yield from _unmatched(
                    f"{name}, {way.name.lower()} queries",
                    [(t.pid, t.camid) for t in queries if t.modality == way],
                    [(t.pid, t.camid) for t in gallery if t.modality != way],
                    other_camera=run.cfg.TEST.CAMERA_FILTER,
                )
        else:
            pairs = [[item[1:3] for item in part] for part in (data.query, data.gallery)]
            yield from _unmatched(name, *pairs, other_camera=True)


def _unmatched(what: str, queries: list, gallery: list, *, other_camera: bool) -> Iterator[Problem]:
    cameras = defaultdict(set)
    for pid, camid in gallery:
        cameras[pid].add(camid)
    if not any(cameras[p] - ({c} if other_camera else set()) for p, c in queries):
        yield Problem(
            f"{what}: none has a gallery entry of the same identity"
            f"{' from another camera' if other_camera else ''} ({len(queries)} queries, "
            f"{len(gallery)} entries, {len({c for _, c in gallery})} cameras): check the lists"
            f"{' or TEST.CAMERA_FILTER' if other_camera else ''}"
        )


def batches(run: Run) -> Iterator[Problem]:
    """Too few identities for a batch, or a batch that is not made of whole identities."""
    cfg = run.cfg
    if not run.training or run.kind is None:
        return
    data = run.datasets(cfg.DATASETS.NAMES)
    yield from _clip_batches(run) if run.video else _image_batches(run)
    if not data or len(data) < len(set(map(str, cfg.DATASETS.NAMES))):
        return
    if run.video:
        tracklets = join_tracklets(data)
        sampler = build_sampler(cfg, tracklets, seed=0, world_size=run.world_size)
        resolve_schedule(cfg, sampler.batches_per_epoch)
        _require_others("SKELETONS_TRAIN", cfg, tracklets)
        pids = {tracklet.pid for tracklet in tracklets}
    else:
        pids = {item[1] for dataset in data for item in dataset.train}
        if cfg.DATALOADER.SAMPLER_TRAIN in BY_IDENTITY:
            wanted = cfg.SOLVER.IMS_PER_BATCH // max(1, cfg.DATALOADER.NUM_INSTANCE)
            if len(pids) < wanted:
                yield Problem(
                    f"a batch needs {wanted} identities (SOLVER.IMS_PER_BATCH / NUM_INSTANCE), but "
                    f"the training set has {len(pids)}: {cfg.DATALOADER.SAMPLER_TRAIN} would hang"
                )
    if len(pids) < 2:
        yield Problem(f"the training set has {len(pids)} identity: training needs two or more")
    elif 0 < cfg.MODEL.HEADS.NUM_CLASSES < len(pids):
        yield Problem(
            f"MODEL.HEADS.NUM_CLASSES is {cfg.MODEL.HEADS.NUM_CLASSES}, but the training set has "
            f"{len(pids)} identities: set it to 0, and it is read from the data"
        )


def _clip_batches(run: Run) -> Iterator[Problem]:
    identities = identities_per_batch(run.cfg)
    losses = run.cfg.MODEL.LOSSES
    share = identities if losses.TRI.ALL_RANKS else identities // run.world_size
    if "TripletLoss" in losses.NAME and share < 2:
        yield Problem(
            "TripletLoss needs two identities in each process's share of a batch: raise "
            "SOLVER.IMS_PER_BATCH, use fewer devices, or set MODEL.LOSSES.TRI.ALL_RANKS True"
        )


def _image_batches(run: Run) -> Iterator[Problem]:
    cfg, instances = run.cfg, run.cfg.DATALOADER.NUM_INSTANCE
    size = cfg.SOLVER.IMS_PER_BATCH // run.world_size
    by_identity = cfg.DATALOADER.SAMPLER_TRAIN in BY_IDENTITY
    if size < 1 or (by_identity and (instances < 1 or size % instances)):
        multiple = f" and a multiple of DATALOADER.NUM_INSTANCE {instances}" if by_identity else ""
        yield Problem(
            f"SOLVER.IMS_PER_BATCH is {cfg.SOLVER.IMS_PER_BATCH}, {size} images for each of "
            f"{run.world_size} processes: it must be at least 1{multiple}, or the sampler hangs"
        )


def skeletons(run: Run) -> Iterator[Problem]:
    """Skeleton stores that are missing, that do not know the data or do not fit the frames."""
    cfg = run.cfg
    parts = (
        run.network,
        REID_HEADS_REGISTRY._obj_map.get(cfg.MODEL.HEADS.NAME),
        FRAME_CORRECTOR_REGISTRY._obj_map.get(cfg.MODEL.FRAME_CORRECTOR.NAME),
    )
    reads = any(getattr(part, "reads_skeletons", False) is True for part in parts)
    if run.video and reads and not cfg.DATASETS.SKELETONS:
        yield Problem(
            "DATASETS.SKELETONS is empty: without skeletons every clip takes the baseline's path",
            fatal=False,
        )
    for data in run.datasets(run.dataset_names) if run.video else ():
        try:
            store = open_store(cfg, data)
        except UserError as error:
            yield Problem(str(error))
            continue
        if store is not None:
            samples = [spread(t, SAMPLE) for of, _, t in _splits(run) if of is data]
            yield from misplaced(store, [t for sample in samples for t in sample])
            store.close()
    for data in run.datasets(cfg.DATASETS.TESTS) if run.video else ():
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
        text = f"{len(wrong)} of {len(found)} skeletons looked up in {store.path} do not fit their "
        yield Problem(f"{text}frames; the first: {wrong[0]} See `fastreid-star check`", fatal=False)


CHECKS: tuple[Check, ...] = (
    names, numbers, training_input, test_input, datasets, matches, batches, skeletons,
    *checks_meaning.CHECKS, *checks_machine.CHECKS,
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
    sizes = world_size or comm.get_world_size(), local_size or comm.get_local_size()
    run = Run(cfg, training, *sizes)
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


def spread(tracklets: list[Tracklet], count: int) -> list[Tracklet]:
    """At most `count` of them, from the first to the last."""
    if len(tracklets) <= count:
        return tracklets
    return [tracklets[round(position)] for position in np.linspace(0, len(tracklets) - 1, count)]


def _splits(run: Run) -> list[tuple[Any, str, list[Tracklet]]]:
    """The parts of the video datasets that the run reads: (dataset, name, tracklets)."""
    if not run.video:
        return []
    names, tests = run.cfg.DATASETS.NAMES, run.cfg.DATASETS.TESTS
    train = run.datasets(names) if run.training else []
    test = run.datasets(tests)
    return [(data, "training", list(data.train)) for data in train] + [
        (data, "test", [*data.query, *data.gallery]) for data in test
    ]


def _require_others(key: str, cfg: CfgNode, tracklets: list[Tracklet]) -> None:
    value = cfg.DATASETS[key]
    if value != "own":
        shown_with(key, value, cfg.DATASETS.SKELETONS or None, tracklets)
