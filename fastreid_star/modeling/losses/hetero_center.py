"""The hetero-center loss."""

from __future__ import annotations

import torch

from fastreid_star.modeling.losses.cross_modal import CrossModalLoss
from fastreid_star.modeling.losses.loss import LOSS_REGISTRY
from fastreid_star.modeling.losses.pairing import centers


@LOSS_REGISTRY.register()
class HeteroCenterLoss(CrossModalLoss):
    """The visible and the infrared center of an identity are near each other.

    It pulls only, so it needs a loss that separates identities beside it.
    """

    log_name = "loss_hetero_center"
    equation = "sum_y max(0, ||c_y^v - c_y^i||^2 - margin)"
    source = "Zhu et al., Neurocomputing 2020 (HC)"
    options = ("margin",)
    margin = 0.1
    compares_identities = False

    def compute(
        self, features: torch.Tensor, targets: torch.Tensor, is_visible: torch.Tensor
    ) -> torch.Tensor:
        visible, infrared = (centers(features, targets, m) for m in (is_visible, ~is_visible))
        both = (visible.counts > 0) & (infrared.counts > 0)
        squares = (visible.features - infrared.features).square().sum(1)
        return (squares - self.margin).clamp(min=0).masked_fill(~both, 0).sum()
