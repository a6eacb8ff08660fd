"""Conversion of the checkpoints of VCD's authors (FutabaSakuraXD/Farewell-to-Mutual-...)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import torch

from fastreid_star.modeling.convert import NEVER_RUN, SETTINGS, Conversion

_NETWORKS = {"RGB": "visible_", "IR": "infrared_", "shared": ""}
_STAGES = {"256": 1, "512": 2, "1024": 3}  # by the width of the maps after them


def _part(kind: str, rest: str) -> Callable[[re.Match], str]:
    """A function from a match of a network's name to the name of our part."""

    def name(match: re.Match) -> str:
        prefix = _NETWORKS[match[1]]
        own = {"backbone": f"{prefix}backbone", "head": f"{prefix}head" if prefix else "heads"}
        return own[kind] + match.expand(rest)

    return name


def _attention(match: re.Match) -> str:
    return f"{_NETWORKS[match[1]]}backbone.after.{_STAGES[match[2]]}.scale"


def _stage(match: re.Match) -> str:
    return f"{_NETWORKS[match[1]]}backbone.stages.{int(match[2]) - 1}."


_ANY = r"(RGB|IR|shared)"
_RENAMED = (
    (_ANY + r"_backbone\.cam_(\d+)\._cam_module\.gamma$", _attention),
    (_ANY + r"_backbone\.base\.conv1\.", _part("backbone", r".visible_stem.0.")),
    (_ANY + r"_backbone\.base\.bn1\.", _part("backbone", r".visible_stem.1.")),
    (_ANY + r"_backbone\.base\.layer([1-4])\.", _stage),
    (_ANY + r"_backbone\.bottleneck\.", _part("head", r".bottleneck.0.")),
    (_ANY + r"_backbone\.classifier\.0\.", _part("head", r".")),
    (_ANY + r"_Bottleneck\.bottleneck\.model\.", _part("head", r".compress.")),
    (_ANY + r"_Bottleneck\.classifier\.", _part("head", r".classify_compressed.")),
)
_DROPPED = ((_ANY + r"_backbone\.base\.fc\.", NEVER_RUN),)
_SETTINGS = {**SETTINGS, "MODEL.META_ARCHITECTURE": "VCD", "MODEL.HEADS.GEM_P": 1.0}


def recognizes(modules: set[str]) -> bool:
    """Whether a checkpoint with weights of these modules is VCD's."""
    return {"RGB_backbone", "IR_backbone", "shared_Bottleneck"} <= modules


def convert(state: Mapping[str, torch.Tensor]) -> Conversion:
    """The state dict of the whole network."""
    conversion = Conversion("VCD", _SETTINGS)
    conversion.rename(state, _RENAMED, _DROPPED)
    return conversion
