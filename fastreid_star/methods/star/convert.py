"""Conversion of the checkpoints of SDTG, the program of STAR's authors, to STAR."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

from fastreid_star.errors import UserError
from fastreid_star.modeling.convert import DROPPED, NEVER_RUN, RENAMED, SETTINGS, Conversion
from fastreid_star.upgrade import upgrade_weights

_SETTINGS = {
    **SETTINGS,
    "MODEL.STAR.BONES": "release",
    "MODEL.STAR.CORRECTOR": "release",
    "MODEL.STAR.GUIDE": "release",
    "MODEL.STAR.GRAPH": "release",
    "MODEL.STAR.GEOMETRY": "crop",
    "MODEL.STAR.EXPONENTS": [0.7, 1.0, 3.0, 5.0, 7.0],
}
_RENAMED = (
    *RENAMED,
    (r"fc1\.", "corrector.encoder.fc."),
    (r"lstm_edge\.", "corrector.encoder.lstm."),
    (r"time_guide\.cross_attn\.", "corrector.attend_visual."),  # queries are the bones' states
    (r"time_guide\.reverse_cross_attn\.", "corrector.attend_time."),
    (r"time_guide\.ffn\.([02])\.", r"corrector.ffn.\1."),
    (r"gat\.conv([12])\.(att_src|att_dst|bias|lin\.weight)$", r"heads.gat.conv\1.\2"),
    # torch-geometric before 2.5
    (r"gat\.conv([12])\.lin_src\.weight$", r"heads.gat.conv\1.lin.weight"),
    (r"pose_bottleneck\.", "heads.guide_norm."),
    (r"pose_classifier\.", "heads.pose_classifier."),
    (r"GuidedAggModule\.fc_layers\.(\d+)\.", r"heads.guide_layer.\1."),  # joined in convert()
)
_DROPPED = (
    *DROPPED,
    (r"bn\.", NEVER_RUN),
    (r"time_guide\.bn_enhanced_(origin|time_guide)\.", NEVER_RUN),
)


def recognizes(modules: set[str]) -> bool:
    """Whether a checkpoint with these top-level modules is SDTG's."""
    return {"base_resnet", "global_bottleneck", "time_guide", "GuidedAggModule"} <= modules


def convert(state: Mapping[str, torch.Tensor]) -> Conversion:
    """Convert SDTG's state dict for STAR's `release` reading; names have no prefix ``module.``.

    Raises:
        UserError: its graph attention has different matrices for sources and targets, or a linear
            layer of its pooling is missing.
    """
    conversion = Conversion("SDTG", _SETTINGS)
    rest = dict(state)
    for name in state:
        twin = name.replace(".lin_dst.", ".lin_src.")
        if re.match(r"gat\.conv[12]\.lin_dst\.weight$", name) and twin in state:
            if not torch.equal(state[name], state[twin]):
                raise UserError(f"{name} differs from {twin}: this is not SDTG's graph attention")
            conversion.dropped[name] = "the same matrix as lin_src, saved twice"
            del rest[name]
    conversion.rename(rest, _RENAMED, _DROPPED)
    weights = conversion.weights
    for kind in ("weight", "bias"):
        layers = {}
        for name in list(weights):
            if match := re.match(rf"heads\.guide_layer\.(\d+)\.{kind}$", name):
                layers[int(match[1])] = weights.pop(name)
        if sorted(layers) != list(range(len(layers))):
            raise UserError(
                f"GuidedAggModule.fc_layers has the layers {sorted(layers)}: one is missing"
            )
        if layers:
            weights[f"heads.guide_layer.{kind}"] = torch.cat([layers[k] for k in sorted(layers)])
    conversion.weights = upgrade_weights(weights)  # torch-geometric's dense layer has other shapes
    return conversion
