"""STAR: the baseline with bones that correct the frames and body parts that add to the clip.

::

    images    -> two-stream backbone -> X [B, T, D] -> frame CE, style attack and defense (SAD)
    skeletons -> bones (1)-(3)
    X, bones  -> frame corrector (4)-(7) -> Y [B, T, D]
    skeletons -> joints, graph attention (8)-(10) -> parts (12)
    Y, parts  -> GeM pyramid (11) + parts (13) -> G [B, D] -> clip CE, triplet; retrieval
    bones, joints -> skeleton consistency (14)

The three parts are registered components, switched by name in the config (see ``config.py``) and
usable with any meta-architecture that extends VideoReID. Without all of them this is SAD, number
for number.

A fourth part is ours. With ``AbsentSkeletonLoss`` clips without skeletons have their own neck::

    X -> GeM over T -> the second neck -> the clip's classifier -> CE

Only the second neck learns from this loss. In evaluation, clips without any skeleton go this way.

Shapes: B clips, T frames, V joints, D feature width, C identities.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from fastreid.config import CfgNode, configurable
from fastreid.modeling.meta_arch import META_ARCH_REGISTRY
from torch import nn

from fastreid_star.errors import UserError
from fastreid_star.methods.sad.model import SAD
from fastreid_star.modeling.heads import FrameHead
from fastreid_star.modeling.layers.pooling import at_least_float32
from fastreid_star.modeling.losses.loss import outputs_needed

ABSENT_LOGITS = "absent_logits"


@META_ARCH_REGISTRY.register()
class STAR(SAD):
    """Skeleton-guided spatial-temporal feature learning (Jiang et al., 2024, arXiv 2411.11069).

    The parts are the frame corrector ``SkeletonFrameCorrector``, the head ``GATGeMHead`` and the
    loss ``SkeletonConsistencyLoss``. Beside them it has a second neck for clips without a skeleton,
    if a loss needs its output `absent_logits` ``[B, C]``.

    Args:
        absent_neck: this neck. The classifier is that of the clips: features of clips with and
            without skeletons shall be comparable. None: all clips share one neck.
        kwargs: see :class:`SAD`.

    Raises:
        UserError: a neck for clips without skeletons, where no part knows which clips have some.
    """

    provides = (*SAD.provides, ABSENT_LOGITS)
    units = ("clip",)  # bones are corrected by their neighbors in time

    @configurable
    def __init__(self, *, absent_neck: nn.Module | None = None, **kwargs: Any):
        super().__init__(**kwargs)
        self.absent_neck = absent_neck
        if absent_neck is not None:
            corrector = () if self.corrector is None else self.corrector.provides
            if "has_clip" not in {*corrector, *self.heads.provides}:
                raise UserError(
                    "AbsentSkeletonLoss is for networks whose corrector or head provides has_clip, "
                    "the clips that have skeletons: leave it out of MODEL.LOSSES.NAME"
                )

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """As :class:`SAD`; a loss decides whether there is a second neck."""
        options = super().from_config(cfg)
        needed = outputs_needed(options["losses"])
        if ABSENT_LOGITS in needed:
            width = options["backbone"].feature_width
            options["absent_neck"] = FrameHead(cfg, feat_dim=width).bottleneck
        return options

    def retrieval_features(self, outputs: dict[str, Any]) -> torch.Tensor:
        """As :class:`VideoReID`; a clip without a skeleton takes the neck of its own."""
        features = super().retrieval_features(outputs)
        if self.absent_neck is None:
            return features
        absent = self.without_skeletons(outputs["frames"])
        absent = F.normalize(at_least_float32(absent), dim=-1)
        return torch.where(outputs["has_clip"][:, None], features, absent)

    def training_outputs(self, outputs: dict[str, Any]) -> None:
        """As :class:`SAD`, with the logits of the second neck where a loss needs them."""
        super().training_outputs(outputs)
        if ABSENT_LOGITS in self.needed:
            absent = self.without_skeletons(outputs["frames"].detach())
            outputs[ABSENT_LOGITS] = self.heads.classify(absent, outputs["targets"], learn=False)

    def without_skeletons(self, frames: torch.Tensor) -> torch.Tensor:
        """X ``[B, T, D]``, pooled and through the second neck, ``[B, D]``."""
        assert self.absent_neck is not None
        return self.absent_neck(self.heads.pool(frames)[..., None, None])[..., 0, 0]
