"""LbA: frames are rebuilt from the other modality by dense correspondences of their maps."""

from fastreid_star.methods.lba.config import TRAINING_KEYS, add_config
from fastreid_star.methods.lba.layers import Alignment, align_modalities
from fastreid_star.methods.lba.losses import DenseTripletLoss, IdentityConsistencyLoss
from fastreid_star.methods.lba.model import LbA

__all__ = [
    "TRAINING_KEYS",
    "Alignment",
    "DenseTripletLoss",
    "IdentityConsistencyLoss",
    "LbA",
    "add_config",
    "align_modalities",
]
