"""The squared difference loss of CAJL."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from fastreid_star.modeling.losses.cross_modal import CrossModalLoss, mean_where
from fastreid_star.modeling.losses.loss import LOSS_REGISTRY
from fastreid_star.modeling.losses.weighted_triplet import weighted_gaps


@LOSS_REGISTRY.register()
class SquaredDifferenceLoss(CrossModalLoss):
    """Weighted triplets whose gap is squared, so that large violations weigh more.

    The published square is cut off at `cap`: the hardest triplets have no gradient. Ours continues
    along its tangent, with the largest gradient that the published one reaches.
    """

    log_name = "loss_squared_difference"
    equation = "mean softplus(sign(x) x^2), x = sum_p w_p d(a,p) - sum_n w_n d(a,n), w as in WRT"
    source = "Ye et al., ICCV 2021 (CAJL)"
    options = ("reading", "cap")
    reading = "stable"
    readings = ("stable", "published")
    cap = 88.0

    def compute(
        self, features: torch.Tensor, targets: torch.Tensor, is_visible: torch.Tensor
    ) -> torch.Tensor:
        gaps, usable = weighted_gaps(features, targets, self.reading)
        size, end = gaps.abs(), math.sqrt(self.cap)
        if self.reading == "published":
            squares = gaps.square().clamp(max=self.cap)
        else:  # the tangent is nowhere above the parabola
            within = size.clamp(max=end)
            squares = within.square() + 2 * end * (size - within)
        return mean_where(F.softplus(squares * gaps.sign()), usable)
