"""AuxNet: the two-stream baseline of BUPTCampus' authors, with or without an auxiliary set."""

from fastreid_star.methods.auxnet.config import TRAINING_KEYS, add_config
from fastreid_star.methods.auxnet.losses import AuxiliaryTripletLoss, auxiliary_weight
from fastreid_star.methods.auxnet.model import AuxNet

__all__ = ["TRAINING_KEYS", "AuxNet", "AuxiliaryTripletLoss", "add_config", "auxiliary_weight"]
