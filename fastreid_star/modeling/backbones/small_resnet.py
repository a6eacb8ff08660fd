"""A ResNet for small frames and few cores, for the demo, the tests and the synthetic benchmark."""

from __future__ import annotations

import torch
from fastreid.config import CfgNode
from fastreid.layers import get_norm
from fastreid.modeling.backbones import BACKBONE_REGISTRY
from fastreid.modeling.backbones.resnet import BasicBlock
from torch import nn

from fastreid_star.errors import UserError
from fastreid_star.modeling.backbones.splits import BackboneSplit, register_split

WIDTHS = {"tiny": (16, 32, 64, 128), "small": (32, 64, 128, 256)}


class SmallResNet(nn.Module):
    """Four stages of one residual block each, behind a 3x3 stem of stride 2 without max-pooling.

    A 64x32 frame leaves stage 1 as 32x16, stage 2 as 16x8, stage 3 as 8x4 and stage 4 as 8x4 or,
    with `last_stride` 2, as 4x2.

    Args:
        widths: channels of the four stages.
        last_stride: stride of stage 4, 1 or 2.
        norm: fast-reid's name of the normalization, e.g. ``BN``.
    """

    def __init__(self, *, widths: tuple[int, int, int, int], last_stride: int, norm: str):
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], kernel_size=3, stride=2, padding=1, bias=False)
        self.bn1 = get_norm(norm, widths[0])
        self.relu = nn.ReLU(inplace=True)
        strides = (1, 2, 2, last_stride)
        inputs = (widths[0], *widths[:-1])
        sizes = zip(inputs, widths, strides, strict=True)
        self.stages = nn.Sequential(*(_block(i, o, stride, norm) for i, o, stride in sizes))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images ``[N, 3, H, W]`` to maps ``[N, widths[-1], h, w]``."""
        return self.stages(self.relu(self.bn1(self.conv1(x))))


def _block(inputs: int, outputs: int, stride: int, norm: str) -> BasicBlock:
    shortcut = None
    if stride != 1 or inputs != outputs:
        shortcut = nn.Sequential(
            nn.Conv2d(inputs, outputs, kernel_size=1, stride=stride, bias=False),
            get_norm(norm, outputs),
        )
    return BasicBlock(inputs, outputs, norm, stride=stride, downsample=shortcut)


@register_split(SmallResNet)
def _split(backbone: SmallResNet) -> BackboneSplit:
    return BackboneSplit(
        nn.Sequential(backbone.conv1, backbone.bn1, backbone.relu), list(backbone.stages)
    )


@BACKBONE_REGISTRY.register()
def build_small_resnet_backbone(cfg: CfgNode) -> SmallResNet:
    """``MODEL.BACKBONE.NAME: build_small_resnet_backbone``, with ``DEPTH: tiny`` (128 features) or
    ``small`` (256).

    Raises:
        UserError: another depth, or pretrained weights are asked for: there are none.
    """
    node = cfg.MODEL.BACKBONE
    if node.DEPTH not in WIDTHS:
        raise UserError(
            f"MODEL.BACKBONE.DEPTH is {node.DEPTH}: the small ResNet has {', '.join(WIDTHS)}"
        )
    if node.PRETRAIN:
        raise UserError(
            "MODEL.BACKBONE.PRETRAIN: there are no weights for the small ResNet; set it to False"
        )
    return SmallResNet(widths=WIDTHS[node.DEPTH], last_stride=node.LAST_STRIDE, norm=node.NORM)
