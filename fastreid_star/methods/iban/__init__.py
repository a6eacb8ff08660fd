"""IBAN: anaglyphs of the frames guide the features by cross attention."""

from fastreid_star.methods.iban.config import TRAINING_KEYS, add_config
from fastreid_star.methods.iban.layers import CrossAttention, Reconstruction
from fastreid_star.methods.iban.losses import (
    AnaglyphCrossEntropyLoss,
    AnaglyphEasySampleLoss,
    AnaglyphTripletLoss,
    EasySampleLoss,
    ReconstructionLoss,
)
from fastreid_star.methods.iban.model import IBAN

__all__ = [
    "IBAN",
    "TRAINING_KEYS",
    "AnaglyphCrossEntropyLoss",
    "AnaglyphEasySampleLoss",
    "AnaglyphTripletLoss",
    "CrossAttention",
    "EasySampleLoss",
    "Reconstruction",
    "ReconstructionLoss",
    "add_config",
]
