"""VCD: three networks, and representations that keep what their observations tell."""

from fastreid_star.methods.vcd.config import TRAINING_KEYS, add_config
from fastreid_star.methods.vcd.heads import BranchHead
from fastreid_star.methods.vcd.layers import ChannelAttention, sinkhorn_distance
from fastreid_star.methods.vcd.losses import (
    BranchCrossEntropyLoss,
    BranchRankLoss,
    CrossDistillationLoss,
    SelfDistillationLoss,
    SinkhornLoss,
)
from fastreid_star.methods.vcd.model import VCD

__all__ = [
    "TRAINING_KEYS",
    "VCD",
    "BranchCrossEntropyLoss",
    "BranchHead",
    "BranchRankLoss",
    "ChannelAttention",
    "CrossDistillationLoss",
    "SelfDistillationLoss",
    "SinkhornLoss",
    "add_config",
    "sinkhorn_distance",
]
