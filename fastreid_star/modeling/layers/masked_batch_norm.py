"""BatchNorm for rows of which some are missing."""

from __future__ import annotations

import torch
from torch import nn

from fastreid_star.modeling.layers.pooling import at_least_float32


class MaskedBatchNorm(nn.BatchNorm1d):
    """BatchNorm whose statistics leave out missing values; its output is 0 there.

    Zeros in place of missing skeletons would pull the statistics of the others towards 0. Without
    missing values it equals `BatchNorm1d`, whose parameters it has. A channel with fewer than two
    values in a batch keeps its running statistics: one value has no variance.
    """

    running_mean: torch.Tensor
    running_var: torch.Tensor
    num_batches_tracked: torch.Tensor
    momentum: float

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """Normalize each column, in float32 or wider.

        Args:
            x: ``[R, C]``.
            mask: bool ``[R, C]`` or ``[R, 1]``, False where a value is missing.
        """
        x = at_least_float32(x)
        mean, var = self.running_mean, self.running_var
        if self.training:
            weight = mask.to(x.dtype).expand_as(x)
            total = weight.sum(0)
            count = total.clamp(min=1)
            mean = (x * weight).sum(0) / count
            var = ((x - mean).square() * weight).sum(0) / count
            unbiased = var.detach() * count / (count - 1).clamp(min=1)
            self._update(mean.detach(), unbiased, total > 1)
        y = (x - mean) * (var + self.eps).rsqrt()
        if self.affine:
            y = y * self.weight + self.bias
        return y.masked_fill(~mask, 0)

    @torch.no_grad()
    def _update(self, mean: torch.Tensor, variance: torch.Tensor, seen: torch.Tensor) -> None:
        step = seen.to(mean.dtype) * self.momentum
        self.running_mean += step * (mean - self.running_mean)
        self.running_var += step * (variance - self.running_var)
        self.num_batches_tracked += 1
