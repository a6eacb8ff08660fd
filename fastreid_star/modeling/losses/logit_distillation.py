"""Distillation between the modalities' class distributions."""

from __future__ import annotations

import torch

from fastreid_star.modeling.layers.pooling import at_least_float32
from fastreid_star.modeling.losses.cross_modal import mean_where, row_means
from fastreid_star.modeling.losses.loss import LOSS_REGISTRY, Loss
from fastreid_star.modeling.losses.pairing import rows_are_visible


@LOSS_REGISTRY.register()
class LogitDistillationLoss(Loss):
    """Each clip learns the class distributions of its identity in the other modality.

    SGIEL pairs the n-th clips of an identity; the mean over all pairs, here, is what that is on
    average, and does not depend on the order. CAJL has a temperature of 3, and the infrared clips
    alone teach.
    """

    needs = ("clip_logits", "targets", "is_visible")
    log_name = "loss_distill"
    equation = (
        "T^2 (mean over the visible + mean over the infrared clips of mean_p KL(t_p || s)), "
        "s = softmax(z / T), t_p those of the identity in the other modality, detached"
    )
    source = "Feng et al., CVPR 2023 (SGIEL)"
    options = ("temperature",)
    temperature = 1.0

    def forward(  # type: ignore[override]
        self, logits: torch.Tensor, targets: torch.Tensor, is_visible: torch.Tensor
    ) -> torch.Tensor:
        """Logits ``[R, C]``, or ``[R, P, C]`` of parts, whose mean is taken."""
        of_rows = rows_are_visible(is_visible, logits)
        with torch.autocast(logits.device.type, enabled=False):
            z = at_least_float32(logits).reshape(len(logits), -1, logits.shape[-1])
            log_s = (z / self.temperature).log_softmax(-1).flatten(1)
            log_t = log_s.detach()
            t = log_t.exp()
            divergence = ((t * log_t).sum(1) - log_s @ t.T) / z.shape[1]  # [student, teacher]
            across = (targets[:, None] == targets) & (of_rows[:, None] != of_rows)
            each, found = row_means(divergence, across), across.any(1)
            halves = (mean_where(each, found & half) for half in (of_rows, ~of_rows))
            return self.temperature**2 * sum(halves, start=z.new_zeros(()))
