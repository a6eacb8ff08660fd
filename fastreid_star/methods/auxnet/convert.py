"""Conversion of the checkpoints of BUPTCampus' authors (dyhBUPT/BUPTCampus)."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from fastreid_star.modeling.convert import SETTINGS, Conversion

_RENAMED = (
    (r"rgb_module\.conv1\.", "backbone.visible_stem.0."),
    (r"rgb_module\.bn1\.", "backbone.visible_stem.1."),
    (r"ir_module\.conv1\.", "backbone.infrared_stem.0."),
    (r"ir_module\.bn1\.", "backbone.infrared_stem.1."),
    (
        r"shared_module\.backbone\.layer([1-4])\.",
        lambda match: f"backbone.stages.{int(match[1]) - 1}.",
    ),
    (r"bottleneck\.bn\.", "heads.bottleneck.0."),
    (r"classifier\.fc\.weight$", "heads.weight"),
)
_DROPPED = (
    (r"shared_module\.backbone\.(conv1|bn1)\.", "each modality has its own stem"),
    (r"shared_module\.backbone\.fc\.", "the published program never runs it"),
)
_SETTINGS = {
    **SETTINGS,
    "MODEL.HEADS.GEM_P": 1.0,
    "MODEL.META_ARCHITECTURE": "AuxNet",
    "INPUT.CLIP.SAMPLING": "random",
}


def recognizes(modules: set[str]) -> bool:
    """Whether a checkpoint with weights of these modules is one of the authors' programs."""
    return {"shared_module", "rgb_module", "ir_module"} <= modules


def convert(state: Mapping[str, torch.Tensor]) -> Conversion:
    """The state dict of the baseline or of AuxNet, whose networks are the same."""
    conversion = Conversion("BUPTCampus' baseline", settings=_SETTINGS)
    conversion.rename(state, _RENAMED, _DROPPED)
    return conversion
