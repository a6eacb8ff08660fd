"""DDAG: attention over three stripes of a frame, and a graph of the rows of each identity."""

from fastreid_star.methods.ddag.config import TRAINING_KEYS, add_config
from fastreid_star.methods.ddag.layers import EpochWeight, StripeAttention
from fastreid_star.methods.ddag.losses import IdentityGraphLoss, StripeCrossEntropyLoss
from fastreid_star.methods.ddag.model import DDAG

__all__ = [
    "DDAG",
    "TRAINING_KEYS",
    "EpochWeight",
    "IdentityGraphLoss",
    "StripeAttention",
    "StripeCrossEntropyLoss",
    "add_config",
]
