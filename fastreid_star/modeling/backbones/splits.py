"""Where each family of backbones is cut into a stem and four stages.

The stem is what a modality keeps to itself; the style attack strikes after stage 2 and after stage
3. In a ResNet those are the maps at 1/8 and 1/16 of the image's size, and so they are in the other
convolutional families, but for OSNet, whose own numbering is kept. A split holds the backbone's own
modules in the backbone's own order, so that stem and stages compute what the backbone does, bit for
bit. A family of your own::

    @register_split(MyBackbone)
    def split_my_backbone(net):
        return BackboneSplit(stem=net.stem, stages=[net.s1, net.s2, net.s3, net.s4])

Shapes: N frames; maps ``[N, C, H, W]``, tokens ``[N, L, D]``.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from fastreid.modeling.backbones.mobilenet import MobileNetV2
from fastreid.modeling.backbones.mobilenetv3 import MobileNetV3
from fastreid.modeling.backbones.osnet import OSNet
from fastreid.modeling.backbones.regnet.effnet import EffNet
from fastreid.modeling.backbones.regnet.regnet import AnyNet
from fastreid.modeling.backbones.repvgg import RepVGG
from fastreid.modeling.backbones.resnest import ResNeSt
from fastreid.modeling.backbones.resnet import ResNet
from fastreid.modeling.backbones.resnext import ResNeXt
from fastreid.modeling.backbones.shufflenet import ShuffleNetV2
from fastreid.modeling.backbones.vision_transformer import VisionTransformer
from torch import nn

from fastreid_star.errors import UserError


@dataclass(frozen=True)
class BackboneSplit:
    """A backbone as a stem and four stages.

    Args:
        stem: images ``[N, 3, H, W]`` to the input of the first stage.
        stages: four modules; the last one gives maps ``[N, D, h, w]``.
        spatial_dims: the axes of the output of stages 2 and 3 that positions run over: what the
            statistics of a style are taken over. (2, 3) for maps, (1,) for tokens.
    """

    stem: nn.Module
    stages: list[nn.Module]
    spatial_dims: tuple[int, ...] = (2, 3)

    def __post_init__(self) -> None:
        if len(self.stages) != 4:
            raise ValueError(f"a split has {len(self.stages)} stages: it must have four")


_SPLITS: dict[type, Callable[[Any], BackboneSplit]] = {}
_Split = TypeVar("_Split", bound=Callable[[Any], BackboneSplit])


def register_split(*classes: type) -> Callable[[_Split], _Split]:
    """Decorate a function ``backbone -> BackboneSplit`` to make it the split of these classes.

    A subclass is split as its base is, unless it has a split of its own.
    """

    def register(split: _Split) -> _Split:
        _SPLITS.update(dict.fromkeys(classes, split))
        return split

    return register


def split_backbone(backbone: nn.Module) -> BackboneSplit:
    """Cut a fast-reid backbone into a stem and four stages.

    Raises:
        UserError: no split is registered for the class of `backbone`.
    """
    for cls in type(backbone).__mro__:
        if cls in _SPLITS:
            return _SPLITS[cls](backbone)
    name = type(backbone).__name__
    raise UserError(
        f"no split into a stem and four stages is known for the backbone {name}: decorate a "
        "function that returns a BackboneSplit with "
        f"@fastreid_star.modeling.register_split({name})"
    )


def _interleave_non_local(backbone: nn.Module, stage: int) -> nn.Sequential:
    """Layer `stage` with its non-local blocks, in the order of fast-reid's forward()."""
    modules = []
    # forward() fills in -1
    follows = [index for index in getattr(backbone, f"NL_{stage}_idx") if index >= 0]
    for index, block in enumerate(getattr(backbone, f"layer{stage}")):
        modules.append(block)
        if index in follows:
            modules.append(getattr(backbone, f"NL_{stage}")[follows.index(index)])
    return nn.Sequential(*modules)


@register_split(ResNet)
def split_resnet(net: ResNet) -> BackboneSplit:
    stem = nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool)
    return BackboneSplit(stem, [_interleave_non_local(net, stage) for stage in (1, 2, 3, 4)])


@register_split(ResNeXt)
def split_resnext(net: ResNeXt) -> BackboneSplit:
    stem = nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool1)
    return BackboneSplit(stem, [_interleave_non_local(net, stage) for stage in (1, 2, 3, 4)])


@register_split(ResNeSt)
def split_resnest(net: ResNeSt) -> BackboneSplit:
    # net.drop exists but forward() never calls it
    stem = nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool)
    return BackboneSplit(stem, [net.layer1, net.layer2, net.layer3, net.layer4])


@register_split(OSNet)
def split_osnet(net: OSNet) -> BackboneSplit:
    # conv2 and conv3 end in a pooling, at 1/8 and 1/16; conv4 stays there, conv5 is 1x1
    stem = nn.Sequential(net.conv1, net.maxpool)
    return BackboneSplit(stem, [net.conv2, net.conv3, net.conv4, net.conv5])


def _split_at_strides(features: nn.Sequential, strided: list[int]) -> list[nn.Sequential]:
    """``features[1:]`` in four parts; parts 2 to 4 begin at the 2nd to 4th halving of the map."""
    bounds = [1, *strided[1:], len(features)]
    return [cast(nn.Sequential, features[start:end]) for start, end in itertools.pairwise(bounds)]


@register_split(MobileNetV2)
def split_mobilenet_v2(net: MobileNetV2) -> BackboneSplit:
    strided = [
        index
        for index, block in enumerate(net.features)
        if index > 0 and any(isinstance(m, nn.Conv2d) and m.stride[0] == 2 for m in block.modules())
    ]
    *stages, last = _split_at_strides(net.features, strided)
    return BackboneSplit(net.features[0], [*stages, nn.Sequential(*last, net.conv)])


@register_split(MobileNetV3)
def split_mobilenet_v3(net: MobileNetV3) -> BackboneSplit:
    strided = [index for index, block in enumerate(net.features) if getattr(block, "_is_cn", False)]
    *stages, last = _split_at_strides(net.features, strided)
    return BackboneSplit(net.features[0], [*stages, nn.Sequential(*last, net.conv)])


@register_split(ShuffleNetV2)
def split_shufflenet_v2(net: ShuffleNetV2) -> BackboneSplit:
    # Three groups of blocks, at 1/8, 1/16 and 1/32. The first is shared out over stages 1 and 2.
    first, second, _ = net.stage_repeats
    blocks = net.features
    stages = [blocks[: first // 2], blocks[first // 2 : first], blocks[first : first + second]]
    last = nn.Sequential(*blocks[first + second :], net.conv_last)
    return BackboneSplit(nn.Sequential(net.first_conv, net.maxpool), [*stages, last])


@register_split(RepVGG)
def split_repvgg(net: RepVGG) -> BackboneSplit:
    return BackboneSplit(net.stage0, [net.stage1, net.stage2, net.stage3, net.stage4])


@register_split(AnyNet)  # RegNet X and Y
def split_regnet(net: AnyNet) -> BackboneSplit:
    stem, *stages = net.children()
    return BackboneSplit(stem, stages)


@register_split(EffNet)
def split_efficientnet(net: EffNet) -> BackboneSplit:
    # Seven groups of blocks, ending at 1/2, 1/4, 1/8, 1/16, 1/16, 1/32, 1/32.
    stages = [(net.s1, net.s2), (net.s3,), (net.s4, net.s5), (net.s6, net.s7, net.head)]
    return BackboneSplit(net.stem, [nn.Sequential(*stage) for stage in stages])


class PatchTokens(nn.Module):
    """A vision transformer up to its blocks.

    Images ``[N, 3, H, W]`` become tokens ``[N, 1 + L, D]``, with the class token first.
    """

    def __init__(self, net: VisionTransformer):
        super().__init__()
        self.patch_embed = net.patch_embed
        self.cls_token = net.cls_token
        self.pos_embed = net.pos_embed
        self.pos_drop = net.pos_drop

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        patches = self.patch_embed(images)
        tokens = torch.cat((self.cls_token.expand(images.shape[0], -1, -1), patches), dim=1)
        return self.pos_drop(tokens + self.pos_embed)


class ClassToken(nn.Module):
    """Tokens ``[N, 1 + L, D]`` to the class token as a map of one position, ``[N, D, 1, 1]``."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens[:, 0].reshape(tokens.shape[0], -1, 1, 1)


@register_split(VisionTransformer)
def split_vit(net: VisionTransformer) -> BackboneSplit:
    if net.cam_num > 0:
        raise UserError(
            "a vision transformer with camera embeddings cannot be split: build it with camera=0"
        )
    depth = len(net.blocks)
    bounds = [depth * quarter // 4 for quarter in range(5)]
    stages = [nn.Sequential(*net.blocks[a:b]) for a, b in itertools.pairwise(bounds)]
    stages[-1] = nn.Sequential(*stages[-1], net.norm, ClassToken())
    return BackboneSplit(PatchTokens(net), [*stages], spatial_dims=(1,))
