"""Configs and checkpoints that release 0.1.0 wrote, in the names of today: the one key map."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from fastreid_star.errors import UserError

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


def upgrade_config(config: dict[str, Any]) -> dict[str, Any]:
    """The content of a config file with the keys of today, changed in place and returned.

    Only a config that a run of release 0.1.0 has saved is changed.

    Args:
        config: nested dicts, as YAML gives them.

    Raises:
        UserError: a config that was written by hand has the key.
    """
    if not is_of_first_release(config):
        return config
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
    model.pop("CPU", None)
    if star.get("BONES") == "normalised":
        star["BONES"] = "normalized"

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
