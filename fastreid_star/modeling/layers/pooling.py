"""Pooling as pure functions, and the precision they are computed in.

Shapes: B clips, T frames, D feature width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


def at_least_float32(x: torch.Tensor) -> torch.Tensor:
    """`x` in float32 if it has a half type, else unchanged; float64 stays float64."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def gem(x: torch.Tensor, p: float, dim: int, eps: float = 1e-12) -> torch.Tensor:
    """Generalized mean ``(mean(x^p) + eps)^(1/p)``: the mean at p = 1, near the maximum at large p.

    Computed in float32 whatever autocast says: a cube leaves the range of half types at once. `eps`
    is added after the mean, so that the outer root has a bounded gradient where a channel is 0 in
    all frames.

    Args:
        x: non-negative, any shape; for clips ``[B, T, D]``.
        p: the exponent, larger than 0.
        dim: the axis that is pooled; for clips 1.
        eps: keeps the root differentiable at 0.

    Returns:
        `x` without the axis `dim`; for clips ``[B, D]``.
    """
    return (at_least_float32(x).pow(p).mean(dim) + eps).pow(1.0 / p)


def pool_maps(maps: torch.Tensor, p: float = 1.0) -> torch.Tensor:
    """Pool maps ``[N, D, h, w]`` over h, w to non-negative features ``[N, D]``, float32 or wider.

    The mean, or with another exponent `p` the generalized mean. The temporal pooling raises
    features to a power, so they must not be negative. Backbones that end in a ReLU or ReLU6 give
    such features; those of EfficientNet (Swish) and of transformers (LayerNorm) are cut off at 0.
    """
    if p == 1:
        return F.relu(at_least_float32(maps).mean(dim=(2, 3)))
    return gem(F.relu(maps).flatten(2), p, dim=2)
