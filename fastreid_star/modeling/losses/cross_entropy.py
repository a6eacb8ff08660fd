"""Softmax cross entropy over the identities, of clips and of frames."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from fastreid.config import CfgNode, configurable
from fastreid.modeling import losses as fastreid_losses
from fastreid.utils.events import get_event_storage

from fastreid_star.errors import UserError
from fastreid_star.modeling.layers.pooling import at_least_float32
from fastreid_star.modeling.losses.loss import LOSS_REGISTRY, Loss


def cross_entropy_loss(
    logits: torch.Tensor, targets: torch.Tensor, *, epsilon: float = 0.0, scale: float = 1.0
) -> torch.Tensor:
    """Softmax cross entropy, mean over the rows and parts, times `scale`; in float32 or wider.

    Args:
        logits: ``[N, C]``, or ``[N, P, C]`` of P parts that are classified each.
        targets: ``[N]``, class indices.
        epsilon: label smoothing. As in torch, its share is spread over all C classes; fast-reid
            spreads it over the C - 1 wrong ones.
        scale: a factor.
    """
    if logits.ndim == 3:
        targets = targets[:, None].expand(logits.shape[:2]).flatten()
        logits = logits.flatten(0, 1)
    return scale * F.cross_entropy(at_least_float32(logits), targets, label_smoothing=epsilon)


@LOSS_REGISTRY.register()
class CrossEntropyLoss(Loss):
    """Cross entropy of the clips' logits.

    Args:
        epsilon, scale: see :func:`cross_entropy_loss`; ``MODEL.LOSSES.CE``.
        kwargs: see :class:`Loss`.
    """

    needs: tuple[str, ...] = ("clip_logits", "targets")
    log_name = "loss_cls"
    equation = "mean -log softmax(z)_y, the labels smoothed by MODEL.LOSSES.CE.EPSILON"
    source = ""
    from_start = True

    @configurable
    def __init__(self, *, epsilon: float = 0.0, scale: float = 1.0, **kwargs: Any):
        super().__init__(**kwargs)
        self.epsilon, self.scale = epsilon, scale

    @classmethod
    def from_config(cls, cfg: CfgNode, *, feat_dim: int) -> dict[str, Any]:
        node = cfg.MODEL.LOSSES.CE
        if node.EPSILON < 0:
            raise UserError(
                f"MODEL.LOSSES.CE.EPSILON is {node.EPSILON}: fast-reid's adaptive smoothing "
                "(a negative value) is not supported for clips; choose 0 or more"
            )
        if node.EPSILON > 1:
            raise UserError(f"MODEL.LOSSES.CE.EPSILON is {node.EPSILON}: choose a share up to 1")
        options = {"epsilon": node.EPSILON, "scale": node.SCALE}
        return {**super().from_config(cfg, feat_dim=feat_dim), **options}

    def forward(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return cross_entropy_loss(logits, targets, epsilon=self.epsilon, scale=self.scale)


@LOSS_REGISTRY.register()
class FrameCrossEntropyLoss(CrossEntropyLoss):
    """Cross entropy of the frames' logits; the label of a frame is that of its clip."""

    needs = ("frame_logits", "frame_targets")
    log_name = "loss_cls_frame"
    equation = "the same of the frames"
    source = ""


def modality_cross_entropy(
    logits: torch.Tensor, labels: torch.Tensor, is_visible: torch.Tensor
) -> torch.Tensor:
    """Cross entropy, the mean over the visible rows plus the mean over the infrared ones.

    Args:
        logits: ``[N, C]``.
        labels: ``[N]``, classes, on the device of `logits`.
        is_visible: bool ``[N]``, on the host or on that device.
    """
    counts = torch.where(is_visible, is_visible.sum(), (~is_visible).sum())
    weights = (1 / counts.to(logits.dtype)).to(logits.device, non_blocking=True)
    return (F.cross_entropy(logits, labels, reduction="none") * weights).sum()


def log_accuracy(logits: torch.Tensor, targets: torch.Tensor) -> None:
    """Put the share of right classes into fast-reid's event storage, if one is open."""
    try:
        get_event_storage()
    except AssertionError:  # fast-reid raises it where no storage is open
        return
    fastreid_losses.log_accuracy(logits.detach(), targets)
