"""MITML: an LSTM gates the frames of a clip, and a classifier of modalities is confused."""

from fastreid_star.methods.mitml.config import TRAINING_KEYS, add_config
from fastreid_star.methods.mitml.layers import ModalityClassifier
from fastreid_star.methods.mitml.losses import ModalityConfusionLoss, ModalityLoss
from fastreid_star.methods.mitml.model import MITML

__all__ = [
    "MITML",
    "TRAINING_KEYS",
    "ModalityClassifier",
    "ModalityConfusionLoss",
    "ModalityLoss",
    "add_config",
]
