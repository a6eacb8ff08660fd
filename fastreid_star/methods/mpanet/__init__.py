"""MPANet: one network without modality, six parts by masks, classifiers that teach each other."""

from fastreid_star.methods.mpanet.config import TRAINING_KEYS, add_config
from fastreid_star.methods.mpanet.layers import ModalityAlleviation, ModalityClassifiers
from fastreid_star.methods.mpanet.losses import (
    MaskSeparationLoss,
    ModalityIdentityLoss,
    MutualLearningLoss,
)
from fastreid_star.methods.mpanet.model import MPANet

__all__ = [
    "TRAINING_KEYS",
    "MPANet",
    "MaskSeparationLoss",
    "ModalityAlleviation",
    "ModalityClassifiers",
    "ModalityIdentityLoss",
    "MutualLearningLoss",
    "add_config",
]
