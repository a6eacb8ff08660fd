"""Horizontal parts of maps, and a layer of weights for each part.

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
    height = int(maps.shape[2])
    parts = []
    for count in bins:
        for i in range(count):
            rows = slice(i * height // count, -((i + 1) * -height // count))
            parts.append(mean[:, :, rows].mean(2) + largest[:, :, rows].amax(2))
    return torch.stack(parts, dim=1)


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
