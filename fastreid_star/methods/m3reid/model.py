"""M3-ReID: one stream for both modalities, six masks of each frame, alignment of the modalities.

::

    images -> gray, erasing, channel factors (training) -> backbone with non-local blocks -> maps
    maps   -> masks [B, T, K, h, w] -> GeM under each mask -> frames [B, T, K D]
    frames -> corrector, if there is one -> neck -> frame embeddings -> mean over T -> clip
    clip             -> classifier -> CE; alignment (MMA); retrieval
    frame embeddings -> classifier -> CE; alignment (MMA), orthogonality (OFR)
    masks            -> diversity (DAC)

Another head for clips pools the frames before the neck, and has another neck for the clip.

Shapes: B clips, T frames, N = B T frames, D feature width of the backbone, K views of a frame.
"""

from __future__ import annotations

from typing import Any

import torch
from fastreid.config import CfgNode, configurable
from fastreid.modeling.meta_arch import META_ARCH_REGISTRY

from fastreid_star.errors import UserError
from fastreid_star.methods.m3reid.layers import VIEWS, ViewCorrector
from fastreid_star.modeling.backbones.two_stream import check_maps
from fastreid_star.modeling.layers.colors import erase, gray_mixing, mix_channels
from fastreid_star.modeling.layers.parts import PartMasks, masked_gem
from fastreid_star.modeling.layers.style import style_factors
from fastreid_star.modeling.video_reid import VideoReID

FACTORS = (0.5, 1.5)  # of the channels


@META_ARCH_REGISTRY.register()
class M3ReID(VideoReID):
    """Liang et al., "M3-ReID: unifying multi-view, granularity, and modality for video-based
    visible-infrared person re-identification", TIFS 2025.

    Args:
        masks: of the maps.
        augment: change the colors of training clips.
        erasing: share of the training clips in which a rectangle is erased.
        kwargs: see :class:`VideoReID`. The neck of `frame_heads` is that of the frames.

    Raises:
        UserError: `erasing` is not a share, or a head that reads the states of the bones.
    """

    provides = (*VideoReID.provides, "masks", "frame_embeddings")
    views = VIEWS
    classified = "frame_embeddings"

    @configurable
    def __init__(
        self, *, masks: PartMasks, augment: bool = True, erasing: float = 0.5, **kwargs: Any
    ):
        super().__init__(**kwargs)
        if not 0 <= erasing <= 1:
            raise UserError(f"MODEL.M3REID.ERASING is {erasing}: give a share from 0 to 1")
        if "bone_states" in self.heads.needs:
            raise UserError(
                f"{type(self.heads).__name__} reads the states of the bones, which are as wide as "
                f"one of the {self.views} views of a frame: choose another MODEL.STAR.GUIDE"
            )
        self.masks = masks
        self.augment, self.erasing = augment, erasing

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """As :class:`VideoReID`, with ``MODEL.M3REID``."""
        options, own = super().from_config(cfg), cfg.MODEL.M3REID
        backbone = options["backbone"]
        check_maps(cfg, backbone, cls.__name__)
        if options["corrector"] is not None:
            options["corrector"] = ViewCorrector(options["corrector"])
        masks = PartMasks(backbone.feature_width, VIEWS)
        return {**options, "masks": masks, "augment": own.AUGMENT, "erasing": own.ERASING}

    def preprocess(self, images: torch.Tensor, is_visible: torch.Tensor) -> torch.Tensor:
        """As :class:`VideoReID`; in training with the augmentation, the same in a whole clip."""
        if not self.training:
            return super().preprocess(images, is_visible)
        clips, length = images.shape[:2]
        of_clips = is_visible.view(clips, length)[:, 0]
        if self.augment:
            mixing = gray_mixing(of_clips).to(self.device, non_blocking=True)
            images = mix_channels(images.to(self.device, non_blocking=True).float(), mixing)
        frames = super().preprocess(images, is_visible)
        erase(frames.unflatten(0, (clips, length)), self.erasing)
        if self.augment:
            factors, _ = style_factors(of_clips, *FACTORS)
            factors = factors.to(self.device, non_blocking=True).repeat_interleave(length, 0)
            frames = frames * factors[:, :, None, None]
        return frames

    def encode_frames(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Images to `is_visible`, `masks` ``[B, T, K, h, w]`` and `frames` ``[B, T, K D]``."""
        clips, length = batch["images"].shape[:2]
        is_visible = self.frame_modality(batch, length)
        images = self.preprocess(batch["images"], is_visible)
        maps = self.backbone(images, is_visible, length).relu()  # as in VideoReID.pool_frames
        masks = self.masks(maps)
        return {
            "is_visible": is_visible,
            "masks": masks.unflatten(0, (clips, length)),
            "frames": masked_gem(maps, masks).flatten(1).unflatten(0, (clips, length)),
        }

    def correct_frames(
        self, outputs: dict[str, Any], batch: dict[str, Any], explain: bool
    ) -> dict[str, torch.Tensor]:
        """As :class:`VideoReID`, with `frame_embeddings` ``[B, T, K D]``, after the neck."""
        attention = super().correct_frames(outputs, batch, explain)
        frames = outputs["corrected"]
        normed = self.frame_heads.bottleneck(frames.flatten(0, 1)[..., None, None])[..., 0, 0]
        outputs["frame_embeddings"] = normed.unflatten(0, frames.shape[:2])
        return attention

    def frame_logits(self, frames: torch.Tensor, frame_targets: torch.Tensor) -> torch.Tensor:
        """Frame embeddings ``[B, T, K D]``, after the neck, to logits ``[N, C]``."""
        return self.frame_heads.classify(frames.flatten(0, 1), frame_targets)
