"""Supervised contrastive learning across modalities."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from fastreid_star.modeling.losses.cross_modal import CrossModalLoss, mean_where, row_means
from fastreid_star.modeling.losses.loss import LOSS_REGISTRY


@LOSS_REGISTRY.register()
class CrossModalContrastiveLoss(CrossModalLoss):
    """Each row finds its identity among all rows of the other modality."""

    log_name = "loss_contrastive"
    equation = (
        "mean_i mean_p -log softmax_j(cos(f_i, f_j) / temperature)_p, "
        "j all rows of the other modality, p those of i's identity"
    )
    source = "Khosla et al., NeurIPS 2020, with pairs across modalities only (ours)"
    options = ("temperature",)
    temperature = 0.07

    def compute(
        self, features: torch.Tensor, targets: torch.Tensor, is_visible: torch.Tensor
    ) -> torch.Tensor:
        unit = F.normalize(features, dim=1)
        across = is_visible[:, None] != is_visible
        positive = across & (targets[:, None] == targets)
        usable = positive.any(1)
        logits = unit @ unit.T / self.temperature
        logits = logits.masked_fill(~across & usable[:, None], -torch.inf)
        return mean_where(row_means(-logits.log_softmax(1), positive), usable)
