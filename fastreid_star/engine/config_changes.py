"""Which config keys decide a model's features, and in what two configs differ."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

from fastreid.config import CfgNode

from fastreid_star.errors import UserError
from fastreid_star.methods import training_keys

logger = logging.getLogger(__name__)

# Keys and sections that decide a trained model's features ...
_FEATURES = ("MODEL", "INPUT.SIZE_TEST", "INPUT.CLIP.LENGTH", "INPUT.CLIP.SAMPLING", "INPUT.BLANK",
             "INPUT.RANGE_16BIT", "TEST.FLIP", "SOLVER.FAST_FLOAT32")  # fmt: skip
# ... without those that only training reads, or that change speed and not numbers.
_NO_FEATURES = (
    "MODEL.CHANNELS_LAST", "MODEL.DEVICE", "MODEL.NPU", "MODEL.WEIGHTS",
    "MODEL.BACKBONE.PRETRAIN", "MODEL.BACKBONE.PRETRAIN_PATH", "MODEL.FREEZE_LAYERS",
    "MODEL.HEADS.NUM_CLASSES", "MODEL.LOSSES", "MODEL.QUEUE_SIZE", "MODEL.SKELETON_DROPOUT",
    *training_keys(),
)  # fmt: skip
# A resumed run may change these: they have no effect on its course (it keeps its own seed) ...
_FREE = (
    "OUTPUT_DIR", "SEED", "TRACKERS", "CUDNN_BENCHMARK", "MODEL.DEVICE", "MODEL.NPU",
    "MODEL.WEIGHTS", "MODEL.BACKBONE.PRETRAIN", "MODEL.BACKBONE.PRETRAIN_PATH",
    "DATALOADER.NUM_WORKERS", "DATASETS.TESTS", "DATASETS.SKELETONS_TEST", "SOLVER.LOG_PERIOD",
    "SOLVER.CHECKPOINT_PERIOD", "SOLVER.CHECKPOINT_KEEP", "TEST",
)  # fmt: skip
# ... these, with a warning ...
_COURSE = ("DATASETS.ROOT", "SOLVER.AMP", "SOLVER.FAST_FLOAT32", "SOLVER.IMS_PER_BATCH",
           "SOLVER.MAX_EPOCH", "SOLVER.FREEZE_ITERS")  # fmt: skip
# ... and the others if asked to, except these, which the checkpoint restores.
_RESTORED = ("SOLVER", "MODEL.CHANNELS_LAST")


def flatten(cfg: Mapping, prefix: str = "") -> dict[str, Any]:
    """``{"SOLVER.BASE_LR": 0.1, ...}``, with values as JSON has them (tuples are lists)."""
    flat: dict[str, Any] = {}
    for key, value in cfg.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = json.loads(json.dumps(value))
    return flat


def in_sections(key: str, names: tuple[str, ...]) -> bool:
    """Whether a key is one of `names` or in a section of them."""
    return any(key == name or key.startswith(f"{name}.") for name in names)


def changes_features(key: str) -> bool:
    """Whether this key decides the features of a trained model."""
    return in_sections(key, _FEATURES) and not in_sections(key, _NO_FEATURES)


def check_resumed(saved: Mapping, cfg: CfgNode, *, allow: bool) -> None:
    """Compare a run's config with that of the checkpoint it resumes from; log the differences.

    Args:
        saved: the checkpoint's config.
        cfg: the run's.
        allow: accept differences with which the run cannot continue exactly.

    Raises:
        UserError: the run cannot continue with this config.
    """
    changed = {k: v for k, v in _differences(saved, cfg).items() if not in_sections(k, _FREE)}
    cosine = cfg.SOLVER.SCHED == "CosineAnnealingLR"
    accepted = {k for k in changed if in_sections(k, _COURSE)}
    accepted -= {"SOLVER.MAX_EPOCH"} if cosine else set()
    refused = {k: v for k, v in changed.items() if k not in accepted}
    restored = {k: v for k, v in refused.items() if in_sections(k, _RESTORED)}
    if restored:
        raise UserError(
            f"--resume: {_listed(restored)}: a checkpoint restores the optimizer and the schedule, "
            "so these cannot change: keep their values, or start a new run with MODEL.WEIGHTS"
        )
    _refuse_or_warn("--resume", {} if allow else refused, changed)


def check_evaluated(saved: Mapping, cfg: CfgNode, *, allow: bool) -> None:
    """Compare a config with that of the weights it evaluates, as far as features depend on it.

    Other input (``INPUT``) is logged. Another network (``MODEL``) is refused unless `allow` is set.
    """
    changed = {k: v for k, v in _differences(saved, cfg).items() if changes_features(k)}
    refused = {k: v for k, v in changed.items() if k.startswith("MODEL.") and not allow}
    _refuse_or_warn("evaluation", refused, changed)


def _differences(saved: Mapping, cfg: CfgNode) -> dict[str, tuple[Any, Any]]:
    """Keys that both configs have, with other values: key -> (saved, now)."""
    before, now = flatten(saved), flatten(cfg)
    keys = sorted(before.keys() & now.keys())
    return {key: (before[key], now[key]) for key in keys if before[key] != now[key]}


def _refuse_or_warn(what: str, refused: dict, changed: dict) -> None:
    if refused:
        raise UserError(
            f"{what}: the config differs from the checkpoint's in {_listed(refused)}: use the "
            "checkpoint's values, or add --allow-changed to use the new ones"
        )
    if changed:
        logger.warning(f"The config differs from the checkpoint's in {_listed(changed)}")


def _listed(changed: dict[str, tuple[Any, Any]], most: int = 6) -> str:
    shown = [f"{key} ({old!r} -> {new!r})" for key, (old, new) in changed.items()]
    more = f" and {len(shown) - most} more" if len(shown) > most else ""
    return ", ".join(shown[:most]) + more
