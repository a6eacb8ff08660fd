"""A BNNeck and a cosine classifier for each part of a clip.

Shapes: B clips, P parts, D width of a part, C classes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from fastreid.config import CfgNode, configurable
from fastreid.modeling.heads import REID_HEADS_REGISTRY
from torch import nn

from fastreid_star.modeling.layers.pooling import at_least_float32


@REID_HEADS_REGISTRY.register()
class PartHead(nn.Module):
    """Classifies each part: BatchNorm over all P x D values, unit length, cosine times a scale.

    A batch of one clip is normalized by the running statistics.

    Retrieval compares the parts before the BatchNorm.

    Args:
        feat_dim: D.
        num_parts: P.
        num_classes: C.
        scale: of the cosines.
    """

    reads_skeletons = False
    needs: tuple[str, ...] = ("clip",)
    provides: tuple[str, ...] = ()

    @configurable
    def __init__(self, *, feat_dim: int, num_parts: int, num_classes: int, scale: float = 16.0):
        super().__init__()
        self.scale = scale
        self.norm = nn.BatchNorm1d(num_parts * feat_dim)
        weight = torch.zeros(num_parts, feat_dim, num_classes)
        weight = nn.init.xavier_uniform_(weight).permute(2, 0, 1).contiguous()
        self.weight = nn.Parameter(weight)  # [C, P, D]: the classes are its first axis everywhere

    @classmethod
    def from_config(cls, cfg: CfgNode, *, feat_dim: int, num_parts: int) -> dict[str, Any]:
        """Read ``MODEL.HEADS.NUM_CLASSES`` and ``MODEL.HEADS.SCALE``."""
        heads = cfg.MODEL.HEADS
        options = {"num_classes": heads.NUM_CLASSES, "scale": heads.SCALE}
        return {"feat_dim": feat_dim, "num_parts": num_parts, **options}

    def forward(self, parts: torch.Tensor, targets: torch.Tensor | None = None) -> Any:
        """Parts ``[B, P, D]`` through neck and classifier.

        Returns:
            in evaluation the parts; in training a dict of `cls_outputs` ``[B, P, C]``,
            `pred_class_logits` ``[B, C]``, their mean, and `features`, the parts.
        """
        if not self.training:
            return parts
        rows = at_least_float32(parts).flatten(1)
        if len(rows) > 1:
            normed = self.norm(rows)
        else:  # one row has no variance
            n = self.norm
            normed = F.batch_norm(rows, n.running_mean, n.running_var, n.weight, n.bias, eps=n.eps)
        normed = normed.view_as(parts)
        weight = F.normalize(self.weight, dim=-1)
        logits = self.scale * torch.einsum("bpd,cpd->bpc", F.normalize(normed, dim=-1), weight)
        mean = logits.detach().mean(1)
        return {"cls_outputs": logits, "pred_class_logits": mean, "features": parts}
