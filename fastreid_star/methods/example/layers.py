"""A layer of the example."""

from __future__ import annotations

import torch
from torch import nn


class FrameAttention(nn.Module):
    """Weigh the frames of a clip by a softmax over learned scores.

    ``w_t = softmax_t(a . x_t)``. Shapes: B clips, T frames, D feature width.

    Args:
        feat_dim: D.
    """

    def __init__(self, feat_dim: int):
        super().__init__()
        self.score = nn.Linear(feat_dim, 1)
        nn.init.zeros_(self.score.weight)  # all frames have the same weight at the start

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """Frames ``[B, T, D]`` to their weighted mean ``[B, D]``."""
        weights = self.score(frames).softmax(1)
        return (weights * frames).sum(1)
