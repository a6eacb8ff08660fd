"""The head of M3-ReID: frames are normalized first, and then averaged over the clip.

Shapes: B clips, T frames, D width of a frame.
"""

from __future__ import annotations

from typing import Any

import torch
from fastreid.config import configurable
from fastreid.modeling.heads import REID_HEADS_REGISTRY
from torch import nn

from fastreid_star.modeling.heads import ClipHead


@REID_HEADS_REGISTRY.register()
class MeanHead(ClipHead):
    """The mean of frames that have passed a neck, and a bias-free classifier without a neck.

    Args:
        kwargs: see :class:`ClipHead`.
    """

    needs = ("frame_embeddings",)

    @configurable
    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.bottleneck = nn.Sequential()

    def pool(self, frames: torch.Tensor) -> torch.Tensor:
        """Frames after the neck ``[B, T, D]`` to clips ``[B, D]``."""
        return frames.mean(1)

    def aggregate(
        self, outputs: dict[str, Any], batch: dict[str, Any], explain: bool = False
    ) -> dict[str, Any]:
        """Average `frame_embeddings` ``[B, T, D]``; see :class:`ClipHead`."""
        return {"clip": self.pool(outputs["frame_embeddings"])}
