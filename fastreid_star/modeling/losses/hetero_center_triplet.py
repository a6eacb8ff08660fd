"""The hetero-center triplet loss."""

from __future__ import annotations

import torch

from fastreid_star.modeling.losses.cross_modal import CrossModalLoss, mean_where
from fastreid_star.modeling.losses.loss import LOSS_REGISTRY
from fastreid_star.modeling.losses.pairing import centers, distances


@LOSS_REGISTRY.register()
class HeteroCenterTripletLoss(CrossModalLoss):
    """Batch-hard triplet loss of the centers of each identity and modality."""

    log_name = "loss_hetero_triplet"
    equation = (
        "mean over the centers c_y^m of max(0, margin + max_p d(c, p) - min_n d(c, n)), "
        "p and n among the centers of the same and of other identities"
    )
    source = "Liu et al., TMM 2021 (HCT)"
    options = ("margin",)
    margin = 0.3

    def compute(
        self, features: torch.Tensor, targets: torch.Tensor, is_visible: torch.Tensor
    ) -> torch.Tensor:
        found = [centers(features, targets, m) for m in (is_visible, ~is_visible)]
        rows = torch.cat([each.features for each in found])
        labels = torch.cat([each.targets for each in found])
        exists = torch.cat([each.counts for each in found]) > 0
        d = distances(rows, rows)
        same, known = labels[:, None] == labels, exists[:, None] & exists
        negative = known & ~same
        farthest = d.masked_fill(~(known & same), 0).amax(1)
        usable = negative.any(1)
        nearest = d.masked_fill(~(negative | ~usable[:, None]), torch.inf).amin(1)
        return mean_where((self.margin + farthest - nearest).clamp(min=0), usable)
