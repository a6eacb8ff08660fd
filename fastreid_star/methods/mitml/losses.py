"""The losses of the modality classifier, and against it.

Shapes: B clips, T frames, N = B T frames.
"""

from __future__ import annotations

from typing import Any

import torch
from fastreid.config import CfgNode

from fastreid_star.methods.mitml.layers import CONFUSED
from fastreid_star.modeling.losses import LOSS_REGISTRY, Loss
from fastreid_star.modeling.losses.cross_entropy import modality_cross_entropy


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
