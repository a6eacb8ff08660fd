"""SAD: the two-stream baseline with style augmentation, attack and defense; SAADG with graphs."""

from fastreid_star.methods.sad.config import TRAINING_KEYS, add_config
from fastreid_star.methods.sad.losses import (
    GraphInteractionLoss,
    StyleAttackLoss,
    StyleDefenseLoss,
    defense_loss,
)
from fastreid_star.methods.sad.model import SAD

__all__ = [
    "SAD",
    "TRAINING_KEYS",
    "GraphInteractionLoss",
    "StyleAttackLoss",
    "StyleDefenseLoss",
    "add_config",
    "defense_loss",
]
