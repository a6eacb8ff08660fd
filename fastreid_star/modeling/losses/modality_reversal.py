"""Confusion of the modalities by a classifier whose gradient is reversed."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from fastreid.config import CfgNode, configurable
from fastreid.modeling.meta_arch import META_ARCH_REGISTRY
from torch import nn

from fastreid_star.modeling.layers.pooling import at_least_float32
from fastreid_star.modeling.losses.loss import LOSS_REGISTRY, Loss
from fastreid_star.modeling.losses.pairing import rows_are_visible


class _Reversal(torch.autograd.Function):
    """The identity, whose gradient has the other sign."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return -gradient


@LOSS_REGISTRY.register()
class ModalityReversalLoss(Loss):
    """A linear classifier learns the modality of the clips, and the clips learn to hide it.

    The classifier belongs to the loss. MITML's ModalityConfusionLoss is the same idea with a third
    class and a classifier that has its own optimizer.

    Args:
        width: of the clip features.
        kwargs: see :class:`Loss`.
    """

    needs = ("clip_features", "is_visible")
    log_name = "loss_reversal"
    equation = "CE(W r(f), modality), r the identity with the gradient -1"
    source = "Ganin and Lempitsky, ICML 2015"

    @configurable
    def __init__(self, *, width: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.classifier = nn.Linear(width, 2)

    @classmethod
    def from_config(cls, cfg: CfgNode, *, feat_dim: int) -> dict[str, Any]:
        """The width is that of ``MODEL.HEADS``, or of all views of a frame."""
        heads = cfg.MODEL.HEADS
        reduced = heads.EMBEDDING_DIM if heads.NECK_FEAT == "after" else 0
        model = META_ARCH_REGISTRY._obj_map.get(cfg.MODEL.META_ARCHITECTURE)
        options = {"width": reduced or feat_dim * getattr(model, "views", 1)}
        return {**super().from_config(cfg, feat_dim=feat_dim), **options}

    def forward(self, features: torch.Tensor, is_visible: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        labels = rows_are_visible(is_visible, features).long()
        with torch.autocast(features.device.type, enabled=False):
            logits = self.classifier(_Reversal.apply(at_least_float32(features)))
            return F.cross_entropy(logits, labels)
