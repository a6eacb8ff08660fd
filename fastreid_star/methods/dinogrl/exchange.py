"""The exchange between gait and appearance over body parts (PBMGE), in closed form.

An affinity of a query q and a key k, both of K numbers, reads each number as a position with one
channel::

    F_ij = <theta(q_i), phi(k_j)> / K
    E(q, k) = q + BN(W+ relu(F) g(k)) - BN(W- relu(-F) g(k))

theta, phi, g and W are linear layers 1 -> K or K -> 1 with a bias. So F_ij is a polynomial of q_i
and k_j with four coefficients, and W relu(F) g(k) needs two sums over j. The K x K x K products are
never computed.

Shapes: R rows, K numbers of a vector, B clips, P parts, D = K.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from fastreid_star.modeling.layers.pooling import at_least_float32


def affinity_sums(
    q: torch.Tensor, k: torch.Tensor, coefficients: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The sums over j of relu(F_ij) and relu(-F_ij), each times k_j and times 1.

    With the coefficients a, b, c and d, ``F_ij = (a q_i k_j + b q_i + c k_j + d) / K``. Only
    relu(F) is computed: relu(-F) = relu(F) - F, and the sums of F are sums of k.

    Args:
        q, k: ``[R, K]``.
        coefficients: ``[4]``, a to d.

    Returns:
        of relu(F) and of relu(-F): ``[R, K, 2]``, the sum times k_j first.
    """
    a, b, c, d = coefficients.unbind()
    # F_ij = slope_i k_j + offset_i
    slope, offset = (a * q + c) / k.shape[1], (b * q + d) / k.shape[1]
    keys = torch.stack([k, torch.ones_like(k)], dim=-1)
    positive = torch.relu(slope[:, :, None] * k[:, None] + offset[:, :, None]) @ keys
    moments = (k[..., None] * keys).sum(1, keepdim=True), keys.sum(1, keepdim=True)
    both = slope[..., None] * moments[0] + offset[..., None] * moments[1]
    return positive, positive - both


def line_of(layer: Any) -> torch.Tensor:
    """A linear layer 1 -> K as its K slopes and its K offsets, ``[2, K]``."""
    return torch.stack([layer.weight.flatten(), layer.bias])


class Affinity(nn.Module):
    """E(q, k), see the module's text. At the start it is q: both BatchNorms begin at 0.

    Args:
        width: K.
    """

    def __init__(self, width: int):
        super().__init__()
        self.theta = nn.Conv1d(1, width, 1)
        self.phi = nn.Conv1d(1, width, 1)
        self.g = nn.Conv1d(1, width, 1)
        self.plus = nn.Sequential(nn.Conv1d(width, 1, 1), nn.BatchNorm1d(1))
        self.minus = nn.Sequential(nn.Conv1d(width, 1, 1), nn.BatchNorm1d(1))
        for branch in (self.plus, self.minus):
            nn.init.zeros_(branch[1].weight)  # type: ignore[arg-type]
            nn.init.zeros_(branch[1].bias)  # type: ignore[arg-type]

    def forward(self, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        """q and k ``[R, K]`` to ``[R, K]``, in float32 or wider.

        The K x K values of relu(F) are computed again in the backward pass and not kept.
        """
        with torch.autocast(q.device.type, enabled=False):
            q, k = at_least_float32(q), at_least_float32(k)
            theta, phi = line_of(self.theta), line_of(self.phi)
            coefficients = (theta @ phi.T).flatten()
            if torch.is_grad_enabled():
                sums = checkpoint(
                    affinity_sums, q, k, coefficients, use_reentrant=False, preserve_rng_state=False
                )
            else:
                sums = affinity_sums(q, k, coefficients)
            plus, minus = self._joined(sums[0], self.plus), self._joined(sums[1], self.minus)
            return q + plus - minus

    def _joined(self, sums: torch.Tensor, branch: nn.Sequential) -> torch.Tensor:
        """W relu(F) g(k) from the sums ``[R, K, 2]``, and its BatchNorm: ``[R, K]``."""
        conv: Any = branch[0]
        weight, bias = conv.weight.flatten(), conv.bias
        return branch[1]((sums @ (line_of(self.g) @ weight) + bias)[:, None])[:, 0]


class PartExchange(nn.Module):
    """Each stream's global part asks the other stream's parts, granularity by granularity.

    For every number of stripes above 1, the first parts u and v of both streams walk over the
    stripes from top to bottom: u becomes E(u, stripe of the appearance) and v becomes E(v, stripe
    of the gait). The walked u and v are appended to the parts of their streams.

    Args:
        width: D.
        bins: numbers of stripes, the first of which is 1.
    """

    def __init__(self, width: int, bins: Sequence[int]):
        super().__init__()
        self.bins = tuple(bins)
        self.gait = Affinity(width)
        self.appearance = Affinity(width)

    def forward(
        self, gait: torch.Tensor, appearance: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Parts ``[B, P, D]`` of both streams to ``[B, P + len(bins) - 1, D]`` each."""
        gait, appearance = at_least_float32(gait), at_least_float32(appearance)
        walked: list[tuple[torch.Tensor, torch.Tensor]] = []
        first = self.bins[0]
        for count in self.bins[1:]:
            u, v = gait[:, 0], appearance[:, 0]
            for part in range(first, first + count):
                u, v = self.gait(u, appearance[:, part]), self.appearance(v, gait[:, part])
            walked.append((u, v))
            first += count
        if not walked:
            return gait, appearance
        us, vs = (torch.stack(each, dim=1) for each in zip(*walked, strict=True))
        return torch.cat([gait, us], dim=1), torch.cat([appearance, vs], dim=1)
