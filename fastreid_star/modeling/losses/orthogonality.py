"""Different frames of a clip."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from fastreid_star.modeling.layers.pooling import at_least_float32
from fastreid_star.modeling.losses.loss import LOSS_REGISTRY, Loss

EPS = 1e-8  # smallest length of a vector in a cosine


def separation(x: torch.Tensor) -> torch.Tensor:
    """Mean of cos^2 over all pairs of different vectors of a set, and over the sets; 0 for one.

    Args:
        x: ``[..., K, D]``: sets of K vectors.
    """
    with torch.autocast(x.device.type, enabled=False):
        unit = F.normalize(at_least_float32(x), dim=-1, eps=EPS)
        number = unit.shape[-2]
        others = 1 - torch.eye(number, dtype=unit.dtype, device=unit.device)
        squares = (unit @ unit.transpose(-1, -2)).square() * others
        return squares.sum((-1, -2)).mean() / max(number * (number - 1), 1)


@LOSS_REGISTRY.register()
class OrthogonalityLoss(Loss):
    """:func:`separation` of the frames of each clip, before the neck."""

    needs: tuple[str, ...] = ("frames",)
    log_name = "loss_orthogonal"
    equation = "mean over the clips and pairs s != t of cos^2(x_s, x_t)"
    source = "Liang et al., TIFS 2025 (M3-ReID), there after the neck"

    def forward(self, frames: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return separation(frames)
