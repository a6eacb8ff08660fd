"""Configs and checkpoints that earlier versions wrote, in the names of today: the one key map."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any

import torch
from fastreid.config import CfgNode
from fastreid.utils.logger import log_first_n

from fastreid_star.errors import UserError

# Keys that were removed, with the values that are used now. None: no value had an effect, and
# nothing is said.
REMOVED: dict[str, Any] = {
    "DATASETS.SYNTHETIC.SCALE": 0.1,
    "INPUT.REA.AREA": [0.02, 0.4],
    "MODEL.CPU.KEEP_MEMORY": None,
    "MODEL.SAD.AUGMENT_RANGE": [0.5, 1.5],
    "MODEL.STAR.KL_LAST": "last_step",
    "MODEL.STAR.SPLIT_LSTM": False,
    "SOLVER.AMP.MAX_SKIPPED": 50,
    "TEST.PER_QUERY_CSV": True,
}
# Removed keys whose values now follow from another key: their default, and that key.
FOLLOWING: dict[str, tuple[Any, str]] = {
    "MODEL.STAR.ATTENTION_DROPOUT": (0.6, "MODEL.STAR.GRAPH"),
    "MODEL.STAR.GAT_DROPOUT": (0.3, "MODEL.STAR.GRAPH"),
}
# Values that were renamed or removed in version 0.2, for the message about an unknown value.
EARLIER_VALUES = {
    ("MODEL.STAR.BONES", "normalised"): "which is called normalized since version 0.2",
    ("MODEL.STAR.GRAPH", "paper"): "which is called normalized since version 0.2",
    ("MODEL.STAR.GUIDE", "softmax"): "which version 0.2 has removed",
}
_WEIGHTS = (
    (r"^consistency\.", "losses.SkeletonConsistencyLoss."),
    (r"^encoder\.", "corrector.encoder."),
)
_ATTENTION_VECTORS = re.compile(r"^heads\.gat\.conv[12]\.att_(src|dst)$")


def upgrade_weights(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state dict with the names and shapes of today; one of today is returned unchanged.

    Args:
        state: weights by name.
    """
    upgraded = {}
    for name, value in state.items():
        for pattern, today in _WEIGHTS:
            name = re.sub(pattern, today, name)
        if _ATTENTION_VECTORS.match(name) and value.dim() == 3:
            value = value[None]  # torch-geometric's dense layer has one more axis
        upgraded[name] = value
    return upgraded


def is_of_first_release(config: dict[str, Any]) -> bool:
    """Whether a run of release 0.1.0 has saved this config: no later one has this key."""
    model = config.get("MODEL")
    star = model.get("STAR") if isinstance(model, dict) else None
    return isinstance(star, dict) and "FRAME_LEVEL" in star


def is_removed(key: str, value: Any) -> bool:
    """Whether a config key was removed; one warning if another value than this is used now.

    Args:
        key: ``SOLVER.AMP.MAX_SKIPPED``.
        value: from a file, or as text from the command line.
    """
    if key not in REMOVED and key not in FOLLOWING:
        return False
    value = CfgNode._decode_cfg_value(value)
    value = list(value) if isinstance(value, tuple) else value
    if key in FOLLOWING:
        used, other = FOLLOWING[key]
        what = f"its value follows from {other}"
    else:
        used = REMOVED[key]
        what = f"{used!r} is used"
    if used is not None and value != used:
        line = f"{key} {value!r} is ignored: the key was removed, and {what}"
        log_first_n(logging.WARNING, line, name=__name__, key="message")
    return True


def upgrade_config(config: dict[str, Any]) -> dict[str, Any]:
    """The content of a config file with the keys of today.

    Removed keys are left out. What a run of release 0.1.0 has saved is translated.

    Args:
        config: nested dicts, as YAML gives them.

    Raises:
        UserError: a config that was written by hand has a key of release 0.1.0.
    """
    config = _without_removed(config)
    return _of_first_release(config) if is_of_first_release(config) else config


def _without_removed(section: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    kept = {}
    for name, value in section.items():
        if isinstance(value, dict) and value:
            inner = _without_removed(value, f"{prefix}{name}.")
            if inner:
                kept[name] = inner
        elif not is_removed(f"{prefix}{name}", value):
            kept[name] = value
    return kept


def _of_first_release(config: dict[str, Any]) -> dict[str, Any]:
    """A config of release 0.1.0, changed in place and returned."""
    model = config["MODEL"]
    star = model["STAR"]
    losses = model.get("LOSSES", {}).get("NAME")
    if not isinstance(losses, list):
        raise UserError(
            "MODEL.STAR.FRAME_LEVEL is of release 0.1.0: set MODEL.FRAME_CORRECTOR.NAME to "
            "SkeletonFrameCorrector, or to an empty string, in its place"
        )
    losses = list(losses)
    consistent = "SkeletonConsistencyLoss" in losses
    paper = star.pop("KL", "paper") == "paper"
    frame_level = star.pop("FRAME_LEVEL")
    star["GEOMETRY"] = "image"
    model["SKELETON_DROPOUT"] = star.pop("SKELETON_DROPOUT", 0.0)
    if star.get("BONES") == "normalised":
        star["BONES"] = "normalized"
    if star.get("GRAPH") == "paper":
        star["GRAPH"] = "normalized"

    corrector = ""
    if model.get("META_ARCHITECTURE") == "STAR":
        guided = (model.get("HEADS") or {}).get("NAME") == "GATGeMHead"
        reads_bones = (guided and star.get("GUIDE") == "release") or (consistent and paper)
        other = "BoneReader" if reads_bones else ""
        corrector = "SkeletonFrameCorrector" if frame_level else other
    model["FRAME_CORRECTOR"] = {"NAME": corrector}

    if model.get("META_ARCHITECTURE") in ("SAD", "STAR"):  # one loss was two
        if "CrossEntropyLoss" in losses:
            losses.insert(losses.index("CrossEntropyLoss") + 1, "FrameCrossEntropyLoss")
        if consistent and not paper:
            losses[losses.index("SkeletonConsistencyLoss")] = "PoseConsistencyLoss"
        model["LOSSES"]["NAME"] = losses
    return config
