"""Modality alleviation of maps, and a classifier of identities for each modality.

Shapes: N frames, R rows (frames or clips), F width of a row, C identities.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from fastreid_star.modeling.layers.pooling import at_least_float32
from fastreid_star.modeling.layers.style import channel_statistics

SLOW_RATE, FULL_EPOCHS = 0.2, 100  # of the copies of the classifiers


class ModalityAlleviation(nn.Module):
    """Normalize the channels that show the modality: ``m x + (1 - m) IN(x)``.

    IN is instance normalization without scale and shift, and
    ``m = sigmoid(W2 relu(W1 mean_hw(x)))``. The result has both signs.

    Args:
        width: channels.
        reduction: the hidden width is width / reduction.
    """

    def __init__(self, width: int, reduction: int = 16):
        super().__init__()
        hidden = max(width // reduction, 1)
        self.gate = nn.Sequential(
            nn.Linear(width, hidden, bias=False),
            nn.ReLU(),
            nn.Linear(hidden, width, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Maps ``[N, C, h, w]`` to maps of the same shape and type."""
        x = at_least_float32(maps)
        mean, deviation = channel_statistics(x, (2, 3))
        gates = at_least_float32(self.gate(mean[..., 0, 0]))[..., None, None]
        normed = (x - mean) / deviation
        return (normed + gates * (x - normed)).to(maps.dtype)


class ModalityClassifiers(nn.Module):
    """Bias-free classifiers of the identities of visible and of infrared rows, and slow copies.

    The copies are buffers that follow the classifiers: they are saved with the model.

    Args:
        width: F.
        num_classes: C.
    """

    slow_visible: torch.Tensor
    slow_infrared: torch.Tensor

    def __init__(self, width: int, num_classes: int):
        super().__init__()
        for name in ("visible", "infrared"):
            weight = nn.Parameter(torch.empty(num_classes, width).normal_(std=0.01))
            self.register_parameter(name, weight)
            self.register_buffer(f"slow_{name}", weight.detach().clone())

    @torch.no_grad()
    def follow(self, epoch: int) -> None:
        """The copies W' become ``(1 - u) W' + u W`` with ``u = 0.2 min(100 / (epoch + 1), 1)``.

        Args:
            epoch: counted from 0.
        """
        rate = SLOW_RATE * min(FULL_EPOCHS / (epoch + 1), 1)
        for slow, weight in (
            (self.slow_visible, self.visible),
            (self.slow_infrared, self.infrared),
        ):
            slow.lerp_(weight, rate)

    def forward(self, rows: torch.Tensor, is_visible: torch.Tensor) -> torch.Tensor:
        """Logits ``[R, C]`` of each row by the classifier of its own modality.

        Args:
            rows: ``[R, F]``.
            is_visible: bool ``[R]``, on the device of `rows`.
        """
        return _by_modality(rows, is_visible, self.visible, self.infrared)

    @torch.no_grad()
    def crossed(self, rows: torch.Tensor, is_visible: torch.Tensor) -> torch.Tensor:
        """Logits ``[R, C]`` of each row by the slow copy for the other modality."""
        return _by_modality(rows, is_visible, self.slow_infrared, self.slow_visible)


def _by_modality(
    rows: torch.Tensor, is_visible: torch.Tensor, visible: torch.Tensor, infrared: torch.Tensor
) -> torch.Tensor:
    """All rows pass both classifiers, so that a batch may lack a modality."""
    both = (F.linear(rows, weight) for weight in (visible, infrared))
    return torch.where(is_visible[:, None], *both)
