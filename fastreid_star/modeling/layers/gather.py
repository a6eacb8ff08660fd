"""Gather the rows of all processes, with gradients, for losses over the whole batch."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist


class _Gather(torch.autograd.Function):
    """All shares in the order of the ranks.

    In the backward pass each rank gets the gradients of all ranks' losses for its share.
    """

    @staticmethod
    def forward(ctx: Any, share: torch.Tensor) -> torch.Tensor:
        ctx.rows = len(share)
        shares = [torch.empty_like(share) for _ in range(dist.get_world_size())]
        dist.all_gather(shares, share.contiguous())
        return torch.cat(shares)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        gradient = gradient.clone(
            memory_format=torch.contiguous_format
        )  # autograd may use it elsewhere
        dist.all_reduce(gradient)
        start = dist.get_rank() * ctx.rows
        return gradient[start : start + ctx.rows]


def all_rows(share: torch.Tensor) -> torch.Tensor:
    """Concatenate the rows ``[N, ...]`` of W processes to ``[W N, ...]``.

    With one process the input is returned.

    Every process must bring the same number of rows. A loss that each process takes of all rows
    has, after DistributedDataParallel's mean over the processes, the gradient it would have in one
    process: backwards the W equal gradients add up, and the mean divides by W.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return share
    return _Gather.apply(share)
