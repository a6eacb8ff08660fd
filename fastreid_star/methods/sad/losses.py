"""The losses of the style attack: its frames keep their identity, and their features."""

from __future__ import annotations

import torch

from fastreid_star.modeling.layers.pooling import at_least_float32
from fastreid_star.modeling.losses import LOSS_REGISTRY, CrossEntropyLoss, Loss


def defense_loss(x: torch.Tensor, attacked: torch.Tensor, eps: float = 1e-12) -> torch.Tensor:
    """Mean over the frames of the L2 distance between the clean and the attacked feature.

    No side is detached. The squared distance is clamped from below at `eps`, because the square
    root has an infinite slope at 0: the gradient of a frame that the attack did not change is 0,
    that of any other frame is a unit vector.

    Args:
        x, attacked: ``[..., D]``.
    """
    difference = at_least_float32(x) - at_least_float32(attacked)
    return difference.square().sum(-1).clamp(min=eps).sqrt().mean()


@LOSS_REGISTRY.register()
class StyleAttackLoss(CrossEntropyLoss):
    """Cross entropy of the attacked frames' logits; options as for the clips' cross entropy."""

    needs = ("attacked_logits", "frame_targets")
    log_name = "loss_cls_attack"
    from_start = False


@LOSS_REGISTRY.register()
class StyleDefenseLoss(Loss):
    """:func:`defense_loss` of the clean and the attacked frames."""

    needs = ("frames", "attacked_frames")
    log_name = "loss_defense"

    def forward(self, frames: torch.Tensor, attacked: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return defense_loss(frames, attacked)
