"""The losses of LbA beside the cross entropy and the triplet loss.

Park et al., "Learning by aligning: visible-infrared person re-identification using cross-modal
correspondences", ICCV 2021.

Shapes: N frames, R rows (frames or clips), C channels or identities, L = h w positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from fastreid.config import CfgNode, configurable

from fastreid_star.errors import UserError
from fastreid_star.methods.lba.layers import Alignment
from fastreid_star.modeling.losses import (
    LOSS_REGISTRY,
    CrossEntropyLoss,
    Loss,
    cross_entropy_loss,
)

READINGS = ("default", "release")


def dense_triplet_loss(
    alignment: Alignment,
    *,
    margin: float = 0.3,
    reading: str = "default",
    eps: float = 1e-12,
) -> torch.Tensor:
    """``mean c max(0, |x - r+| - |x - r-| + margin)`` over all positions of all usable frames.

    Distances are over the channels; their squares are clamped from below at `eps`, because the root
    has no gradient at 0. c is the co-mask of the frame. In the reading `release` it is the mean of
    the co-masks of the batch, as the authors' program computed it with the torch of its time.

    Args:
        alignment: see :class:`Alignment`.
        margin: of the distances.
        reading: one of `READINGS`.
    """
    x, positive, negative, co_mask, usable = alignment
    with torch.autocast(x.device.type, enabled=False):
        to_positive, to_negative = (
            (x - r).square().sum(1).clamp(min=eps).sqrt() for r in (positive, negative)
        )
        weights = co_mask.mean(0) if reading == "release" else co_mask
        losses = weights * (to_positive - to_negative + margin).clamp(min=0)
        return (losses.mean(1) * usable).sum() / usable.sum().clamp(min=1)


@LOSS_REGISTRY.register()
class DenseTripletLoss(Loss):
    """:func:`dense_triplet_loss` of the maps after stage 3 and after stage 4, summed.

    The default weight is 0.5.

    Args:
        reading: ``MODEL.LBA.READING``.
        kwargs: see :class:`Loss`.
    """

    needs = ("alignments",)
    log_name = "loss_dense"
    equation = "mean over the positions of c max(0, ||x - r+|| - ||x - r-|| + 0.3), at two stages"
    source = "Park et al., ICCV 2021 (LbA)"

    @configurable
    def __init__(self, *, reading: str = "default", **kwargs: Any):
        super().__init__(**kwargs)
        if reading not in READINGS:
            choices = ", ".join(READINGS)
            raise UserError(f"MODEL.LBA.READING is {reading!r}: choose one of {choices}")
        self.reading = reading

    @classmethod
    def from_config(cls, cfg: CfgNode, *, feat_dim: int) -> dict[str, Any]:
        options = {"reading": cfg.MODEL.LBA.READING, "weight": 0.5}
        return {**super().from_config(cfg, feat_dim=feat_dim), **options}

    def forward(self, alignments: Sequence[Alignment]) -> torch.Tensor:  # type: ignore[override]
        losses = [dense_triplet_loss(each, reading=self.reading) for each in alignments]
        return torch.stack(losses).sum()


@LOSS_REGISTRY.register()
class IdentityConsistencyLoss(CrossEntropyLoss):
    """Cross entropy of the rows that were rebuilt after stage 3 and after stage 4, summed."""

    needs = ("rebuilt_logits", "targets")
    log_name = "loss_cls_rebuilt"
    equation = "CE of rows that were rebuilt from the other modality, at two stages"
    source = "Park et al., ICCV 2021 (LbA)"
    from_start = False

    def forward(self, logits: Sequence[torch.Tensor], targets: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        options = {"epsilon": self.epsilon, "scale": self.scale}
        return torch.stack([cross_entropy_loss(each, targets, **options) for each in logits]).sum()
