"""A step of an optimizer that belongs to a model, taken within the model's forward pass.

Some methods train a part of the network against the rest: a classifier learns from the features of
a batch, and the rest then learns from the classifier. Such a model overrides
:attr:`VideoReID.own_optimizer`. The trainer saves and restores this optimizer with the run's, and
undoes its step if the batch turns out not to be finite.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist


def step_alone(optimizer: torch.optim.Optimizer, loss: Callable[[], torch.Tensor]) -> torch.Tensor:
    """Take a step of `optimizer` with the gradients of a loss, averaged over the processes.

    Its parameters require gradients only meanwhile. So the run's optimizer and
    DistributedDataParallel ignore them, and gradients of other losses pass through them unchanged.

    Args:
        optimizer: of parameters that are frozen for everything else.
        loss: computes the loss. Its inputs must be detached.

    Returns:
        the loss before the step, detached.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    try:
        for parameter in parameters:
            parameter.requires_grad_(True)
        value = loss()
        gradients = torch.autograd.grad(value, parameters)
    finally:
        for parameter in parameters:
            parameter.requires_grad_(False)
    for parameter, gradient in zip(parameters, _mean_over_processes(gradients), strict=True):
        parameter.grad = gradient
    optimizer.step()
    optimizer.zero_grad()
    return value.detach()


def _mean_over_processes(tensors: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """The mean of each tensor, in one transfer."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return tensors
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    parts = flat.split([tensor.numel() for tensor in tensors])
    return tuple(part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True))
