"""Non-local blocks: each position of a clip attends to all positions of the clip.

Shapes: B clips, T frames, N = B T frames, C channels, c inner channels, L = T h w positions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from fastreid.layers import get_norm
from torch import nn


class NonLocal(nn.Module):
    """``x + BN(W (softmax(theta(x) phi(x)^T) g(x)))``, theta, phi, g and W linear.

    Wang et al., "Non-local neural networks", CVPR 2018, the embedded Gaussian form. The products
    are not scaled. The scale of the BatchNorm starts at 0, so that a new block returns x.

    The attention is torch's fused one, which does not keep the L x L weights where the device has a
    kernel for it.

    Args:
        channels: C.
        reduction: C / c.
        norm: fast-reid's name of the normalization, e.g. ``BN``.
    """

    def __init__(self, channels: int, *, reduction: int = 4, norm: str = "BN"):
        super().__init__()
        inner = max(channels // reduction, 1)
        self.theta, self.phi, self.g = (nn.Conv2d(channels, inner, 1) for _ in range(3))
        out, last = nn.Conv2d(inner, channels, 1), get_norm(norm, channels)
        self.out = nn.Sequential(out, last)
        for layer in (self.theta, self.phi, self.g, out):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type] # there is a bias
        nn.init.zeros_(last.weight)

    def forward(self, x: torch.Tensor, length: int = 1) -> torch.Tensor:
        """Maps ``[N, C, h, w]`` to maps of this shape.

        Args:
            x: the frames of a clip follow each other.
            length: T. With 1, each frame attends to itself: the block for images.
        """
        height, width = x.shape[2:]
        positions = length * height * width
        q, k, v = (
            layer(x).flatten(2).transpose(1, 2).reshape(-1, 1, positions, layer.out_channels)
            for layer in (self.theta, self.phi, self.g)
        )
        # [B, 1, L, c]: the fused kernels are for four axes, and there is one head
        y = F.scaled_dot_product_attention(q, k, v, scale=1.0)
        y = y.reshape(-1, height * width, y.shape[3]).transpose(1, 2)
        return x + self.out(y.reshape(-1, y.shape[1], height, width))
