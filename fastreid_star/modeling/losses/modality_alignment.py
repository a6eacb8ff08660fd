"""Multi-modality alignment (MMA)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from fastreid_star.modeling.losses.cross_modal import CrossModalLoss
from fastreid_star.modeling.losses.loss import LOSS_REGISTRY

EPS = 1e-8  # smallest length of a vector in a cosine


def alignment(
    features: torch.Tensor, targets: torch.Tensor, is_visible: torch.Tensor
) -> torch.Tensor:
    """Multi-modality alignment (MMA): a query is nearer to its identity in the other modality.

    ``mean softplus(d_p - d_n)`` over the queries of a modality, then the mean over both modalities.
    d = (1 - cos) / 2 to the rows of the other modality; d_p and d_n are its means over those of the
    query's identity and over the others. Queries that lack one of both are left out, and so is a
    modality without queries; the loss is 0 if none is left.

    Args:
        features: ``[R, D]``, in float32 or wider.
        targets: ``[R]``, identities.
        is_visible: bool ``[R]``, on the device of `features`.
    """
    unit = F.normalize(features, dim=1, eps=EPS)
    distances = (1 - unit @ unit.T) / 2
    across = is_visible[:, None] != is_visible
    same = targets[:, None] == targets
    pairs = torch.stack([across & same, across & ~same]).to(distances.dtype)
    counts = pairs.sum(2)
    positive, negative = (distances * pairs).sum(2) / counts.clamp(min=1)
    usable = (counts > 0).all(0)
    losses = F.softplus(positive - negative)
    queries = torch.stack([usable & is_visible, usable & ~is_visible]).to(losses.dtype)
    means = (queries @ losses) / queries.sum(1).clamp(min=1)
    return means.sum() / (queries.sum(1) > 0).sum().clamp(min=1)


@LOSS_REGISTRY.register()
class ModalityAlignmentLoss(CrossModalLoss):
    """MMA: a clip is nearer to its identity in the other modality than to others there.

    M3-ReID's authors set ``MODEL.HEADS.NECK_FEAT after``.
    """

    log_name = "loss_align"
    equation = "mean softplus(mean_p d - mean_n d), d = (1 - cos)/2 to rows of the other modality"
    source = "Liang et al., TIFS 2025 (M3-ReID)"

    def compute(
        self, features: torch.Tensor, targets: torch.Tensor, is_visible: torch.Tensor
    ) -> torch.Tensor:
        return alignment(features, targets, is_visible)
