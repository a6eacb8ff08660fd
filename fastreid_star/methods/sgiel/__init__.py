"""SGIEL: features that a body shape says nothing about, beside the features themselves."""

from fastreid_star.methods.sgiel.config import TRAINING_KEYS, add_config
from fastreid_star.methods.sgiel.layers import ShapeHead, cutmix_donors, erase_shape
from fastreid_star.methods.sgiel.losses import (
    MixedCrossEntropyLoss,
    MutualDistillationLoss,
    ProjectionLoss,
    ShapeCrossEntropyLoss,
    ShapeErasureLoss,
)
from fastreid_star.methods.sgiel.model import SGIEL

__all__ = [
    "SGIEL",
    "TRAINING_KEYS",
    "MixedCrossEntropyLoss",
    "MutualDistillationLoss",
    "ProjectionLoss",
    "ShapeCrossEntropyLoss",
    "ShapeErasureLoss",
    "ShapeHead",
    "add_config",
    "cutmix_donors",
    "erase_shape",
]
