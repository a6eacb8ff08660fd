"""The attention over the stripes of a frame, and a weight that follows the losses of an epoch.

Shapes: N frames, D feature width, S stripes.
"""

from __future__ import annotations

import torch
from torch import nn

from fastreid_star.modeling.layers.parts import horizontal_means
from fastreid_star.modeling.layers.pooling import at_least_float32


class StripeAttention(nn.Module):
    """Intra-modality weighted-part attention: each stripe gathers all stripes of its frame.

    s are the means of S horizontal stripes. ``r = softmax(q(s) k(s)^T) v(s)``, without a scale, and
    the result is ``sum_j softmax(g)_j r_j`` with a trained gate g.

    Args:
        width: D.
        stripes: S.
    """

    def __init__(self, width: int, stripes: int = 3):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.gate = nn.Parameter(torch.full((stripes,), 1 / stripes))

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Maps ``[N, D, h, w]`` to features ``[N, D]``, in float32 or wider.

        Autocast is switched off: products of D numbers, which no scale divides, are the exponents
        of the softmax.
        """
        with torch.autocast(maps.device.type, enabled=False):
            stripes = horizontal_means(at_least_float32(maps), len(self.gate))
            logits = self.query(stripes) @ self.key(stripes).transpose(1, 2)
            gathered = logits.softmax(-1) @ self.value(stripes)
            return (self.gate.softmax(0)[:, None] * gathered).sum(1)


class EpochWeight(nn.Module):
    """``1 / (1 + m)``, with the mean m of a loss over the epoch before; 0 in the first epoch.

    All numbers are buffers: a resumed run continues with them, in the middle of an epoch, too. With
    several processes all have the main process's weight, because DistributedDataParallel copies
    its buffers to the others before each step.
    """

    weight: torch.Tensor
    total: torch.Tensor
    steps: torch.Tensor
    epoch: torch.Tensor

    def __init__(self):
        super().__init__()
        for name in ("weight", "total", "steps", "epoch"):
            self.register_buffer(name, torch.zeros(()))

    @torch.no_grad()
    def forward(self, loss: torch.Tensor, epoch: int) -> torch.Tensor:
        """Add the loss of a step of this epoch; return the weight of the epoch.

        Args:
            loss: a scalar.
            epoch: counted from 0.
        """
        begins = self.epoch != epoch
        mean = self.total / self.steps.clamp(min=1)
        new = torch.where((self.steps > 0) & (epoch > 0), 1 / (1 + mean), 0)
        # in place: the trainer takes back what a bad step has changed
        self.weight.copy_(torch.where(begins, new, self.weight))
        for buffer, number in ((self.total, loss.detach()), (self.steps, 1)):
            buffer.copy_(torch.where(begins, 0, buffer) + number)
        self.epoch.fill_(epoch)
        return self.weight
