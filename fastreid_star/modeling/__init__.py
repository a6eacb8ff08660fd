"""The networks: importing this package registers the meta-architectures and heads with fast-reid."""

from fastreid_star.modeling.backbone_splits import BackboneSplit, register_split, split_backbone
from fastreid_star.modeling.frame_corrector import BoneEncoder, FrameCorrector
from fastreid_star.modeling.gat_gem_head import GATGeMHead
from fastreid_star.modeling.heads import ClipHead, FrameHead
from fastreid_star.modeling.sad import SAD
from fastreid_star.modeling.small_resnet import SmallResNet
from fastreid_star.modeling.star import STAR
from fastreid_star.modeling.two_stream import TwoStreamBackbone, build_two_stream

__all__ = [
    "SAD",
    "STAR",
    "BackboneSplit",
    "BoneEncoder",
    "ClipHead",
    "FrameCorrector",
    "FrameHead",
    "GATGeMHead",
    "SmallResNet",
    "TwoStreamBackbone",
    "build_two_stream",
    "register_split",
    "split_backbone",
]
