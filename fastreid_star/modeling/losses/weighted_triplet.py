"""The weighted regularized triplet loss (WRT)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from fastreid_star.modeling.losses.cross_modal import CrossModalLoss, mean_where
from fastreid_star.modeling.losses.loss import LOSS_REGISTRY
from fastreid_star.modeling.losses.pairing import distances
from fastreid_star.modeling.losses.triplet import weighted_distances


def _published_weights(x: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """The published softmax over the chosen entries of each row.

    Entries that are not chosen count as 0 in the maximum, and the denominator has 1e-6 more. So
    negatives, with x = -d, lose their weight where all d are larger than about 14.
    """
    largest = (x * chosen).max(1, keepdim=True).values
    exponentials = (x - largest).exp() * chosen
    return exponentials / (exponentials.sum(1, keepdim=True) + 1e-6)


def weighted_gaps(
    features: torch.Tensor, targets: torch.Tensor, reading: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """``sum_p w_p d - sum_n w_n d`` of each row, ``[R]``, and whether it has a negative, bool."""
    same = targets[:, None] == targets
    d = distances(features, features)
    if reading == "published":
        positive = (_published_weights(d, same) * d).sum(1)
        negative = (_published_weights(-d, ~same) * d).sum(1)
    else:
        positive, negative = weighted_distances(d, same)
    return positive - negative, ~same.all(1)


@LOSS_REGISTRY.register()
class WeightedTripletLoss(CrossModalLoss):
    """Weighted regularized triplet: all positives and negatives, hard ones weighing more.

    Both modalities are compared together. The published softmax loses its negatives at large
    distances; a masked softmax does not.
    """

    log_name = "loss_weighted_triplet"
    equation = (
        "mean softplus(sum_p w_p d(a,p) - sum_n w_n d(a,n)), w_p = softmax(d), w_n = softmax(-d)"
    )
    source = "Ye et al., TPAMI 2021 (AGW)"
    options = ("reading",)
    reading = "stable"
    readings = ("stable", "published")

    def compute(
        self, features: torch.Tensor, targets: torch.Tensor, is_visible: torch.Tensor
    ) -> torch.Tensor:
        gaps, usable = weighted_gaps(features, targets, self.reading)
        return mean_where(F.softplus(gaps), usable)
