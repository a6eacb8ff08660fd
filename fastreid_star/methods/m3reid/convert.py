"""Conversion of the checkpoints of M3-ReID's authors (TIFS 2025)."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from fastreid_star.errors import UserError
from fastreid_star.methods.m3reid.layers import PLANES
from fastreid_star.modeling.convert import Conversion

_SETTINGS: dict[str, object] = {
    "MODEL.BACKBONE.PADDED_POOL": True,
    "MODEL.BACKBONE.LAST_STRIDE": 2,
    "MODEL.BACKBONE.STREAMS": 1,
}
_RENAMED = (
    (r"backbone\.conv1\.", "backbone.visible_stem.0."),
    (r"backbone\.bn1\.", "backbone.visible_stem.1."),
    (r"backbone\.layer([1-4])\.", lambda match: f"backbone.stages.{int(match[1]) - 1}."),
    (r"NL_([1-4])\.(\d+)\.(theta|phi|g)\.", r"backbone.non_local.\1.\2.\3."),
    (r"NL_([1-4])\.(\d+)\.W\.", r"backbone.non_local.\1.\2.out."),
    (r"mvl_attention\.view_attention_(hw|tw|th)\.", r"masks.\1."),  # joined in convert()
    (r"bn_neck\.", "frame_heads.bottleneck.0."),
    (r"classifier_frame\.weight$", "frame_heads.weight"),
    (r"classifier\.weight$", "heads.weight"),
)


def recognizes(modules: set[str]) -> bool:
    """Whether a checkpoint with these top-level modules is M3-ReID's."""
    return {"mvl_attention", "bn_neck"} <= modules


def convert(state: Mapping[str, torch.Tensor]) -> Conversion:
    """Convert M3-ReID's state dict, whose names have no prefix ``module.``.

    Its non-local blocks have convolutions of 1x1x1, ours of 1x1. Its three masked convolutions
    become one.

    Raises:
        UserError: one of the three is missing.
    """
    conversion = Conversion("M3-ReID", _SETTINGS)
    conversion.rename(state, _RENAMED, ())
    weights = conversion.weights
    for name, value in weights.items():
        if value.ndim == 5:
            weights[name] = value[..., 0]
    for kind in ("weight", "bias"):
        parts = {plane: weights.pop(f"masks.{plane}.{kind}", None) for plane in PLANES}
        missing = [plane for plane, value in parts.items() if value is None]
        if missing:
            raise UserError(f"mvl_attention.view_attention_{missing[0]}.{kind} is missing")
        weights[f"masks.conv.{kind}"] = torch.cat(
            [value for value in parts.values() if value is not None]
        )
    return conversion
