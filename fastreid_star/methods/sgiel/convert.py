"""Conversion of the checkpoints of SGIEL's authors (jiawei151/SGIEL_VIReID)."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

from fastreid_star.modeling.convert import NEVER_RUN, SETTINGS, Conversion

_SETS = {"": 0, "_ir": 1, "_shape": 2}


def _norm(match: re.Match) -> str:
    """A norm of a stage: bn1, bn1_ir, bn1_shape, downsample.1, dsbn_ir or dsbn_shape."""
    stage, block, name, kind = match.groups()
    place = name if name.startswith("bn") else "downsample.1"
    return f"backbone.stages.{int(stage) - 1}.{block}.{place}.sets.{_SETS[kind]}."


_STAGE = r"base_resnet\.base\.layer([1-4])\.(\d+)\."
_RENAMED = (
    (r"visible_module\.visible\.conv1\.", "backbone.visible_stem.0."),
    (r"visible_module\.visible\.bn1\.", "backbone.visible_stem.1.sets.0."),
    (r"visible_module\.visible\.bn1_shape\.", "backbone.visible_stem.1.sets.1."),
    (r"thermal_module\.thermal\.conv1\.", "backbone.infrared_stem.0."),
    (r"thermal_module\.thermal\.bn1\.", "backbone.infrared_stem.1.sets.0."),
    (r"thermal_module\.thermal\.bn1_shape\.", "backbone.infrared_stem.1.sets.1."),
    (_STAGE + r"(bn\d|dsbn|downsample\.1)(|_ir|_shape)\.", _norm),
    (_STAGE, lambda match: f"backbone.stages.{int(match[1]) - 1}.{match[2]}."),
    (r"bottleneck(|_ir|_shape)\.", lambda match: f"heads.bottleneck.0.sets.{_SETS[match[1]]}."),
    (r"classifier\.weight$", "heads.weight"),
    (r"classifier_shape\.weight$", "shape_head.weight"),
    (r"projs\.0$", "shape_head.image"),
    (r"projs\.1$", "shape_head.shape"),
)
_DROPPED = (
    (r"(visible_module\.visible|thermal_module\.thermal)\.", "only the stem of this ResNet is run"),
    (r"base_resnet\.base\.(conv1|bn1\w*)\.", "each modality has its own stem"),
    (r"(base_resnet\.base\.fc|classifier_ir)\.", NEVER_RUN),
)
_SETTINGS = {
    **SETTINGS,
    "MODEL.META_ARCHITECTURE": "SGIEL",
    "MODEL.HEADS.SPATIAL_P": 3.0,
    "MODEL.HEADS.GEM_P": 1.0,
}


def recognizes(modules: set[str]) -> bool:
    """Whether a checkpoint with weights of these modules is SGIEL's."""
    return {"base_resnet", "projs", "classifier_shape"} <= modules


def convert(state: Mapping[str, torch.Tensor]) -> Conversion:
    """The state dict of the trained or of the averaged network; both parts here get it."""
    conversion = Conversion("SGIEL", _SETTINGS)
    conversion.rename(state, _RENAMED, _DROPPED)
    average = {f"average.{name}": value for name, value in conversion.weights.items()}
    conversion.weights.update(average)
    return conversion
