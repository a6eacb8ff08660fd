"""The model of the example: the shared baseline with another pooling over the frames."""

from __future__ import annotations

from typing import Any

from fastreid.config import configurable
from fastreid.modeling.meta_arch import META_ARCH_REGISTRY

from fastreid_star.modeling.video_reid import VideoReID

from .layers import FrameAttention


@META_ARCH_REGISTRY.register()
class AttentionReID(VideoReID):
    """Frames are weighed by an attention in place of the GeM pooling.

    Args:
        kwargs: see :class:`VideoReID`.
    """

    @configurable
    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.attention = FrameAttention(self.backbone.feature_width)

    def encode_clip(self, outputs: dict[str, Any], batch: dict[str, Any], explain: bool) -> None:
        """As :class:`VideoReID`, with another `clip`."""
        super().encode_clip(outputs, batch, explain)
        outputs["clip"] = self.attention(outputs["corrected"])
