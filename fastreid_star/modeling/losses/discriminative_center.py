"""The discriminative center loss of PMT."""

from __future__ import annotations

import torch

from fastreid_star.modeling.losses.cross_modal import CrossModalLoss, mean_where, row_means
from fastreid_star.modeling.losses.loss import LOSS_REGISTRY
from fastreid_star.modeling.losses.pairing import centers, distances

EPS = 1e-6  # smallest mean distance to the negatives


@LOSS_REGISTRY.register()
class DiscriminativeCenterLoss(CrossModalLoss):
    """DCL: the ratio of distances to an identity's own rows and to the near rows of others.

    A negative is near if its distance to the center is at most the mean over the center's
    negatives.
    """

    log_name = "loss_discriminative"
    equation = "mean_i d(c_y(i), f_i) / mean_y mean_{near n} d(c_y, f_n)"
    source = "Lu et al., AAAI 2023 (PMT), weight 0.5"

    def compute(
        self, features: torch.Tensor, targets: torch.Tensor, is_visible: torch.Tensor
    ) -> torch.Tensor:
        found = centers(features, targets)
        d = distances(found.features, features)  # [P, R]
        own = found.targets[:, None] == targets
        limit = row_means(d, ~own)[:, None]
        near = ~own & (d <= limit * (1 + 1e-6))  # equal distances are near, whatever their rounding
        usable = near.any(1)
        apart = mean_where(row_means(d, near), usable)
        return torch.where(usable.any(), mean_where(d, own) / apart.clamp(min=EPS), 0)
