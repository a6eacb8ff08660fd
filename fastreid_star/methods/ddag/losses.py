"""The losses of DDAG beside the cross entropy and the triplet loss.

Shapes: R rows (frames or clips), D feature width, C identities.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from fastreid.config import CfgNode, configurable
from torch import nn
from torch_geometric.nn import DenseGATConv

from fastreid_star.modeling.layers.pooling import at_least_float32
from fastreid_star.modeling.losses import LOSS_REGISTRY, CrossEntropyLoss, Loss


@LOSS_REGISTRY.register()
class StripeCrossEntropyLoss(CrossEntropyLoss):
    """Cross entropy of the features of the stripes, by the classifier of the plain features."""

    needs = ("stripe_logits", "targets")
    log_name = "loss_cls_stripe"
    equation = "CE of the features of the stripes, by the classifier of the clips"
    source = "Ye et al., ECCV 2020 (DDAG)"


@LOSS_REGISTRY.register()
class IdentityGraphLoss(Loss):
    """Cross-modality graph structured attention: rows are classified from rows of their identity.

    Ye et al., "Dynamic dual-attentive aggregation learning for visible-infrared person
    re-identification", ECCV 2020. Each row is a node, and its neighbors are all rows of its
    identity, in both modalities, itself included. Two layers of graph attention (Velickovic et al.,
    ICLR 2018), the second with C outputs; an ELU and dropout follow the first, an ELU the second.

    The graph belongs to the loss: it takes part in training only, and checkpoints keep its weights.
    With several processes each one sees its share of the batch, which has whole identities.

    Args:
        width: D.
        num_classes: C.
        heads: of the first layer, each as wide as D / heads.
        dropout: of the inputs of both layers, and of their attention.
        kwargs: see :class:`Loss`.
    """

    needs = ("clip_features", "targets")
    log_name = "loss_graph"
    equation = "CE of two layers of graph attention, in which a row sees all rows of its identity"
    source = "Ye et al., ECCV 2020 (DDAG)"

    @configurable
    def __init__(
        self, *, width: int, num_classes: int, heads: int = 4, dropout: float = 0.2, **kwargs: Any
    ):
        super().__init__(**kwargs)
        options: dict[str, Any] = {"dropout": dropout, "bias": False}
        self.gather = DenseGATConv(width, width // heads, heads, **options)
        self.classify = DenseGATConv(width // heads * heads, num_classes, **options)
        self.dropout = dropout
        for layer in (self.gather, self.classify):  # Xavier of each head, times sqrt(2)
            bound = (2 * 6 / (layer.in_channels + layer.out_channels)) ** 0.5
            nn.init.uniform_(layer.lin.weight, -bound, bound)

    @classmethod
    def from_config(cls, cfg: CfgNode, *, feat_dim: int) -> dict[str, Any]:
        options = {"width": feat_dim, "num_classes": cfg.MODEL.HEADS.NUM_CLASSES}
        return {**super().from_config(cfg, feat_dim=feat_dim), **options}

    def forward(self, rows: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """Features before the neck ``[R, D]``, and identities ``[R]``."""
        neighbors = targets[:, None] == targets
        with torch.autocast(rows.device.type, enabled=False):
            x = F.dropout(at_least_float32(rows), self.dropout, self.training)
            x = F.elu(self.gather(x, neighbors, add_loop=False))
            x = F.dropout(x, self.dropout, self.training)
            logits = F.elu(self.classify(x, neighbors, add_loop=False))[0]
            return F.cross_entropy(logits, targets)
