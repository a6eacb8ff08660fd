"""Channel attention, gray images and the Sinkhorn distance of VCD.

Shapes: N images, C channels or classes, H x W pixels, h x w positions, R and Q rows of two sets.
"""

from __future__ import annotations

import torch
from torch import nn

from fastreid_star.modeling.layers.colors import color
from fastreid_star.modeling.layers.pooling import at_least_float32

LUMA = (0.2989, 0.5870, 0.1140)


def gray(images: torch.Tensor) -> torch.Tensor:
    """The luma of normalized images ``[N, 3, H, W]``, in all three channels."""
    return (images * color(LUMA, images)).sum(1, keepdim=True).expand_as(images)


class ChannelAttention(nn.Module):
    """``x + g softmax(-X X^T) X``: each channel takes something of those that are unlike it.

    Fu et al., "Dual attention network for scene segmentation", CVPR 2019. X is x with its
    positions as one axis. The scale g starts at 0, so that the layer starts as the identity.
    """

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps ``[N, C, h, w]`` to maps of this shape."""
        with torch.autocast(x.device.type, enabled=False):  # products are not scaled
            flat = at_least_float32(x).flatten(2)
            unlike = -flat @ flat.transpose(1, 2)
            unlike = unlike - unlike.detach().amax(-1, keepdim=True)
            # weights below e^-30 are lost in float32, but their subnormal products slow a CPU down
            mixture = unlike.clamp(min=-30).softmax(-1) @ flat
            return (x + self.scale * mixture.view_as(x)).to(x.dtype)


def sinkhorn_distance(
    x: torch.Tensor,
    y: torch.Tensor,
    *,
    eps: float = 0.01,
    steps: int = 20,
    tolerance: float = 0.1,
) -> torch.Tensor:
    """The cost of moving one set of rows to another, with squared Euclidean costs.

    Cuturi, "Sinkhorn distances: lightspeed computation of optimal transport", NIPS 2013, in
    logarithms. All rows of a set weigh the same. Once the potentials of the first set change by
    less than `tolerance` in sum, they stay: no step depends on a number that is on the device.

    Args:
        x, y: ``[R, C]`` and ``[Q, C]``.
        eps: of the entropy.
        steps: at most.
        tolerance: see above.
    """
    cost = (x[:, None] - y).square().sum(-1)
    u, v = x.new_zeros(len(x)), y.new_zeros(len(y))
    weight_u, weight_v = (-x.new_tensor(float(len(rows))).log() for rows in (x, y))
    done = torch.zeros((), dtype=torch.bool, device=x.device)

    def exponent(u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return (u[:, None] + v - cost) / eps

    for _ in range(steps):
        next_u = u + eps * (weight_u - exponent(u, v).logsumexp(1))
        next_v = v + eps * (weight_v - exponent(next_u, v).logsumexp(0))
        change = (next_u - u).detach().abs().sum()
        u, v = torch.where(done, u, next_u), torch.where(done, v, next_v)
        done = done | (change < tolerance)
    return (exponent(u, v).exp() * cost).sum()
