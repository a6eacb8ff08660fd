"""The center cluster loss of MPANet."""

from __future__ import annotations

import torch

from fastreid_star.modeling.losses.cross_modal import CrossModalLoss, mean_where, row_means
from fastreid_star.modeling.losses.loss import LOSS_REGISTRY
from fastreid_star.modeling.losses.pairing import centers, distances


@LOSS_REGISTRY.register()
class CenterClusterLoss(CrossModalLoss):
    """Rows are near the center of their identity, and centers at least `margin` apart."""

    log_name = "loss_center_cluster"
    equation = (
        "mean_i ||f_i - c_y(i)|| + mean_y mean_{j: y(j) != y} max(0, margin - ||c_y - c_y(j)||)"
    )
    source = "Wu et al., CVPR 2021 (MPANet)"
    options = ("margin",)
    margin = 0.7

    def compute(
        self, features: torch.Tensor, targets: torch.Tensor, is_visible: torch.Tensor
    ) -> torch.Tensor:
        found = centers(features, targets)
        pull = torch.linalg.vector_norm(features - found.features[found.of_row], dim=1).mean()
        to_rows = distances(found.features, found.features)[:, found.of_row]  # [center, row]
        other = found.targets[:, None] != targets
        push = row_means((self.margin - to_rows).clamp(min=0), other)
        return pull + mean_where(push, found.counts > 0)
