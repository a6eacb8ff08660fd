"""The top of the report: what was trained and tested, and its numbers, with the paper's beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fastreid.config import CfgNode

from fastreid_star.engine.ablation import PAPER
from fastreid_star.report.gather import Run

DIRECTIONS = ("I2V", "V2I")
SEQUENCE_HEAD = "GATGeMHead"
PAPER_LENGTH, PAPER_EXPONENTS = 12, [0.7, 1.0, 3.0, 5.0, 7.0]  # of Table 3


@dataclass(frozen=True)
class ResultRow:
    """A line of the table of results.

    Args:
        name: of the run, or the paper.
        direction: I2V, V2I or mean.
        values: per cent, one a column; None: not known.
        ours: measured here, not printed in the paper.
    """

    name: str
    direction: str
    values: list[float | None]
    ours: bool = True


def columns(metrics: Mapping[str, float]) -> list[str]:
    """``Rank-1`` ... ``mAP``, ``mINP``."""
    return [key.partition("/")[2] for key in metrics if key.startswith("I2V/")]


def result_rows(name: str, metrics: Mapping[str, float]) -> list[ResultRow]:
    """Both directions and their mean."""
    rows = [
        ResultRow(name, way, [metrics[f"{way}/{c}"] for c in columns(metrics)])
        for way in DIRECTIONS
    ]
    return [*rows, ResultRow(name, "mean", _means(*rows))]


def paper_rows(cfg: CfgNode, names: Sequence[str]) -> list[ResultRow]:
    """What the paper prints for this network, where it prints it: Rank-1 and mAP on HITSZ-VCM.

    Args:
        cfg: of the run.
        names: of the columns.
    """
    key = paper_key(cfg)
    if key is None:
        return []
    printed = dict(zip(("I2V/Rank-1", "I2V/mAP", "V2I/Rank-1", "V2I/mAP"), PAPER[key], strict=True))
    rows = [
        ResultRow("paper", way, [printed.get(f"{way}/{name}") for name in names], ours=False)
        for way in DIRECTIONS
    ]
    return [*rows, ResultRow("paper", "mean", _means(*rows), ours=False)]


def _means(one: ResultRow, other: ResultRow) -> list[float | None]:
    return [
        None if a is None or b is None else (a + b) / 2
        for a, b in zip(one.values, other.values, strict=True)
    ]


def paper_key(cfg: CfgNode) -> str | None:
    """The row of the paper's Table 3 that this config trains and tests; None where it has none."""
    parts = cfg.MODEL.STAR.FRAME_LEVEL, cfg.MODEL.HEADS.NAME == SEQUENCE_HEAD
    if tuple(cfg.DATASETS.TESTS) != ("HITSZVCM",) or not is_resnet50(cfg):
        return None
    if cfg.INPUT.CLIP.LENGTH != PAPER_LENGTH or list(cfg.MODEL.STAR.EXPONENTS) != PAPER_EXPONENTS:
        return None  # a point of Figure 5 or 6, whose numbers the paper does not print
    if cfg.INPUT.BLANK or (cfg.DATASETS.SKELETONS_TRAIN, cfg.DATASETS.SKELETONS_TEST) != (
        "own",
        "own",
    ):
        return None
    if cfg.MODEL.META_ARCHITECTURE not in ("SAD", "STAR"):
        return None
    if cfg.MODEL.META_ARCHITECTURE == "SAD" or not any(parts):
        return "SAD_R50"
    return {
        (True, True): "STAR_R50",
        (True, False): "STAR_R50_frame",
        (False, True): "STAR_R50_sequence",
    }[parts]


def is_resnet50(cfg: CfgNode) -> bool:
    """Whether the backbone is the paper's."""
    node = cfg.MODEL.BACKBONE
    plain = not (node.WITH_IBN or node.WITH_SE or node.WITH_NL)
    return node.NAME == "build_resnet_backbone" and node.DEPTH == "50x" and plain


def facts(run: Run, parameters: int) -> list[tuple[str, str]]:
    """What is to be known of a run before its numbers: (what, which).

    Args:
        run: its config is read.
        parameters: of its network.
    """
    cfg = run.cfg
    height, width = cfg.INPUT.SIZE_TEST
    told = [
        ("Model", describe_model(cfg)),
        ("Parameters", f"{parameters / 1e6:.2f} million"),
        ("Clip", f"{cfg.INPUT.CLIP.LENGTH} frames of {height}×{width} pixels"),
        ("Skeletons", describe_skeletons(cfg)),
        ("Seed", str(run.trained.SEED)),
        ("Trained for", _epochs(run)),
        ("Weights", f"{run.weights.path.name}, written {run.weights.modified:%d %B %Y, %H:%M}"),
    ]
    if run.recorded:
        told.append(("While training", f"mean mAP {run.recorded['mean/mAP']:.2f} %"))
    return told


def describe_model(cfg: CfgNode) -> str:
    """``STAR (frame level, sequence level) on small_resnet small``."""
    backbone = cfg.MODEL.BACKBONE.NAME.removeprefix("build_").removesuffix("_backbone")
    parts = []
    if cfg.MODEL.META_ARCHITECTURE == "STAR":
        parts = ["frame level"] * cfg.MODEL.STAR.FRAME_LEVEL
        parts += ["sequence level"] * (cfg.MODEL.HEADS.NAME == SEQUENCE_HEAD)
        parts += ["consistency loss"] * ("SkeletonConsistencyLoss" in cfg.MODEL.LOSSES.NAME)
    levels = f" ({', '.join(parts)})" if parts else ""
    return f"{cfg.MODEL.META_ARCHITECTURE}{levels} on {backbone} {cfg.MODEL.BACKBONE.DEPTH}"


def describe_skeletons(cfg: CfgNode) -> str:
    """Where they are from, and whose a test clip is shown with."""
    if not cfg.DATASETS.SKELETONS or cfg.DATASETS.SKELETONS_TEST == "none":
        return "none"
    whose = {"own": "", "other": ", those of other people in testing"}
    return f"{cfg.DATASETS.SKELETONS}{whose[cfg.DATASETS.SKELETONS_TEST]}"


def _epochs(run: Run) -> str:
    done, planned = run.weights.epochs, run.trained.SOLVER.MAX_EPOCH
    return f"{planned} epochs planned" if done is None else f"{done} of {planned} epochs"
