"""The losses of MPANet beside the cross entropy and the center cluster loss.

Wu et al., "Discover cross-modality nuances for visible-infrared person re-identification", CVPR
2021.

Shapes: N frames, R rows (frames or clips), K masks, C identities.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from fastreid.config import CfgNode

from fastreid_star.modeling.layers.pooling import at_least_float32
from fastreid_star.modeling.losses import LOSS_REGISTRY, Loss
from fastreid_star.modeling.losses.cross_entropy import modality_cross_entropy
from fastreid_star.modeling.losses.pairing import rows_are_visible


@LOSS_REGISTRY.register()
class MaskSeparationLoss(Loss):
    """``sum_hw m_k m_l``, mean over the frames and the pairs k < l: masks do not overlap.

    A sum over the positions, so it grows with the size of the maps. The default weight is 0.5.
    """

    needs = ("masks",)
    log_name = "loss_separation"
    equation = "sum_hw m_k m_l, mean over the frames and the pairs k < l of masks"
    source = "Wu et al., CVPR 2021 (MPANet)"

    @classmethod
    def from_config(cls, cfg: CfgNode, *, feat_dim: int) -> dict[str, Any]:
        return {**super().from_config(cfg, feat_dim=feat_dim), "weight": 0.5}

    def forward(self, masks: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """Masks ``[N, K, h, w]``."""
        with torch.autocast(masks.device.type, enabled=False):
            m = at_least_float32(masks).flatten(2)
            overlaps = (m @ m.transpose(1, 2)).mean(0).triu(1)
            return overlaps.sum() / max(m.shape[1] * (m.shape[1] - 1) / 2, 1)


@LOSS_REGISTRY.register()
class ModalityIdentityLoss(Loss):
    """Cross entropy of each row by the classifier of its modality: the mean over the visible rows
    plus the mean over the infrared ones."""

    needs = ("modality_logits", "targets", "is_visible")
    log_name = "loss_cls_modality"
    equation = "CE of the visible rows by one classifier + CE of the infrared rows by another"
    source = "Wu et al., CVPR 2021 (MPANet)"

    def forward(  # type: ignore[override]
        self, logits: torch.Tensor, targets: torch.Tensor, is_visible: torch.Tensor
    ) -> torch.Tensor:
        of_rows = rows_are_visible(is_visible, logits)
        return modality_cross_entropy(at_least_float32(logits), targets, of_rows)


@LOSS_REGISTRY.register()
class MutualLearningLoss(Loss):
    """``KL(p || q)``, mean over the rows: both modalities' classifiers agree on a row.

    p is the distribution by the classifier of the row's modality, q that by the slow copy of the
    other one, which has no gradient. The default weight is 2.5.
    """

    needs = ("modality_logits", "crossed_logits")
    log_name = "loss_mutual"
    equation = "mean KL(own modality's classifier || slow copy of the other one)"
    source = "Wu et al., CVPR 2021 (MPANet)"

    @classmethod
    def from_config(cls, cfg: CfgNode, *, feat_dim: int) -> dict[str, Any]:
        return {**super().from_config(cfg, feat_dim=feat_dim), "weight": 2.5}

    def forward(self, logits: torch.Tensor, crossed: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        log_p, log_q = (at_least_float32(x).log_softmax(1) for x in (logits, crossed))
        return F.kl_div(log_q.detach(), log_p, reduction="batchmean", log_target=True)
