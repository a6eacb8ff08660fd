"""What is not finite in a training step: measured with one transfer, and described."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch


class StepNumbers(NamedTuple):
    """What one process computed in a step.

    Args:
        losses: by name.
        gradients: names of parameters whose gradient is not finite, or too large to square.
        buffers: names of such buffers, for example a BatchNorm's running variance.
    """

    losses: dict[str, float]
    gradients: tuple[str, ...] = ()
    buffers: tuple[str, ...] = ()

    @property
    def bad_losses(self) -> list[str]:
        """Names of the losses that are not finite."""
        return [name for name, value in self.losses.items() if not math.isfinite(value)]

    @property
    def forward_is_finite(self) -> bool:
        """Whether losses and buffers are finite."""
        return not (self.bad_losses or self.buffers)


def measure(losses: dict, gradients: dict, buffers: dict) -> StepNumbers:
    """Copy the losses to the host, and with them whether gradients and buffers are finite.

    It is one transfer, where fast-reid waits for the device once per loss. A tensor is judged by
    its Euclidean norm, which overflows for finite numbers above 1e19: an optimizer that squares
    them would keep that infinity forever.

    Args:
        losses: scalars by name.
        gradients, buffers: floating point tensors on the losses' device by name.
    """
    judged = [*gradients.values(), *buffers.values()]
    scalars = [loss.detach() for loss in losses.values()]
    scalars += torch._foreach_norm(judged, 2) if judged else []
    wide = [s.reshape(1) if s.dtype == torch.float64 else s.reshape(1).float() for s in scalars]
    values = iter(torch.cat(wide).tolist() if wide else [])
    return StepNumbers(
        losses={name: next(values) for name in losses},
        gradients=tuple([name for name in gradients if not math.isfinite(next(values))]),
        buffers=tuple([name for name in buffers if not math.isfinite(next(values))]),
    )


def not_finite(tensors: dict[str, torch.Tensor]) -> tuple[str, ...]:
    """Names of the floating point tensors that hold an infinity or a NaN; slow and exact."""
    return tuple(
        name
        for name, value in tensors.items()
        if value.is_floating_point() and not value.isfinite().all()
    )


def describe(numbers: tuple[StepNumbers, ...]) -> str:
    """What is not finite in a step, and on which rank: ``loss_triplet is nan on rank 1``.

    Gradients are named only if the forward pass was finite: otherwise they follow from it.
    """
    for rank, n in enumerate(numbers):
        where = f" on rank {rank}" if len(numbers) > 1 else ""
        if n.bad_losses:
            return ", ".join(f"{name} is {n.losses[name]}" for name in n.bad_losses) + where
        if n.buffers:
            return f"{', '.join(n.buffers[:3])} is not finite, or too large to square{where}"
    names = ", ".join(numbers[0].gradients[:3]) or "a weight"
    return f"the losses are finite, but the gradient of {names} is not, or is too large to square"
