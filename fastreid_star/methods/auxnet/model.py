"""AuxNet: two streams, the mean over space and time, one neck.

::

    images -> normalize -> stem per modality -> stages 1-4 -> mean over h, w and T -> clip
    clip -> triplet; clip -> neck -> classifier -> cross entropy; neck -> feature for retrieval
    auxiliary images -> the same -> auxiliary clip -> triplet

    loss = a tri(auxiliary) + (1 - a) (tri + cross entropy),   a = (cos(pi e / E) + 3) / 8

Both sets pass the network one after another, the auxiliary one first, so that each is normalized by
its own statistics.

    Y. Du et al. "Video-based visible-infrared person re-identification with auxiliary samples".
    IEEE TIFS 19, 2024.

Shapes: B clips, T frames of a clip, D feature width of the backbone.
"""

from __future__ import annotations

from typing import Any

import torch
from fastreid.config import CfgNode, configurable
from fastreid.modeling.meta_arch import META_ARCH_REGISTRY
from torch import nn

from fastreid_star.errors import UserError
from fastreid_star.methods.auxnet.losses import (
    AUXILIARY_OUTPUTS,
    AuxiliaryTripletLoss,
    auxiliary_weight,
)
from fastreid_star.modeling.video_reid import CLIP_OUTPUTS, VideoReID


@META_ARCH_REGISTRY.register()
class AuxNet(VideoReID):
    """:class:`VideoReID` without a frame head; with AuxiliaryTripletLoss it takes a second set.

    The first half of a training batch is then the primary set, the second half the auxiliary one.

    Args:
        epochs: E, the number of epochs of the run.
        kwargs: see :class:`VideoReID`.
    """

    provides = (
        *("is_visible", "frames", "corrected", "clip", "targets", "frame_targets"),
        *CLIP_OUTPUTS,
        *AUXILIARY_OUTPUTS,
    )
    takes_auxiliary = True
    units = ("clip",)

    @configurable
    def __init__(self, *, epochs: int = 1, **kwargs: Any):
        super().__init__(frame_heads=nn.Identity(), **kwargs)
        self.epochs = epochs

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """As :class:`VideoReID`, with ``SOLVER.MAX_EPOCH``.

        Raises:
            UserError: only one of the auxiliary set and its loss is there.
        """
        name, auxiliary = AuxiliaryTripletLoss.__name__, tuple(cfg.DATASETS.AUXILIARY)
        if bool(auxiliary) != (name in cfg.MODEL.LOSSES.NAME):
            raise UserError(
                f"DATASETS.AUXILIARY is {auxiliary} and MODEL.LOSSES.NAME is "
                f"{tuple(cfg.MODEL.LOSSES.NAME)}: an auxiliary set and {name} belong together"
            )
        arguments = super().from_config(cfg)
        del arguments["frame_heads"]
        return {**arguments, "epochs": cfg.SOLVER.MAX_EPOCH}

    @property
    def has_auxiliary(self) -> bool:
        """Whether the network trains on an auxiliary set as well."""
        return AuxiliaryTripletLoss.__name__ in self.losses

    @property
    def has_idle_parameters(self) -> bool:
        """Whether some parameters may get no gradient in some step: DDP must be told so."""
        return "CrossEntropyLoss" not in self.losses

    def forward(self, batch: dict[str, Any]) -> dict[str, torch.Tensor] | torch.Tensor:
        """As :class:`VideoReID`; the losses of both sets have their shares."""
        found = super().forward(batch)
        if isinstance(found, torch.Tensor) or not self.has_auxiliary:
            return found
        share = auxiliary_weight(self.epoch or 0, self.epochs)
        own = AuxiliaryTripletLoss.log_name
        return {name: (share if name == own else 1 - share) * loss for name, loss in found.items()}

    def encode(self, batch: dict[str, Any], explain: bool = False) -> dict[str, Any]:
        """As :class:`VideoReID`, of the primary set.

        In training with an auxiliary set also `auxiliary_clip` ``[B, D]``, before the neck, and
        `auxiliary_targets` ``[B]``.
        """
        if not (self.training and self.has_auxiliary):
            return super().encode(batch, explain)
        half = len(batch["images"]) // 2
        primary, auxiliary = (
            {
                key: value[part] if isinstance(value, torch.Tensor) else value
                for key, value in batch.items()
            }
            for part in (slice(half), slice(half, None))
        )
        auxiliary = self.move_skeletons(auxiliary)
        second = self.encode_frames(auxiliary)
        self.encode_clip(second, auxiliary, explain)
        self.heads.bottleneck(second["clip"][..., None, None])  # for its running statistics
        outputs = super().encode(primary, explain)
        outputs["auxiliary_clip"] = second["clip"]
        outputs["auxiliary_targets"] = auxiliary["targets"].to(self.device, non_blocking=True)
        return outputs
