"""The losses that methods share. Each is a class in LOSS_REGISTRY around a pure function."""

from fastreid_star.modeling.losses.cross_entropy import (
    CrossEntropyLoss,
    FrameCrossEntropyLoss,
    cross_entropy_loss,
)
from fastreid_star.modeling.losses.loss import LOSS_REGISTRY, Loss, build_losses, outputs_needed
from fastreid_star.modeling.losses.part_triplet import PartTripletLoss, part_triplet_loss
from fastreid_star.modeling.losses.triplet import TripletLoss, triplet_loss

__all__ = [
    "LOSS_REGISTRY",
    "CrossEntropyLoss",
    "FrameCrossEntropyLoss",
    "Loss",
    "PartTripletLoss",
    "TripletLoss",
    "build_losses",
    "cross_entropy_loss",
    "outputs_needed",
    "part_triplet_loss",
    "triplet_loss",
]
