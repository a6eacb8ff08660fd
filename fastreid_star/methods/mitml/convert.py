"""Conversion of the checkpoints of MITML's authors."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

from fastreid_star.modeling.convert import DROPPED, NEVER_RUN, RENAMED, SETTINGS, Conversion

_LINEAR = ("a", "b", "c", "d", "e", "f")  # one for each of six frames
_GATES, _PAIRS = r"temporal_feat_learning\.", {"0": "squeeze", "2": "excite"}
_CLASSIFIER = r"net_modal_classifier1?\."
GATES = (
    (
        _GATES + r"([a-f])\.",
        lambda match: f"gates.gates.{_LINEAR.index(match[1])}.context.",
    ),
    (
        _GATES + r"se_(\d+)\.fc\.([02])\.",
        lambda match: f"gates.gates.{int(match[1]) - 1}.{_PAIRS[match[2]]}.",
    ),
)
GATES_DROPPED = ((_GATES + r"se_\d+\.l\.", NEVER_RUN),)
_RENAMED = (
    *RENAMED,
    *GATES,
    (r"base_resnet\.layer4\.", "temporal_stage."),
    (r"lstm\.", "lstm."),
    (r"bottleneck\.", "heads.bottleneck.0."),
    (r"classifier\.weight$", "heads.weight"),
    (_CLASSIFIER + r"first_layer\.", "modality.0."),
    (_CLASSIFIER + r"layers\.(\d+)\.", lambda match: f"modality.{int(match[1]) + 1}."),
    (_CLASSIFIER + r"Liner\.", "modality.8."),
)
_DROPPED = (*DROPPED, *GATES_DROPPED, (r"(bottleneck1|classifier[12])\.", NEVER_RUN))
_SETTINGS = {name: value for name, value in SETTINGS.items() if name != "MODEL.HEADS.GEM_P"}


def recognizes(modules: set[str]) -> bool:
    """Whether a checkpoint with these top-level modules is MITML's."""
    return {"temporal_feat_learning", "lstm"} <= modules


def convert(state: Mapping[str, torch.Tensor]) -> Conversion:
    """Convert MITML's state dict and that of its modality classifier.

    The convolutions of the classifier become linear layers: their central tap.
    """
    conversion = Conversion("MITML", _SETTINGS)
    conversion.rename(state, _RENAMED, _DROPPED)
    for name, value in conversion.weights.items():
        if re.match(r"modality\.\d\.0\.weight$", name) and value.ndim == 3:
            conversion.weights[name] = value[..., value.shape[-1] // 2]
    return conversion
