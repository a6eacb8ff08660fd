"""Checks of the data of a run: datasets, test lists, batches and skeletons."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
from fastreid.config import CfgNode
from fastreid.modeling.heads import REID_HEADS_REGISTRY

from fastreid_star.data.build import join_tracklets, open_store, shown_with
from fastreid_star.data.check import evaluation_problems, unmatched
from fastreid_star.data.io import BrokenImage, read_image
from fastreid_star.data.pairs import as_auxiliary, build_pairs
from fastreid_star.data.samplers import build_sampler, identities_per_batch, sampler_class
from fastreid_star.data.skeleton_stats import what_is_wrong
from fastreid_star.data.skeletons import SkeletonStore
from fastreid_star.engine.checks.run import Problem, Run
from fastreid_star.engine.solver import resolve_schedule
from fastreid_star.errors import UserError
from fastreid_star.modeling import FRAME_CORRECTOR_REGISTRY, LOSS_REGISTRY
from fastreid_star.structures import Modality, Tracklet

SAMPLE = 20  # tracklets whose skeletons are looked up, of thousands
# fast-reid's samplers that take DATALOADER.NUM_INSTANCE images of each identity
BY_IDENTITY = ("NaiveIdentitySampler", "BalancedIdentitySampler", "SetReWeightSampler")


def datasets(run: Run) -> Iterator[Problem]:
    """Datasets that cannot be opened."""
    for outcome in run.opened.values():
        if isinstance(outcome, UserError):
            yield Problem(str(outcome))


def matches(run: Run) -> Iterator[Problem]:
    """A test set in which no query has a match in the gallery."""
    for data in run.datasets(run.cfg.DATASETS.TESTS):
        if run.video:
            tracklets = [*data.query, *data.gallery]
            found = evaluation_problems(tracklets, camera_filter=run.cfg.TEST.CAMERA_FILTER)
        else:
            query, gallery = ([item[1:3] for item in part] for part in (data.query, data.gallery))
            cure = "the test set needs a second camera"
            found = unmatched("queries", query, gallery, other_camera=True, cure=cure)
        for text in found:
            yield Problem(f"{type(data).__name__}: {text}")


def batches(run: Run) -> Iterator[Problem]:
    """Too few identities for a batch, or a batch that is not made of whole identities."""
    if run.training and run.kind == "video":
        yield from _clip_batches(run)
    elif run.training and run.kind == "image":
        yield from _image_batches(run)


def _clip_batches(run: Run) -> Iterator[Problem]:
    cfg = run.cfg
    identities = identities_per_batch(cfg)
    share = identities if cfg.MODEL.LOSSES.TRI.ALL_RANKS else identities // run.world_size
    losses = _losses_with("compares_identities", cfg)
    if losses and share < 2:
        yield Problem(
            f"{losses[0]} needs two identities in each process's share of a batch: raise "
            "SOLVER.IMS_PER_BATCH, use fewer devices, or set MODEL.LOSSES.TRI.ALL_RANKS True"
        )
    losses = _losses_with("pairs_modalities", cfg)
    if losses and sampler_class(cfg).groups != 2:
        yield Problem(
            f"{losses[0]} pairs the n-th visible clip of a batch with the n-th infrared one, but "
            f"DATALOADER.SAMPLER_TRAIN {cfg.DATALOADER.SAMPLER_TRAIN} does not draw as many of "
            "both: set it to TrainingSampler"
        )
    data = run.datasets(cfg.DATASETS.NAMES)
    if len(data) < len(dict.fromkeys(map(str, cfg.DATASETS.NAMES))):
        return
    if cfg.DATASETS.AUXILIARY and not getattr(run.network, "takes_auxiliary", False):
        yield Problem(
            f"DATASETS.AUXILIARY is set, but {cfg.MODEL.META_ARCHITECTURE} does not train on an "
            "auxiliary set: use a method that does, such as AuxNet, or set it to ()"
        )
    tracklets = join_tracklets(data)
    sampler = build_sampler(cfg, tracklets, seed=0, world_size=run.world_size)
    extra = join_tracklets(run.datasets(cfg.DATASETS.AUXILIARY))
    shares = {"num_identities": identities, "rank": 0, "world_size": run.world_size}
    build_pairs(cfg, sampler, tracklets, as_auxiliary(extra), **shares)
    resolve_schedule(cfg, sampler.batches_per_epoch)
    _require_others("SKELETONS_TRAIN", cfg, tracklets)
    yield from _classes(cfg, len({tracklet.pid for tracklet in tracklets}))


def _losses_with(mark: str, cfg: CfgNode) -> list[str]:
    """The losses of the run whose class attribute `mark` is True."""
    known = LOSS_REGISTRY._obj_map
    return [name for name in cfg.MODEL.LOSSES.NAME if getattr(known.get(name), mark, False)]


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
    data = run.datasets(cfg.DATASETS.NAMES)
    if len(data) < len(dict.fromkeys(map(str, cfg.DATASETS.NAMES))):
        return
    count = len({item[1] for dataset in data for item in dataset.train})
    wanted = cfg.SOLVER.IMS_PER_BATCH // max(1, instances)
    if by_identity and count < wanted:
        yield Problem(
            f"a batch needs {wanted} identities (SOLVER.IMS_PER_BATCH / NUM_INSTANCE), but the "
            f"training set has {count}: {cfg.DATALOADER.SAMPLER_TRAIN} would hang"
        )
    yield from _classes(cfg, count)


def _classes(cfg: CfgNode, count: int) -> Iterator[Problem]:
    if count < 2:
        yield Problem(f"the training set has {count} identity: training needs two or more")
    elif 0 < cfg.MODEL.HEADS.NUM_CLASSES < count:
        yield Problem(
            f"MODEL.HEADS.NUM_CLASSES is {cfg.MODEL.HEADS.NUM_CLASSES}, but the training set has "
            f"{count} identities: set it to 0, and it is read from the data"
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
            tracklets = [*data.train, *data.query, *data.gallery]
            yield from _misplaced(store, tracklets[:: max(1, len(tracklets) // SAMPLE)])
            store.close()
    for data in run.datasets(cfg.DATASETS.TESTS) if run.video else ():
        _require_others("SKELETONS_TEST", cfg, [*data.query, *data.gallery])


def sixteen_bits(run: Run) -> Iterator[Problem]:
    """Frames of 16 bits without a fixed range of counts."""
    for data in run.datasets(run.dataset_names) if run.video else ():
        tracklets = [*data.train, *data.query, *data.gallery]
        tracklets = [t for t in tracklets if t.modality == Modality.INFRARED]
        sample = tracklets[:: max(1, len(tracklets) // SAMPLE)]
        if not run.cfg.INPUT.RANGE_16BIT and any(map(_has_counts, sample)):
            yield Problem(
                f"{type(data).__name__} has frames of 16 bits, which are scaled by the percentiles "
                "of each clip: `fastreid-star check` shows their range, and INPUT.RANGE_16BIT "
                "gives all clips the same scale",
                fatal=False,
            )


def _has_counts(tracklet: Tracklet) -> bool:
    try:
        return read_image(tracklet.path(0)).ndim == 2
    except BrokenImage:  # training replaces it
        return False


def _misplaced(store: SkeletonStore, sample: list[Tracklet]) -> Iterator[Problem]:
    """Skeletons of which most cannot belong to their frames."""
    found = []
    for tracklet in sample:
        joints, present = store.read([tracklet.key(0)])
        if present[0]:
            with contextlib.suppress(BrokenImage):  # training replaces it
                size = np.array(read_image(tracklet.path(0)).shape[:2])
                found.append(what_is_wrong(joints[0, :, :2].astype(np.float64), size))
    wrong = [text for text in found if text]
    if len(wrong) > len(found) / 2:
        yield Problem(
            f"{len(wrong)} of {len(found)} skeletons looked up in {store.path} do not fit their "
            f"frames; the first: {wrong[0]} See `fastreid-star check`",
            fatal=False,
        )


def _require_others(key: str, cfg: CfgNode, tracklets: list[Tracklet]) -> None:
    value = cfg.DATASETS[key]
    if value != "own":
        shown_with(key, value, cfg.DATASETS.SKELETONS or None, tracklets)
