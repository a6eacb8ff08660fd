"""Features averaged with those of the mirror images, for ``TEST.FLIP.ENABLED``."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from fastreid.config import CfgNode
from torch import nn

from fastreid_star.coco import LEFT_RIGHT
from fastreid_star.errors import UserError


def build_test_network(cfg: CfgNode, model: nn.Module) -> nn.Module:
    """The model, with ``TEST.FLIP.ENABLED`` in a :class:`MirrorAverage`."""
    return MirrorAverage(model) if cfg.TEST.FLIP.ENABLED else model


def require_single(cfg: CfgNode) -> None:
    """Raise a UserError where a model is used without its mirror images."""
    if cfg.TEST.FLIP.ENABLED:
        raise UserError(
            "TEST.FLIP.ENABLED averages features with those of the mirror images, which an "
            "exported model does not do: set it to False, and average in your own program"
        )


class MirrorAverage(nn.Module):
    """Features of clips: the mean with those of the mirror images.

    Args:
        model: gives the features of a batch, ``[B, D]`` of unit length or ``[B, P, D]``.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, batch: dict[str, Any]) -> torch.Tensor:
        """The features of the batch. ``[B, D]`` have unit length again."""
        mean = (self.model(batch) + self.model(mirrored(batch))) / 2
        return F.normalize(mean, dim=-1) if mean.ndim == 2 else mean


def mirrored(batch: dict[str, Any]) -> dict[str, Any]:
    """The batch with mirrored images. Left joints become right joints; missing ones stay 0.

    Args:
        batch: `images` ``[B, T, 3, H, W]`` and, if the model reads them, `skeletons`
            ``[B, T, 17, 3]`` with x, y in pixels of the images.
    """
    images = batch["images"].flip(-1)
    if "skeletons" not in batch:
        return {**batch, "images": images}
    joints = batch["skeletons"]
    x = torch.where(joints.any(-1), images.shape[-1] - 1 - joints[..., 0], joints[..., 0])
    moved = torch.stack([x, joints[..., 1], joints[..., 2]], dim=-1)
    return {**batch, "images": images, "skeletons": moved[..., list(LEFT_RIGHT), :]}
