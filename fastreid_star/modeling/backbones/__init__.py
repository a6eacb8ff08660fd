"""Backbones with one stem for each modality, and a small ResNet for small frames."""

from fastreid_star.modeling.backbones.dinov2 import Dinov2
from fastreid_star.modeling.backbones.small_resnet import SmallResNet
from fastreid_star.modeling.backbones.splits import BackboneSplit, register_split, split_backbone
from fastreid_star.modeling.backbones.two_stream import TwoStreamBackbone, build_two_stream

__all__ = [
    "BackboneSplit",
    "Dinov2",
    "SmallResNet",
    "TwoStreamBackbone",
    "build_two_stream",
    "register_split",
    "split_backbone",
]
