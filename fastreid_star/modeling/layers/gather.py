"""Gather the rows of all processes, with gradients, for losses over the whole batch."""

from __future__ import annotations

import torch
import torch.distributed as dist


def all_rows(share: torch.Tensor) -> torch.Tensor:
    """Concatenate the rows ``[N, ...]`` of W processes, N of each, to ``[W N, ...]``.

    With one process the input is returned. If each process takes the same loss of all rows, the
    model has after DistributedDataParallel's mean over the processes the gradient that it would
    have in one process: only the own rows pass gradients on, and these are multiplied by W.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return share
    shares = [torch.empty_like(share) for _ in range(dist.get_world_size())]
    dist.all_gather(shares, share.detach().contiguous())
    own = share.clone()
    if own.requires_grad:
        own.register_hook(lambda gradient: len(shares) * gradient)
    shares[dist.get_rank()] = own
    return torch.cat(shares)
