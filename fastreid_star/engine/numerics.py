"""Is a training step finite? Losses, gradients and buffers are looked at before the weights change.

What a step computes comes to the host in one transfer: one wait for the device, where fast-reid waits once a loss.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch

_BAD = "not finite, or too large to square"


@dataclass(frozen=True)
class StepNumbers:
    """What one process's step computed.

    Args:
        losses: by name.
        gradients: parameters whose gradient is not finite, or so large that the sum of its squares is not.
        buffers: buffers that the forward pass has left so, such as a BatchNorm's running variance.
    """

    losses: dict[str, float]
    gradients: tuple[str, ...] = ()
    buffers: tuple[str, ...] = ()

    @property
    def bad_losses(self) -> tuple[str, ...]:
        """Names of the losses that are not finite."""
        return tuple(name for name, value in self.losses.items() if not math.isfinite(value))

    @property
    def forward_is_finite(self) -> bool:
        """Whether losses and buffers are finite."""
        return not (self.bad_losses or self.buffers)

    @property
    def is_finite(self) -> bool:
        """Whether everything is."""
        return self.forward_is_finite and not self.gradients


def measure(
    losses: dict[str, torch.Tensor],
    gradients: dict[str, torch.Tensor],
    buffers: dict[str, torch.Tensor],
) -> StepNumbers:
    """Bring the losses to the host, and with them whether gradients and buffers are finite.

    A tensor is judged by its Euclidean norm, for which devices have one kernel over all tensors. It overflows where
    numbers are finite and above 1e19: an optimizer that squares them would keep that infinity for ever.

    Args:
        losses: scalars, by name.
        gradients, buffers: floating point tensors on the losses' device, by name.
    """
    looked_at = [*gradients.values(), *buffers.values()]
    norms = (
        [_wide(norm.reshape(1)) for norm in torch._foreach_norm(looked_at, 2)] if looked_at else []
    )
    parts = [_wide(loss.detach().reshape(1)) for loss in losses.values()] + norms
    numbers = torch.cat(parts).tolist() if parts else []
    rest = iter(numbers[len(losses) :])
    return StepNumbers(
        losses=dict(zip(losses, numbers, strict=False)),
        gradients=tuple([name for name in gradients if not math.isfinite(next(rest))]),
        buffers=tuple([name for name in buffers if not math.isfinite(next(rest))]),
    )


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    """At least float32."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def not_finite(tensors: dict[str, torch.Tensor]) -> tuple[str, ...]:
    """Names of the floating point tensors that hold an infinity or a NaN, judged number by number: slow, exact."""
    return tuple(
        name
        for name, value in tensors.items()
        if value.is_floating_point() and not value.isfinite().all()
    )


class Buffers:
    """A model's buffers, noted before a step that may have to be undone.

    The forward pass changes them (BatchNorm's statistics), so one that is not finite has spoiled them before anybody
    could see it. Weights and optimizer wait for the gradients.

    Args:
        model: its buffers keep their number, shapes and devices.
    """

    def __init__(self, model: torch.nn.Module):
        self._places = [
            (f"{path}.{key}" if path else key, module, key)
            for path, module in model.named_modules()
            for key, _ in module.named_buffers(recurse=False)
        ]
        self._noted: dict[str, torch.Tensor] = {}
        self._watched: tuple[str, ...] = ()

    def now(self) -> dict[str, torch.Tensor]:
        """The buffers themselves, by name."""
        return {name: getattr(module, key) for name, module, key in self._places}

    def watched(self) -> dict[str, torch.Tensor]:
        """Those of :meth:`now` that were finite when first noted: a mask of infinities may well be a buffer."""
        now = self.now()
        return {name: now[name] for name in self._watched}

    @property
    def noted(self) -> dict[str, torch.Tensor]:
        """Copies, as they were when last noted."""
        return self._noted

    def note(self) -> None:
        """Copy them."""
        now = self.now()
        if not self._noted:
            self._noted = {name: buffer.clone() for name, buffer in now.items()}
            floating = {name: buffer for name, buffer in now.items() if buffer.is_floating_point()}
            bad = measure({}, {}, floating).buffers
            self._watched = tuple(name for name in floating if name not in bad)
        else:
            _copy(self._noted, now)

    def restore(self) -> None:
        """Put back what was noted."""
        _copy(self.now(), self._noted)


@torch.no_grad()
def _copy(to: dict[str, torch.Tensor], source: dict[str, torch.Tensor]) -> None:
    """One kernel for all tensors of a type, where the device has one."""
    for dtype in {buffer.dtype for buffer in source.values()}:
        names = [name for name, buffer in source.items() if buffer.dtype == dtype]
        torch._foreach_copy_([to[name] for name in names], [source[name] for name in names])


def tell(everywhere: list[StepNumbers]) -> str:
    """What is not finite in a step, and on which rank: ``loss_triplet is nan on rank 1``.

    A gradient is told only where the forward pass was finite: it follows from the rest.

    Args:
        everywhere: each rank's numbers; one at least is not finite.
    """
    told = []
    for rank, numbers in enumerate(everywhere):
        where = f" on rank {rank}" if len(everywhere) > 1 else ""
        if numbers.bad_losses:
            values = ", ".join(f"{name} is {numbers.losses[name]}" for name in numbers.bad_losses)
            told.append(f"{values}{where}")
        elif numbers.buffers:
            told.append(f"{some(numbers.buffers, 'buffer')} {_BAD}{where}")
    if told:
        return "; ".join(told)
    # averaged over the processes: one's is everybody's
    names = next((numbers.gradients for numbers in everywhere if numbers.gradients), ())
    return "the losses are finite, but " + (
        f"{some(names, 'gradient')} {_BAD}" if names else "the gradients overflow"
    )


def some(names: Iterable[str], what: str, first: int = 3) -> str:
    """How many, and the first of them: ``12 gradients (a, b, c, ...) are``."""
    names = list(names)
    shown = ", ".join(names[:first]) + (", ..." if len(names) > first else "")
    return f"{len(names)} {what}{'s' if len(names) > 1 else ''} ({shown}) {'are' if len(names) > 1 else 'is'}"
