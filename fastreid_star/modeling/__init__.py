"""What the methods share. Importing this package registers its parts with fast-reid."""

from fastreid_star.modeling.backbones import (
    BackboneSplit,
    SmallResNet,
    TwoStreamBackbone,
    register_split,
)
from fastreid_star.modeling.frame_correctors import FRAME_CORRECTOR_REGISTRY, FrameCorrectorBase
from fastreid_star.modeling.heads import ClipHead, FrameHead
from fastreid_star.modeling.losses import LOSS_REGISTRY, Loss
from fastreid_star.modeling.video_reid import VideoReID

__all__ = [
    "FRAME_CORRECTOR_REGISTRY",
    "LOSS_REGISTRY",
    "BackboneSplit",
    "ClipHead",
    "FrameCorrectorBase",
    "FrameHead",
    "Loss",
    "SmallResNet",
    "TwoStreamBackbone",
    "VideoReID",
    "register_split",
]
