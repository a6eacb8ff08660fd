"""DinoGRL: gait from DINOv2's tokens beside appearance."""

from fastreid_star.methods.dinogrl.config import TRAINING_KEYS, add_config
from fastreid_star.methods.dinogrl.exchange import Affinity, PartExchange
from fastreid_star.methods.dinogrl.layers import GaitMaps, MaskBranch
from fastreid_star.methods.dinogrl.losses import (
    MaskSmoothnessLoss,
    PartDiversityLoss,
    PartSmoothnessLoss,
    TokenReconstructionLoss,
)
from fastreid_star.methods.dinogrl.model import DinoGRL

__all__ = [
    "TRAINING_KEYS",
    "Affinity",
    "DinoGRL",
    "GaitMaps",
    "MaskBranch",
    "MaskSmoothnessLoss",
    "PartDiversityLoss",
    "PartExchange",
    "PartSmoothnessLoss",
    "TokenReconstructionLoss",
    "add_config",
]
