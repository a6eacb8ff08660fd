"""A network whose weights follow those of another one: the average of an exponential decay."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import nn


def averaged(source: nn.Module) -> nn.Module:
    """A copy that does not learn by gradients, for :func:`follow`. Its buffers are its own."""
    return copy.deepcopy(source).requires_grad_(False)


@torch.no_grad()
def follow(average: nn.Module, source: nn.Module, rate: Callable[[str], float]) -> None:
    """``a <- a + rate (s - a)`` for each parameter of the average.

    Args:
        average: of :func:`averaged`.
        source: the network that it follows, with the same parameters.
        rate: by the name of the parameter.
    """
    pairs = zip(average.named_parameters(), source.parameters(), strict=True)
    for (name, mean), parameter in pairs:
        mean.lerp_(parameter, rate(name))
