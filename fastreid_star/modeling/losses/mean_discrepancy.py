"""The maximum mean discrepancy between the modalities of an identity."""

from __future__ import annotations

import torch

from fastreid_star.modeling.losses.cross_modal import CrossModalLoss, mean_where
from fastreid_star.modeling.losses.loss import LOSS_REGISTRY
from fastreid_star.modeling.losses.pairing import centers, distances

KERNELS = 5  # their bandwidths are b/4, b/2, b, 2b, 4b
EPS = 1e-12  # smallest bandwidth


@LOSS_REGISTRY.register()
class MeanDiscrepancyLoss(CrossModalLoss):
    """MMD: an identity's visible and infrared rows have one distribution.

    b is the mean of d^2 over all pairs of different rows of the identity, detached. Identities with
    one modality are left out. MMD-ReID has a margin, whose published value was not found.
    """

    log_name = "loss_mmd"
    equation = (
        "mean_y max(0, mean K_vv + mean K_ii - 2 mean K_vi - margin), "
        "K = sum_k exp(-d^2 / (b 2^k / 4)), k = 0..4"
    )
    source = "Jambigi et al., BMVC 2021 (MMD-ReID)"
    options = ("margin",)
    margin = 0.0
    compares_identities = False

    def compute(
        self, features: torch.Tensor, targets: torch.Tensor, is_visible: torch.Tensor
    ) -> torch.Tensor:
        visible, infrared = (centers(features, targets, m) for m in (is_visible, ~is_visible))
        of_row = visible.of_row
        squares = distances(features, features).square()
        same = targets[:, None] == targets

        def per_identity(values: torch.Tensor) -> torch.Tensor:
            """Sums over the pairs of each identity, in the places of the centers."""
            rows = values.masked_fill(~same, 0).sum(1)
            return torch.zeros_like(rows).index_add(0, of_row, rows)

        counts = visible.counts + infrared.counts
        mean_square = per_identity(squares.detach()) / (counts * (counts - 1)).clamp(min=1)
        bandwidth = mean_square.clamp(min=EPS)[of_row][:, None]
        kernel = sum((-squares / (bandwidth * 2**k / 4)).exp() for k in range(KERNELS))
        # the mean over vv, ii and vi pairs is a sum with signed weights 1 / number of rows
        shares = [1 / each.counts.clamp(min=1)[of_row] for each in (visible, infrared)]
        weights = torch.where(is_visible, shares[0], -shares[1])
        found = per_identity(kernel * weights[:, None] * weights)
        both = (visible.counts > 0) & (infrared.counts > 0)
        return mean_where((found - self.margin).clamp(min=0), both)
