"""Triplet loss of each part, over all triplets of a batch."""

from __future__ import annotations

from typing import Any

import torch
from fastreid.config import CfgNode, configurable

from fastreid_star.modeling.layers.gather import all_rows
from fastreid_star.modeling.layers.pooling import at_least_float32
from fastreid_star.modeling.losses.loss import LOSS_REGISTRY, Loss


def part_distances(parts: torch.Tensor, eps: float = 1e-12) -> torch.Tensor:
    """Euclidean distances of all rows, part by part: ``[B, P, D]`` to ``[P, B, B]``.

    Squared distances are clamped from below at `eps`: the root has no gradient at 0.
    """
    x = parts.transpose(0, 1)
    squares = x.square().sum(-1)
    products = x @ x.transpose(1, 2)
    return (squares[:, :, None] + squares[:, None] - 2 * products).clamp(min=eps).sqrt()


def part_triplet_loss(
    parts: torch.Tensor, targets: torch.Tensor, *, margin: float = 0.2, all_ranks: bool = False
) -> torch.Tensor:
    """``max(0, margin + d(a, p) - d(a, n))`` over all triplets of each part.

    p runs over all rows of a's identity, a itself included, and n over all rows of other
    identities; both modalities together. Of each part the mean is taken over the triplets above 0,
    then the mean over the parts. Autocast is switched off: squared distances lose their digits in
    half precision.

    Args:
        parts: ``[B, P, D]``.
        targets: ``[B]``, identities.
        margin: of the distances.
        all_ranks: with several processes, over the whole batch and not over each process's share.
    """
    with torch.autocast(parts.device.type, enabled=False):
        parts = at_least_float32(parts)
        if all_ranks:
            parts, targets = all_rows(parts.contiguous()), all_rows(targets)
        distances = part_distances(parts)
        same = targets[:, None] == targets
        valid = same[:, :, None] & ~same[:, None]  # [a, p, n]
        losses = distances[..., None] - distances[:, :, None] + margin  # [P, a, p, n]
        losses = losses.clamp(min=0).masked_fill(~valid, 0).flatten(1)
        return (losses.sum(1) / (losses > 0).sum(1).clamp(min=1)).mean()


@LOSS_REGISTRY.register()
class PartTripletLoss(Loss):
    """:func:`part_triplet_loss` of the clip features ``[B, P, D]``.

    Args:
        margin, all_ranks: ``MODEL.LOSSES.TRI``.
        kwargs: see :class:`Loss`.
    """

    needs = ("clip", "targets")
    log_name = "loss_triplet"
    equation = (
        "mean over the triplets above 0 of max(0, margin + d(a,p) - d(a,n)), mean over the parts"
    )
    source = "Hermans et al., 2017 (batch-all)"
    compares_identities = True

    @configurable
    def __init__(self, *, margin: float = 0.2, all_ranks: bool = False, **kwargs: Any):
        super().__init__(**kwargs)
        self.margin, self.all_ranks = margin, all_ranks

    @classmethod
    def from_config(cls, cfg: CfgNode, *, feat_dim: int) -> dict[str, Any]:
        node = cfg.MODEL.LOSSES.TRI
        options = {"margin": node.MARGIN, "all_ranks": node.ALL_RANKS}
        return {**super().from_config(cfg, feat_dim=feat_dim), **options}

    def forward(self, parts: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return part_triplet_loss(parts, targets, margin=self.margin, all_ranks=self.all_ranks)
