"""The classifier of modalities.

Shapes: B clips, D feature width.
"""

from __future__ import annotations

import torch
from torch import nn

from fastreid_star.modeling.layers.pooling import at_least_float32

WIDTHS = (1024, 512, 256, 128, 64, 32, 16, 8)
INFRARED, VISIBLE, CONFUSED = range(3)  # its classes; no clip has the label CONFUSED


class ModalityClassifier(nn.Sequential):
    """Eight times linear layer, BatchNorm, ReLU, then a linear layer to three classes.

    The authors' program has convolutions of width 3 and stride 2 along an axis of length 1, of
    which only the central tap meets a value: these are linear layers.

    Its parameters require no gradient: an optimizer of its own trains it, see
    :mod:`fastreid_star.modeling.own_optimizer`.

    Args:
        width: D.
    """

    def __init__(self, width: int):
        blocks = [
            nn.Sequential(nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.ReLU())
            for inputs, outputs in zip((width, *WIDTHS[:-1]), WIDTHS, strict=True)
        ]
        super().__init__(*blocks, nn.Linear(WIDTHS[-1], 3))
        self.requires_grad_(False)

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        """Clip features ``[B, D]`` to logits ``[B, 3]``, in float32 or wider."""
        with torch.autocast(clips.device.type, enabled=False):
            return super().forward(at_least_float32(clips))
