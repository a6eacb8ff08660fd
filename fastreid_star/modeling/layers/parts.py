"""Horizontal parts of maps, masks of maps, and a layer of weights for each part.

Shapes: B clips, P parts, D width, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from fastreid_star.modeling.layers.pooling import at_least_float32


def horizontal_pyramid(maps: torch.Tensor, bins: Sequence[int]) -> torch.Tensor:
    """Horizontal pyramid pooling: mean + maximum of each of 1, 2, 4, ... stripes of a map.

    Fu et al., "Horizontal pyramid matching for person re-identification", AAAI 2019. Stripe i of g
    has the rows from floor(i H / g) to ceil((i + 1) H / g), so any height will do.

    Args:
        maps: ``[B, C, H, W]``.
        bins: numbers of stripes; their sum is P.

    Returns:
        ``[B, P, C]``, float32 or wider; for each number of stripes from top to bottom.
    """
    maps = at_least_float32(maps)
    mean, largest = maps.mean(3), maps.amax(3)
    parts = [
        mean[:, :, rows].mean(2) + largest[:, :, rows].amax(2)
        for count in bins
        for rows in _stripes(int(maps.shape[2]), count)
    ]
    return torch.stack(parts, dim=1)


def horizontal_means(maps: torch.Tensor, count: int) -> torch.Tensor:
    """The mean of each horizontal stripe, whose rows are those of :func:`horizontal_pyramid`.

    Args:
        maps: ``[B, C, H, W]``.
        count: P, number of stripes.

    Returns:
        ``[B, P, C]`` from top to bottom, float32 or wider.
    """
    mean = at_least_float32(maps).mean(3)
    stripes = _stripes(int(maps.shape[2]), count)
    return torch.stack([mean[:, :, rows].mean(2) for rows in stripes], dim=1)


def _stripes(height: int, count: int) -> list[slice]:
    """The rows of each of `count` stripes; they overlap where they do not divide the height."""
    return [slice(i * height // count, -((i + 1) * -height // count)) for i in range(count)]


class PartMasks(nn.Module):
    """Masks of the parts of a frame: ``sigmoid(conv1x1(x))``, the bias starts at 0.

    Args:
        width: C.
        parts: P.
    """

    def __init__(self, width: int, parts: int):
        super().__init__()
        self.conv = nn.Conv2d(width, parts, kernel_size=1)
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type] # there is a bias

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Maps ``[B, C, H, W]`` to masks ``[B, P, H, W]``, from 0 to 1."""
        return at_least_float32(self.conv(maps)).sigmoid()


def masked_gem(
    maps: torch.Tensor, masks: torch.Tensor, p: float = 3.0, eps: float = 1e-12
) -> torch.Tensor:
    """Generalized mean under each mask, ``(mean_hw((m_k x)^p) + eps)^(1/p)``.

    As (m x)^p = m^p x^p, it is one product of matrices. Computed in float32 or wider, also
    under autocast: a cube leaves the range of half types at once.

    Args:
        maps: x ``[B, C, H, W]``, non-negative; of both signs if p is 1.
        masks: m ``[B, P, H, W]``, non-negative.
        p: the exponent; 1: the mean.
        eps: keeps the root differentiable at 0.

    Returns:
        ``[B, P, C]``.
    """
    with torch.autocast(maps.device.type, enabled=False):
        x, m = (at_least_float32(each).flatten(2) for each in (maps, masks))
        if p == 1:
            return m @ x.transpose(1, 2) / x.shape[2]
        return (m.pow(p) @ x.pow(p).transpose(1, 2) / x.shape[2] + eps).pow(1 / p)


class SeparateLinear(nn.Module):
    """A linear layer without bias for each part.

    Args:
        parts: P.
        inputs, outputs: channels.
    """

    def __init__(self, parts: int, inputs: int, outputs: int):
        super().__init__()
        # torch counts the fans of a tensor of three axes as a convolution's: so did the programs
        # that this layer comes from
        self.weight = nn.Parameter(nn.init.xavier_uniform_(torch.zeros(parts, inputs, outputs)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[B, P, inputs]`` to ``[B, P, outputs]``."""
        return torch.matmul(x.transpose(0, 1), self.weight).transpose(0, 1)
