"""What is refused before a model is built: names nobody knows, networks and datasets that do not go together."""

from __future__ import annotations

import logging

from fastreid.config import CfgNode
from fastreid.modeling.backbones import BACKBONE_REGISTRY
from fastreid.modeling.heads import REID_HEADS_REGISTRY
from fastreid.modeling.meta_arch import META_ARCH_REGISTRY

from fastreid_star.data.build import build_dataset, is_video_dataset, open_store
from fastreid_star.engine.solver import SCHEDULES
from fastreid_star.errors import UserError
from fastreid_star.evaluation.retrieval import check_ranks

logger = logging.getLogger(__name__)


def check(cfg: CfgNode) -> None:
    """Refuse now what would end in a traceback, or what the first evaluation, hours later, would stumble over."""
    for key, name, registry in (
        ("META_ARCHITECTURE", cfg.MODEL.META_ARCHITECTURE, META_ARCH_REGISTRY),
        ("HEADS.NAME", cfg.MODEL.HEADS.NAME, REID_HEADS_REGISTRY),
        ("BACKBONE.NAME", cfg.MODEL.BACKBONE.NAME, BACKBONE_REGISTRY),
    ):
        if name not in registry._obj_map:
            known = ", ".join(sorted(registry._obj_map))
            raise UserError(f"MODEL.{key} is {name!r}, which nobody has registered: there are {known}")
    if cfg.SOLVER.SCHED not in SCHEDULES:
        raise UserError(f"SOLVER.SCHED is {cfg.SOLVER.SCHED!r}: choose one of {', '.join(SCHEDULES)}")
    video = all_video(cfg.DATASETS.TESTS, "TESTS")
    if video != all_video(cfg.DATASETS.NAMES):
        raise UserError(
            f"DATASETS.NAMES {tuple(cfg.DATASETS.NAMES)} and TESTS {tuple(cfg.DATASETS.TESTS)} must be of one "
            "kind, video or image"
        )
    network = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)
    if video != getattr(network, "takes_clips", False):
        kind, other = ("clips", "images") if video else ("images", "clips")
        raise UserError(
            f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE} takes {other}, but the datasets are of {kind}"
        )
    if getattr(network, "wants_skeletons", False) and not cfg.DATASETS.SKELETONS:
        logger.warning("DATASETS.SKELETONS is empty: without skeletons every clip takes the baseline's path")
    if video and cfg.TEST.FLIP.ENABLED:
        raise UserError("TEST.FLIP.ENABLED is for image datasets: set it to False")
    for name in cfg.DATASETS.TESTS if video else ():
        check_ranks(cfg.TEST.RANKS)
        open_store(cfg, build_dataset(cfg, name))


def all_video(names, key: str = "NAMES") -> bool:
    """Whether these datasets hold tracklets; False: images.

    Raises:
        UserError: there are none, or of both kinds.
    """
    kinds = {is_video_dataset(name) for name in names}
    if len(kinds) != 1:
        raise UserError(f"DATASETS.{key} must name datasets of one kind, video or image, but is {tuple(names)}")
    return kinds == {True}
