"""Conversion of the checkpoints of IBAN's authors."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

from fastreid_star.methods.mitml.convert import GATES, GATES_DROPPED
from fastreid_star.modeling.convert import NEVER_RUN, Conversion


def _network(suffix: str | None) -> str:
    return "anaglyph_backbone" if suffix else "backbone"


def _stem(match: re.Match) -> str:
    kind, number = ("visible", "infrared")[match[1] != "visible"], int(match[3] == "bn1")
    return f"{_network(match[2])}.{kind}_stem.{number}."


_STEM = r"(visible|thermal)_module(_f)?\.(?:visible|thermal)\."
_ATTENTION = r"cross_atten_(fir|sec)\.cross_atten\."
_REBUILD = r"chonggou_(v2t|t2v)_(fir|sec)\.conv\.0\."
_DEPTH, _FROM = {"fir": 0, "sec": 1}, {"v2t": "visible", "t2v": "infrared"}
_RENAMED = (
    (_STEM + r"(conv1|bn1)\.", _stem),
    (
        r"base_resnet_fir(_f)?\.base\.layer([1-3])\.",
        lambda match: f"{_network(match[1])}.stages.{int(match[2]) - 1}.",
    ),
    (r"base_resnet_sec(_f)?\.base\.layer4\.", lambda match: f"{_network(match[1])}.stages.3."),
    (_ATTENTION + r"(theta|phi|g)\.(0\.)?", lambda m: f"attention.{_DEPTH[m[1]]}.{m[2]}."),
    (_ATTENTION + r"W\.", lambda match: f"attention.{_DEPTH[match[1]]}.out."),
    (_REBUILD, lambda match: f"reconstruction.{_FROM[match[1]]}.{_DEPTH[match[2]]}."),
    *GATES,
    (r"lstm_o\.", "forward_lstm."),
    (r"lstm_r\.", "backward_lstm."),
    (r"bottleneck\.", "heads.bottleneck.0."),
    (r"bottleneck_f\.", "anaglyph_neck.0."),
    (r"classifier\.weight$", "heads.weight"),
)
_DROPPED = (
    (_STEM, "only the stem of this ResNet is run"),
    (r"base_resnet\.", NEVER_RUN),
    (r"base_resnet_(fir|sec)(_f)?\.", "only some stages of this ResNet are run"),
    *GATES_DROPPED,
)
_SETTINGS: dict[str, object] = {
    "MODEL.BACKBONE.PADDED_POOL": True,
    "MODEL.BACKBONE.LAST_STRIDE": 1,
    "MODEL.IBAN.READING": "authors",
}


def recognizes(modules: set[str]) -> bool:
    """Whether a checkpoint with these top-level modules is IBAN's."""
    return {"temporal_feat_learning", "lstm_o"} <= modules


def convert(state: Mapping[str, torch.Tensor]) -> Conversion:
    """Convert IBAN's state dict for the reading `authors`.

    The three-dimensional 1 x 1 x 1 convolutions of the attention become one-dimensional ones.
    """
    conversion = Conversion("IBAN", _SETTINGS)
    conversion.rename(state, _RENAMED, _DROPPED)
    for name, value in conversion.weights.items():
        if name.startswith("attention.") and value.ndim == 5:
            conversion.weights[name] = value.flatten(2)
    return conversion
