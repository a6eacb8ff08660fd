"""The modality-shared enhancement loss of PMT."""

from __future__ import annotations

import torch

from fastreid_star.modeling.losses.cross_modal import CrossModalLoss, mean_where, row_means
from fastreid_star.modeling.losses.loss import LOSS_REGISTRY
from fastreid_star.modeling.losses.pairing import distances


@LOSS_REGISTRY.register()
class SharedEnhancementLoss(CrossModalLoss):
    """MSEL: a row is as far from its identity's rows in the other modality as in its own."""

    log_name = "loss_shared"
    equation = (
        "mean_i (mean_{p in the other modality} d(f_i, f_p) - mean_{p in its own} d(f_i, f_p))^2, "
        "p other rows of i's identity"
    )
    source = "Lu et al., AAAI 2023 (PMT), weight 0.5"
    compares_identities = False

    def compute(
        self, features: torch.Tensor, targets: torch.Tensor, is_visible: torch.Tensor
    ) -> torch.Tensor:
        d = distances(features, features)
        same = targets[:, None] == targets
        own = same & (is_visible[:, None] == is_visible)
        across, itself = same & ~own, torch.eye(len(d), dtype=torch.bool, device=d.device)
        own = own & ~itself
        gaps = row_means(d, across) - row_means(d, own)
        return mean_where(gaps.square(), across.any(1) & own.any(1))
