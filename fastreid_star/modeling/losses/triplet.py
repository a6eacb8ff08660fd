"""Triplet loss on clip features."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from fastreid.config import CfgNode, configurable
from fastreid.modeling import losses as fastreid_losses
from fastreid.modeling.losses.utils import cosine_dist, euclidean_dist

from fastreid_star.modeling.layers.gather import all_rows
from fastreid_star.modeling.layers.pooling import at_least_float32
from fastreid_star.modeling.losses.loss import LOSS_REGISTRY, Loss


def triplet_loss(
    features: torch.Tensor,
    targets: torch.Tensor,
    *,
    margin: float = 0.3,
    norm_feat: bool = False,
    hard_mining: bool = True,
    scale: float = 1.0,
    all_ranks: bool = False,
) -> torch.Tensor:
    """fast-reid's triplet loss, ``max(0, margin + d(a, p) - d(a, n))``, times `scale`.

    With `hard_mining`, p is the farthest clip of a's identity in the batch and n the nearest clip
    of another identity; without it, d(a, p) and d(a, n) are means over all positives and all
    negatives, weighed by :func:`weighted_distances`. Both modalities are mined together. Autocast
    is switched off: ``d^2 = |a|^2 + |b|^2 - 2ab`` loses all its digits in half precision.

    Args:
        features: ``[B, D]``, before BatchNorm.
        targets: ``[B]``, identities.
        margin: of the distances.
        norm_feat: use the cosine distance in place of the Euclidean one.
        hard_mining: mine the hardest positive and negative; otherwise weigh all of them.
        scale: a factor.
        all_ranks: with several processes, mine in the whole batch and not in each process's share.
    """
    if all_ranks:
        features, targets = all_rows(at_least_float32(features)), all_rows(targets)
    with torch.autocast(features.device.type, enabled=False):
        features = at_least_float32(features)
        if hard_mining:
            loss = fastreid_losses.triplet_loss(features, targets, margin, norm_feat, True)
        else:
            distance = cosine_dist if norm_feat else euclidean_dist
            same = targets[:, None] == targets
            positive, negative = weighted_distances(distance(features, features), same)
            if margin > 0:
                loss = F.relu(positive - negative + margin).mean()
            else:
                loss = F.softplus(positive - negative).mean()
    return scale * loss


def weighted_distances(
    distances: torch.Tensor, same: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean distance of each row to its positives and to its negatives, hard ones weighing more.

    The weights are softmax(d) over the positives and softmax(-d) over the negatives, as in
    "Deep learning for person re-identification: a survey and outlook" (Ye et al., TPAMI 2021).
    fast-reid subtracts the wrong maximum, so that its negatives lose their weight beyond a distance
    of about 15; a masked softmax does not.

    Args:
        distances: ``[N, N]``.
        same: bool ``[N, N]``, whether two rows have the same identity.

    Returns:
        ``[N]`` each; 0 for a row without a negative.
    """
    weights = distances.masked_fill(~same, float("-inf")).softmax(1)
    positive = (weights * distances).sum(1)
    has_negative = ~same.all(1, keepdim=True)
    logits = (-distances).masked_fill(same & has_negative, float("-inf"))
    negative = (logits.softmax(1) * distances * ~same).sum(1)
    return positive, negative


@LOSS_REGISTRY.register()
class TripletLoss(Loss):
    """:func:`triplet_loss` of the clip features.

    Args:
        options: keyword arguments of :func:`triplet_loss`; ``MODEL.LOSSES.TRI``.
        kwargs: see :class:`Loss`.
    """

    needs = ("clip_features", "targets")
    log_name = "loss_triplet"
    equation = "mean max(0, margin + max_p d(a,p) - min_n d(a,n)); MODEL.LOSSES.TRI"
    source = "Hermans et al., 2017 (batch-hard)"
    compares_identities = True

    @configurable
    def __init__(self, *, options: dict[str, Any] | None = None, **kwargs: Any):
        super().__init__(**kwargs)
        self.arguments = dict(options or {})

    @classmethod
    def from_config(cls, cfg: CfgNode, *, feat_dim: int) -> dict[str, Any]:
        node = cfg.MODEL.LOSSES.TRI
        options = {
            "margin": node.MARGIN,
            "norm_feat": node.NORM_FEAT,
            "hard_mining": node.HARD_MINING,
            "scale": node.SCALE,
            "all_ranks": node.ALL_RANKS,
        }
        return {**super().from_config(cfg, feat_dim=feat_dim), "options": options}

    def forward(self, features: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return triplet_loss(features, targets, **self.arguments)
