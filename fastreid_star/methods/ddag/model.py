"""DDAG: features of a frame and of its stripes, one classifier for both, and a graph in training.

::

    images -> stem per modality -> stages 1-4 -> maps -> mean over h, w -> x
    x    -> neck -> f -> classifier -> CE;  x -> triplet, graph of the identities
    maps -> attention over stripes -> s;  neck'(s + f) -> the same classifier -> CE; retrieval

    loss = CE + CE' + triplet + w graph,   w = 1 / (1 + mean of the others over the epoch before)

    M. Ye et al. "Dynamic dual-attentive aggregation learning for visible-infrared person
    re-identification". ECCV 2020.

Shapes: N = B T frames, R rows (frames or clips), D feature width of the backbone.
"""

from __future__ import annotations

from typing import Any

import torch
from fastreid.config import CfgNode, configurable
from fastreid.modeling.meta_arch import META_ARCH_REGISTRY
from torch import nn

from fastreid_star.errors import UserError
from fastreid_star.methods.ddag.layers import EpochWeight, StripeAttention
from fastreid_star.methods.ddag.losses import IdentityGraphLoss
from fastreid_star.methods.sad.model import SAD
from fastreid_star.modeling.backbones.two_stream import check_maps
from fastreid_star.modeling.heads import FrameHead
from fastreid_star.modeling.losses.loss import outputs_needed


@META_ARCH_REGISTRY.register()
class DDAG(SAD):
    """:class:`SAD` with an attention over the stripes of each frame; see the module.

    Args:
        stripes: maps to the features of the stripes.
        stripe_neck: of the features of frames and stripes.
        kwargs: see :class:`SAD`.
    """

    provides = (*SAD.provides, "stripe_logits")

    @configurable
    def __init__(self, *, stripes: StripeAttention, stripe_neck: nn.Module, **kwargs: Any):
        super().__init__(**kwargs)
        self.stripes, self.stripe_neck = stripes, stripe_neck
        self.graph_weight = EpochWeight()

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """As :class:`SAD`; the second neck is like that of ``MODEL.HEADS``."""
        options = super().from_config(cfg)
        check_maps(cfg, options["backbone"], cls.__name__)
        if cfg.MODEL.HEADS.EMBEDDING_DIM:
            raise UserError(
                "DDAG adds features after the neck to those of the stripes, which are as wide as "
                "the backbone: set MODEL.HEADS.EMBEDDING_DIM 0"
            )
        width = options["backbone"].feature_width
        return {
            **options,
            "stripes": StripeAttention(width),
            "stripe_neck": FrameHead(cfg, feat_dim=width).bottleneck,
        }

    @property
    def needed(self) -> set[str]:
        """As :class:`SAD`; the logits of the stripes need the clips after the neck."""
        found = super().needed
        return found | {"clip_embeddings"} if "stripe_logits" in found else found

    @property
    def has_idle_parameters(self) -> bool:
        """Whether some parameters may get no gradient in some step: DDP must be told so."""
        losses: dict[str, Any] = dict(self.losses.items())
        return super().has_idle_parameters or "stripe_logits" not in outputs_needed(losses)

    def forward(self, batch: dict[str, Any]) -> dict[str, torch.Tensor] | torch.Tensor:
        """As :class:`SAD`; in training the loss of the graph has the weight of its epoch."""
        found = super().forward(batch)
        if isinstance(found, torch.Tensor):
            return found
        graph = IdentityGraphLoss.log_name
        others = torch.stack(list(found.values())).sum() - found.get(graph, 0)
        weight = self.graph_weight(others, self.epoch or 0)
        return {name: weight * loss if name == graph else loss for name, loss in found.items()}

    def encode_clip(self, outputs: dict[str, Any], batch: dict[str, Any], explain: bool) -> None:
        """As :class:`SAD`, with `stripes` ``[B, D]``: the mean over the frames."""
        super().encode_clip(outputs, batch, explain)
        shape = outputs["frames"].shape
        outputs["stripes"] = self.stripes(outputs["maps"]).view(shape).mean(1)

    def training_outputs(self, outputs: dict[str, Any]) -> None:
        """As :class:`SAD`, with the logits of the stripes by the classifier of the clips."""
        super().training_outputs(outputs)
        if "stripe_logits" in self.needed:
            features = self.with_stripes(outputs, outputs["clip_embeddings"])
            outputs["stripe_logits"] = self.heads.classify(features, outputs["targets"])

    def embed(self, outputs: dict[str, Any]) -> torch.Tensor:
        """The feature of each row for retrieval: stripes and clip, after the second neck."""
        return self.with_stripes(outputs, self.heads(outputs["clip"]))

    def with_stripes(self, outputs: dict[str, Any], embeddings: torch.Tensor) -> torch.Tensor:
        """The stripes and the clips after the neck ``[B, D]``, through the second neck."""
        return self.stripe_neck((outputs["stripes"] + embeddings)[..., None, None])[..., 0, 0]
