"""The losses of the baseline, as functions of features, logits and labels.

All are computed in float32 or wider, whatever autocast says. Shapes: B clips, T frames, D feature width, C classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from fastreid.modeling import losses as fastreid_losses
from fastreid.utils.events import get_event_storage

from fastreid_star.modeling.gather import all_rows
from fastreid_star.modeling.pooling import at_least_float32


def cross_entropy_loss(
    logits: torch.Tensor, targets: torch.Tensor, *, epsilon: float = 0.0, scale: float = 1.0
) -> torch.Tensor:
    """Softmax cross entropy, mean over the rows, times `scale`.

    `epsilon` smooths the labels as torch does: its share is spread over all C classes (fast-reid spreads it over
    the C - 1 wrong ones).

    Args:
        logits: ``[N, C]``.
        targets: ``[N]``, class indices.
    """
    return scale * F.cross_entropy(at_least_float32(logits), targets, label_smoothing=epsilon)


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

    With `hard_mining` p is the farthest clip of a's identity in the batch and n the nearest of another. Both
    modalities are mined together. Outside autocast: d^2 = |a|^2 + |b|^2 - 2ab cancels to noise in half precision.

    Args:
        features: ``[B, D]``, before BatchNorm.
        targets: ``[B]``, identities.
        norm_feat: cosine distance in place of the Euclidean one.
        all_ranks: with several processes mine in the whole batch; False: in this process's share of it.
    """
    if all_ranks:
        features, targets = all_rows(at_least_float32(features)), all_rows(targets)
    with torch.autocast(features.device.type, enabled=False):
        loss = fastreid_losses.triplet_loss(
            at_least_float32(features), targets, margin, norm_feat, hard_mining
        )
    return scale * loss


def defense_loss(x: torch.Tensor, x_attacked: torch.Tensor, eps: float = 1e-12) -> torch.Tensor:
    """Mean over frames of the L2 distance between the clean and the attacked feature, neither side detached.

    The squared distance is clamped from below at `eps`: sqrt has an infinite slope at 0, and 0 times infinity
    would make the gradient of a frame that the attack left alone NaN. There it is 0, elsewhere a unit vector.

    Args:
        x, x_attacked: ``[..., D]``.
    """
    difference = at_least_float32(x) - at_least_float32(x_attacked)
    return difference.square().sum(-1).clamp(min=eps).sqrt().mean()


def log_accuracy(logits: torch.Tensor, targets: torch.Tensor) -> None:
    """Put the share of right classes into fast-reid's event storage, as `cls_accuracy`, if one is open."""
    try:
        get_event_storage()
    except AssertionError:  # fast-reid's way to say that none is
        return
    fastreid_losses.log_accuracy(logits.detach(), targets)
