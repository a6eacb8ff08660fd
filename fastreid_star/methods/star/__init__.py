"""STAR: bones correct the frame features, body parts add to the pooled clip feature."""

from fastreid_star.methods.star.config import TRAINING_KEYS, add_config
from fastreid_star.methods.star.heads import GATGeMHead
from fastreid_star.methods.star.layers import BoneEncoder, BoneReader, SkeletonFrameCorrector
from fastreid_star.methods.star.losses import (
    AbsentSkeletonLoss,
    PoseConsistencyLoss,
    SkeletonConsistencyLoss,
)
from fastreid_star.methods.star.model import STAR

__all__ = [
    "STAR",
    "TRAINING_KEYS",
    "AbsentSkeletonLoss",
    "BoneEncoder",
    "BoneReader",
    "GATGeMHead",
    "PoseConsistencyLoss",
    "SkeletonConsistencyLoss",
    "SkeletonFrameCorrector",
    "add_config",
]
