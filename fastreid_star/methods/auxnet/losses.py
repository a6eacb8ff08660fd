"""The loss of the auxiliary set, and its weight."""

from __future__ import annotations

import math

from fastreid_star.modeling.losses import LOSS_REGISTRY, TripletLoss

AUXILIARY_OUTPUTS = ("auxiliary_clip", "auxiliary_targets")


def auxiliary_weight(epoch: int, epochs: int) -> float:
    """The share of the auxiliary loss: ``(cos(pi e / E) + 3) / 8``, from 0.5 down to 0.25.

    Args:
        epoch: e, counted from 0.
        epochs: E, the number of epochs of the run.
    """
    return (math.cos(math.pi * epoch / epochs) + 3) / 8


@LOSS_REGISTRY.register()
class AuxiliaryTripletLoss(TripletLoss):
    """The triplet loss of the clips of the auxiliary set, options as for the others'."""

    needs = AUXILIARY_OUTPUTS
    log_name = "loss_auxiliary"
    equation = "the triplet loss of the auxiliary set"
    source = "Du et al., TIFS 2024 (AuxNet)"
