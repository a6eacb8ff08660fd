"""The parts that :class:`~fastreid_star.methods.dinogrl.model.DinoGRL` is built from.

Shapes: B clips, T frames, N = B T frames, P parts of a stream, D width of a part.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from fastreid.config import CfgNode
from fastreid.modeling.heads import REID_HEADS_REGISTRY
from torch import nn

from fastreid_star.errors import UserError
from fastreid_star.methods.dinogrl.layers import GaitMaps
from fastreid_star.modeling.backbones.two_stream import TwoStreamBackbone
from fastreid_star.modeling.heads.clip_head import ClipHead
from fastreid_star.modeling.layers.frozen_tokens import FrozenTokens
from fastreid_star.modeling.layers.parts import SeparateLinear, horizontal_pyramid
from fastreid_star.weights import read_weights


class PartPooling(nn.Module):
    """Maps of frames to parts of clips: maximum over T, stripes, a linear layer for each.

    Args:
        channels: of the maps.
        width: D.
        bins: numbers of stripes.
    """

    def __init__(self, channels: int, width: int, bins: Sequence[int]):
        super().__init__()
        self.bins = tuple(bins)
        self.fc = SeparateLinear(sum(bins), channels, width)

    def pool(self, maps: torch.Tensor, clips: int, length: int) -> torch.Tensor:
        """Maps ``[N, C, h, w]`` of `clips` clips of `length` frames to stripes ``[B, P, C]``."""
        maps = maps.reshape(clips, length, *maps.shape[1:]).amax(1)
        return horizontal_pyramid(maps, self.bins)

    def forward(self, maps: torch.Tensor, clips: int, length: int) -> torch.Tensor:
        """Maps ``[N, C, h, w]`` of `clips` clips of `length` frames to ``[B, P, D]``."""
        return self.fc(self.pool(maps, clips, length))


class GaitStream(nn.Module):
    """Images to gait parts, and to what the losses of the silhouettes need.

    Args:
        tokens: the frozen transformer.
        maps: silhouettes and gait maps.
        trunk: stages of a backbone, ``[N, width, H, W]`` to the last maps.
        pooling: of the last maps.
    """

    def __init__(
        self, tokens: FrozenTokens, maps: GaitMaps, trunk: nn.Sequential, pooling: PartPooling
    ):
        super().__init__()
        self.tokens, self.maps, self.trunk, self.pooling = tokens, maps, trunk, pooling

    def forward(self, images: torch.Tensor, clips: int, length: int) -> dict[str, Any]:
        """Normalized images ``[N, 3, H, W]`` to `gait_parts` ``[B, P, D]`` and the named outputs of
        :class:`GaitMaps`."""
        outputs = self.maps(self.tokens(images), length)
        outputs["gait_parts"] = self.pooling(self.trunk(outputs.pop("gait_maps")), clips, length)
        return outputs


def build_gait(cfg: CfgNode, backbone: TwoStreamBackbone) -> GaitStream:
    """The gait stream; its trunk is a copy of the backbone's stages, weights included."""
    own = cfg.MODEL.DINOGRL
    tokens = FrozenTokens.build(own.DINOV2, own.GRID)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        image = torch.zeros(2, 3, *cfg.INPUT.SIZE_TRAIN)
        width = copy.deepcopy(backbone.visible_stem).eval()(image).shape[1]
    maps = GaitMaps(tokens.width, width, fixed_person=own.READING == "authors")
    if own.MASK_WEIGHTS:
        load_mask_branch(maps, own.MASK_WEIGHTS)
    trunk = nn.Sequential(*copy.deepcopy(backbone.stages))
    pooling = PartPooling(backbone.feature_width, cfg.MODEL.HEADS.EMBEDDING_DIM, own.BINS)
    return GaitStream(tokens, maps, trunk, pooling)


def load_mask_branch(maps: GaitMaps, path: str) -> None:
    """Load BigGait's mask branch, whose class 0 is the person.

    Raises:
        UserError: the file has no such weights, or they have another size.
    """
    state = read_weights(path)
    mask = maps.mask
    named = {
        "down.weight": state.get("down_sampling.weight"),
        "down.bias": state.get("down_sampling.bias"),
        "up.weight": state.get("up_sampling.weight"),
        "up.bias": state.get("up_sampling.bias"),
        "norm.running_mean": state.get("bn_s.running_mean"),
        "norm.running_var": state.get("bn_s.running_var"),
    }
    own = mask.state_dict()
    for name, value in named.items():
        if value is None or value.numel() != own[name].numel():
            raise UserError(
                f"MODEL.DINOGRL.MASK_WEIGHTS {path} has no {name} for tokens of width "
                f"{mask.norm.num_features}: it is not BigGait's mask branch for this DINOv2"
            )
        own[name].copy_(value.view_as(own[name]))
    mask.border_share.zero_()


def build_guide(cfg: CfgNode, feat_dim: int) -> ClipHead:
    """``MODEL.DINOGRL.GUIDE`` without its neck and classifier.

    Raises:
        UserError: it is not a head for clips, or there is no appearance stream.
    """
    own = cfg.MODEL.DINOGRL
    if own.STREAMS == "gait":
        raise UserError("MODEL.DINOGRL.GUIDE leads the appearance: set MODEL.DINOGRL.STREAMS both")
    head = REID_HEADS_REGISTRY._obj_map.get(own.GUIDE)
    if not (isinstance(head, type) and issubclass(head, ClipHead)):
        raise UserError(f"MODEL.DINOGRL.GUIDE is {own.GUIDE}, which is not a head for clips")
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.HEADS.EMBEDDING_DIM = 0
    guide = head(cfg, feat_dim=feat_dim)
    guide.bottleneck = nn.Identity()
    guide.weight = None
    return guide


def drop_relu(backbone: TwoStreamBackbone) -> None:
    """Take the ReLU out of both stems: the published program has forgotten it."""
    for stem in filter(None, (backbone.visible_stem, backbone.infrared_stem)):
        for name, module in stem.named_children():
            if isinstance(module, nn.ReLU):
                setattr(stem, name, nn.Identity())
