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
        d, exists = distances(found.features, features), found.counts > 0  # [center, row]
        same = found.targets[:, None] == targets
        limit = row_means(d, ~same)[:, None]
        near = ~same & (d <= limit * (1 + 1e-6))  # equal distances are near, if they round apart
        usable = exists & near.any(1)
        apart = mean_where(row_means(d, near), usable)
        own = mean_where(d, same & exists[:, None])
        return torch.where(usable.any(), own / apart.clamp(min=EPS), 0)
