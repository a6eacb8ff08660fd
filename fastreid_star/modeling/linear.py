"""Linear layers for the few rows that a batch has frames: twice as fast on some CPUs.

torch has MKL multiply float32 matrices on a CPU; for 100 rows and on AMD's that takes twice the time of oneDNN, torch's
other library (docs/performance.md). torch itself turns to oneDNN for half precision only, and in layers that inductor
has compiled for inference: their operator is called here.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

# None where torch was built without oneDNN
ONEDNN_LINEAR = getattr(torch.ops.mkldnn, "_linear_pointwise", None)


class Linear(nn.Linear):
    """`nn.Linear`, its parameters and numbers; see :func:`linear`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[..., in]`` to ``[..., out]``."""
        return linear(x, self.weight, self.bias)


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """``F.linear(x, weight, bias)`` up to rounding, with :func:`product` in training in full precision on a CPU.

    Args:
        x: ``[..., in]``.
        weight, bias: ``[out, in]`` and ``[out]``.
    """
    return _Linear.apply(x, weight, bias) if trains_on_cpu(x) else F.linear(x, weight, bias)


def trains_on_cpu(x: torch.Tensor) -> bool:
    """Whether gradients are recorded, and `x` lies on a CPU, where autocast is off."""
    return x.is_cpu and torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")


def product(
    rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """``F.linear`` for tensors on a CPU, by oneDNN where it can: float32, and a torch that was built with it.

    Autograd does not see it: it is for the inside of functions whose gradient is written out.

    Args:
        rows: ``[..., in]``.
        weight, bias: ``[out, in]``, in any layout, and ``[out]`` or None.
    """
    if ONEDNN_LINEAR is None or not rows.dtype == weight.dtype == torch.float32 or not rows.numel():
        return F.linear(rows, weight, bias)
    return ONEDNN_LINEAR(rows, weight, bias, "none", [], "")  # no function applied to the result


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
    ) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x, weight = ctx.saved_tensors
        rows = grad.flatten(0, -2)
        return product(grad, weight.T), product(rows.T, x.flatten(0, -2).T), rows.sum(0)
