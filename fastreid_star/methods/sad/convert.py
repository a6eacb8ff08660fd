"""Conversion of the published checkpoints of SAADG (ACM MM 2023) to SAD."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from fastreid_star.modeling.convert import DROPPED, RENAMED, SETTINGS, Conversion

_DROPPED = (
    *DROPPED,
    (
        r"(intra|inter)_gcn_(conv|bottleneck|classifier)\.",
        "the graph interaction is used in training only",
    ),
)


def recognizes(modules: set[str]) -> bool:
    """Whether a checkpoint with these top-level modules is SAADG's."""
    return {"base_resnet", "global_bottleneck"} <= modules and not (
        {"time_guide", "GuidedAggModule"} & modules
    )


def convert(state: Mapping[str, torch.Tensor]) -> Conversion:
    """Convert SAADG's state dict, whose names have no prefix ``module.``."""
    conversion = Conversion("SAADG", SETTINGS)
    conversion.rename(state, RENAMED, _DROPPED)
    return conversion
