"""The losses of the modality classifier, and against it.

Shapes: B clips, T frames, N = B T frames.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from fastreid.config import CfgNode

from fastreid_star.methods.mitml.layers import CONFUSED
from fastreid_star.modeling.losses import LOSS_REGISTRY, Loss


def modality_cross_entropy(
    logits: torch.Tensor, labels: torch.Tensor, is_visible: torch.Tensor
) -> torch.Tensor:
    """Cross entropy, the mean over the visible clips plus the mean over the infrared ones.

    Args:
        logits: ``[B, 3]``.
        labels: ``[B]``, classes, on the device of `logits`.
        is_visible: bool ``[B]``, on the host.
    """
    counts = torch.where(is_visible, is_visible.sum(), (~is_visible).sum())
    weights = (1 / counts.to(logits.dtype)).to(logits.device, non_blocking=True)
    return (F.cross_entropy(logits, labels, reduction="none") * weights).sum()


@LOSS_REGISTRY.register()
class ModalityLoss(Loss):
    """The loss of the modality classifier, for the log: its own optimizer has already used it.

    Without this loss the classifier does not learn.
    """

    needs = ("modality_loss",)
    log_name = "loss_modality"
    equation = "CE of the modality classifier, which its own optimizer minimizes"
    source = "Lin et al., CVPR 2022 (MITML)"

    def forward(self, loss: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return loss


@LOSS_REGISTRY.register()
class ModalityConfusionLoss(Loss):
    """Cross entropy of the clips' modalities with a third class for all clips.

    Its gradients pass through the classifier to the clips. It begins in the epoch
    ``MODEL.MITML.CONFUSION_EPOCH``.
    """

    needs = ("confusion_logits", "is_visible")
    log_name = "loss_confusion"
    equation = "CE of the modality classifier with a third class for all clips"
    source = "Lin et al., CVPR 2022 (MITML)"

    @classmethod
    def from_config(cls, cfg: CfgNode, *, feat_dim: int) -> dict[str, Any]:
        first = {"first_epoch": cfg.MODEL.MITML.CONFUSION_EPOCH}
        return {**super().from_config(cfg, feat_dim=feat_dim), **first}

    def forward(self, logits: torch.Tensor, is_visible: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        labels = torch.full((len(logits),), CONFUSED, device=logits.device)
        of_clips = is_visible[:: len(is_visible) // len(logits)]
        return modality_cross_entropy(logits, labels, of_clips)
