"""Conversion of the published checkpoints of SAADG (ACM MM 2023)."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from fastreid_star.modeling.convert import DROPPED, RENAMED, SETTINGS, Conversion

_GRAPHS = "losses.GraphInteractionLoss."
_RENAMED = (
    *RENAMED,
    (r"(intra|inter)_gcn_conv\.", _GRAPHS + r"\1.conv."),
    (r"(intra|inter)_gcn_bottleneck\.", _GRAPHS + r"\1.head.bottleneck.0."),
    (r"(intra|inter)_gcn_classifier\.", _GRAPHS + r"\1.head."),
)


def recognizes(modules: set[str]) -> bool:
    """Whether a checkpoint with these top-level modules is SAADG's."""
    return {"base_resnet", "global_bottleneck"} <= modules and not (
        {"time_guide", "GuidedAggModule"} & modules
    )


def convert(state: Mapping[str, torch.Tensor]) -> Conversion:
    """Convert SAADG's state dict, whose names have no prefix ``module.``.

    The graphs, which only training uses, become the weights of ``GraphInteractionLoss``.
    """
    conversion = Conversion("SAADG", SETTINGS)
    conversion.rename(state, _RENAMED, DROPPED)
    return conversion
