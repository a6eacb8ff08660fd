"""Conversion of the checkpoints of DinoGRL's authors: three files, which are read as one."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from fastreid_star.errors import UserError
from fastreid_star.modeling.backbones.dinov2_weights import original_names
from fastreid_star.modeling.convert import NEVER_RUN, Conversion
from fastreid_star.modeling.layers.frozen_tokens import checksum

_SETTINGS: dict[str, object] = {
    "MODEL.BACKBONE.PADDED_POOL": True,
    "MODEL.BACKBONE.LAST_STRIDE": 1,
    "MODEL.DINOGRL.READING": "authors",
    "MODEL.DINOGRL.STREAMS": "both",
}
_SHAPE = r"dinov2\."
_GAIT = r"dinov2\.gait_net\."
_RENAMED = (
    (r"image_encoder1\.resnet_conv\.([01])\.", r"backbone.visible_stem.\1."),
    (r"image_encoder2\.resnet_conv\.([01])\.", r"backbone.infrared_stem.\1."),
    (r"share_encoder\.resnet_conv\.([0-3])\.", r"backbone.stages.\1."),
    (r"FCs\.fc_bin$", "appearance.fc.weight"),
    (r"BNNecks\.", "appearance_neck."),  # joined in convert()
    (r"enhance_app_net_3\.g\.0\.", "exchange.appearance.g."),
    (r"enhance_shape_net_3\.g\.0\.", "exchange.gait.g."),
    (r"enhance_app_net_3\.(theta|phi)\.", r"exchange.appearance.\1."),
    (r"enhance_shape_net_3\.(theta|phi)\.", r"exchange.gait.\1."),
    (r"enhance_app_net_3\.W1\.", "exchange.appearance.plus."),
    (r"enhance_app_net_3\.W2\.", "exchange.appearance.minus."),
    (r"enhance_shape_net_3\.W1\.", "exchange.gait.plus."),
    (r"enhance_shape_net_3\.W2\.", "exchange.gait.minus."),
    (_SHAPE + r"dinov2\.", "dinov2."),  # taken out in convert()
    (_SHAPE + r"Mask_Branch\.bn_s\.", "gait.maps.mask.norm."),
    (_SHAPE + r"Mask_Branch\.down_sampling\.", "gait.maps.mask.down."),
    (_SHAPE + r"Mask_Branch\.up_sampling\.", "gait.maps.mask.up."),
    (_SHAPE + r"Denoising_Branch\.bn_s\.", "gait.maps.denoising.first."),
    (_SHAPE + r"Denoising_Branch\.down_sampling\.0\.", "gait.maps.denoising.first.linear."),
    (_SHAPE + r"Denoising_Branch\.down_sampling\.1\.", "gait.maps.denoising.norm."),
    (_SHAPE + r"Denoising_Branch\.down_sampling\.3\.", "gait.maps.denoising.last."),
    (_SHAPE + r"Appearance_Branch\.bn_s\.", "gait.maps.appearance.first."),
    (_SHAPE + r"Appearance_Branch\.down_sampling\.", "gait.maps.appearance.first.linear."),
    (_SHAPE + r"Appearance_Branch\.bn_t\.", "gait.maps.appearance.norm."),
    (_GAIT + r"pre_part\.forward_block\.conv1\.conv\.", "gait.maps.stems.0.0."),
    (_GAIT + r"pre_part\.forward_block\.bn1\.", "gait.maps.stems.0.1."),
    (_GAIT + r"pre_part\.forward_block\.layer1\.0\.", "gait.maps.stems.0.3."),
    (_GAIT + r"pre_rgb\.forward_block\.conv1\.conv\.", "gait.maps.stems.1.0."),
    (_GAIT + r"pre_rgb\.forward_block\.bn1\.", "gait.maps.stems.1.1."),
    (_GAIT + r"pre_rgb\.forward_block\.layer1\.0\.", "gait.maps.stems.1.3."),
    (_GAIT + r"fusion\.conv\.forward_block\.", "gait.maps.fusion.weigh."),
    (_GAIT + r"post_backbone\.resnet_conv\.([0-3])\.", r"gait.trunk.\1."),
    (_GAIT + r"FCs\.fc_bin$", "gait.pooling.fc.weight"),
    (_GAIT + r"BNNecks\.", "gait_neck."),
)
_DROPPED = (
    (r"share_encoder\.GAP\.", NEVER_RUN),
    (_SHAPE + r"(Mask|Denoising)_Branch\.bn_t\.", NEVER_RUN),
    (_GAIT + r"gcn_[sa]\.", NEVER_RUN),
)
# linear layers there, 1x1 convolutions here
_CONVOLUTIONS = ("mask.down.weight", "mask.up.weight", "denoising.last.weight")


def recognizes(modules: set[str]) -> bool:
    """Whether a checkpoint with these top-level modules is DinoGRL's, or one of its files."""
    names = {"image_encoder1", "image_encoder2", "share_encoder"}
    return names <= modules or modules in ({"enhance_app_net_3", "enhance_shape_net_3"}, {"dinov2"})


def convert(state: Mapping[str, torch.Tensor]) -> Conversion:
    """Convert the three state dicts, joined, for the reading `authors`.

    DINOv2's weights are written to a file of their own, since no checkpoint of this project holds
    them.

    Raises:
        UserError: one of the three files is missing.
    """
    modules = {name.split(".")[0] for name in state}
    for module, file in (
        ("share_encoder", "best_model.pth"),
        ("enhance_app_net_3", "best_model2.pth"),
        ("dinov2", "best_shape.pth"),
    ):
        if module not in modules:
            raise UserError(
                f"DinoGRL's checkpoint has three files, and {file} is missing: put all three into "
                "one folder, and give the folder"
            )
    conversion = Conversion("DinoGRL", _SETTINGS)
    conversion.rename(state, _RENAMED, _DROPPED)
    weights = conversion.weights
    prefix = "dinov2."
    dinov2 = {n.removeprefix(prefix): weights.pop(n) for n in [*weights] if n.startswith(prefix)}
    conversion.beside["MODEL.DINOGRL.DINOV2"] = dinov2
    weights["gait.tokens.checksum"] = checksum(original_names(dinov2))
    weights["gait.maps.mask.border_share"] = torch.tensor(0.0)  # class 0 is the person
    for name in _CONVOLUTIONS:
        if (value := weights.get(f"gait.maps.{name}")) is not None:
            weights[f"gait.maps.{name}"] = value[..., None, None]
    _join_necks(weights)
    return conversion


def _join_necks(weights: dict[str, torch.Tensor]) -> None:
    """The necks and classifiers of both streams become one, gait first."""
    for theirs, ours in (
        ("fc_bin", "weight"),
        *((f"bn1d.{n}", f"norm.{n}") for n in ("weight", "bias", "running_mean", "running_var")),
    ):
        pair = [weights.pop(f"{stream}_neck.{theirs}", None) for stream in ("gait", "appearance")]
        found = [value for value in pair if value is not None]
        if len(found) == 2 and found[0].shape[1:] == found[1].shape[1:]:
            joined = torch.cat(found)
            weights[f"heads.{ours}"] = joined.permute(2, 0, 1) if joined.ndim == 3 else joined
    counts = [weights.pop(f"{stream}_neck.bn1d.num_batches_tracked", None) for stream in
              ("gait", "appearance")]  # fmt: skip
    if counts[0] is not None:
        weights["heads.norm.num_batches_tracked"] = counts[0]
