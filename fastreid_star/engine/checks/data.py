"""Checks of the data of a run on clips: datasets, test lists, batches and skeletons."""

from __future__ import annotations

from collections.abc import Iterator

from fastreid.config import CfgNode
from fastreid.modeling.heads import REID_HEADS_REGISTRY

from fastreid_star.data.build import (
    build_sampler,
    identities_per_batch,
    join_tracklets,
    open_store,
    shown_with,
)
from fastreid_star.data.check import evaluation_problems
from fastreid_star.engine.checks.run import Problem, Run
from fastreid_star.engine.solver import resolve_schedule
from fastreid_star.errors import UserError
from fastreid_star.modeling import FRAME_CORRECTOR_REGISTRY
from fastreid_star.structures import Tracklet


def datasets(run: Run) -> Iterator[Problem]:
    """Datasets that cannot be opened, and test sets in which no query has a match."""
    for outcome in run.opened.values():
        if isinstance(outcome, UserError):
            yield Problem(str(outcome))
    for data in run.datasets(run.cfg.DATASETS.TESTS):
        tracklets = [*data.query, *data.gallery]
        for text in evaluation_problems(tracklets, camera_filter=run.cfg.TEST.CAMERA_FILTER):
            yield Problem(f"{type(data).__name__}: {text}")


def batches(run: Run) -> Iterator[Problem]:
    """Too few identities for a batch, or a batch that is not made of whole identities."""
    cfg = run.cfg
    if not (run.training and run.video):
        return
    identities = identities_per_batch(cfg)
    share = identities if cfg.MODEL.LOSSES.TRI.ALL_RANKS else identities // run.world_size
    if "TripletLoss" in cfg.MODEL.LOSSES.NAME and share < 2:
        yield Problem(
            "TripletLoss needs two identities in each process's share of a batch: raise "
            "SOLVER.IMS_PER_BATCH, use fewer devices, or set MODEL.LOSSES.TRI.ALL_RANKS True"
        )
    data = run.datasets(cfg.DATASETS.NAMES)
    if len(data) < len(dict.fromkeys(map(str, cfg.DATASETS.NAMES))):
        return
    tracklets = join_tracklets(data)
    sampler = build_sampler(cfg, tracklets, seed=0, world_size=run.world_size)
    resolve_schedule(cfg, sampler.batches_per_epoch)
    _require_others("SKELETONS_TRAIN", cfg, tracklets)
    count = len({tracklet.pid for tracklet in tracklets})
    if 0 < cfg.MODEL.HEADS.NUM_CLASSES < count:
        yield Problem(
            f"MODEL.HEADS.NUM_CLASSES is {cfg.MODEL.HEADS.NUM_CLASSES}, but the training set has "
            f"{count} identities: set it to 0, and it is read from the data"
        )


def skeletons(run: Run) -> Iterator[Problem]:
    """Skeleton stores that are missing, or do not know the data."""
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
    for data in run.datasets(run.dataset_names):
        try:
            store = open_store(cfg, data)
        except UserError as error:
            yield Problem(str(error))
        else:
            if store is not None:
                store.close()
    for data in run.datasets(cfg.DATASETS.TESTS):
        _require_others("SKELETONS_TEST", cfg, [*data.query, *data.gallery])


def _require_others(key: str, cfg: CfgNode, tracklets: list[Tracklet]) -> None:
    value = cfg.DATASETS[key]
    if value != "own":
        shown_with(key, value, cfg.DATASETS.SKELETONS or None, tracklets)
