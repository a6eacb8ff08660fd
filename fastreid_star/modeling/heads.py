"""The two heads of the baseline: a BNNeck and a bias-free classifier, on clips and on frames.

Both are fast-reid's `EmbeddingHead` with its pooling taken out, so its classifiers (``MODEL.HEADS.CLS_LAYER``:
Linear, ArcSoftmax, CosSoftmax, CircleSoftmax), its optional reduction (``EMBEDDING_DIM``), its norm layers and its
initialization are used as they are. `EmbeddingHead` works on maps ``[N, D, H, W]``: a feature ``[N, D]`` is handed
over as a map of one position, ``[N, D, 1, 1]``, which makes its BatchNorm2d a BatchNorm over the N rows.

Shapes: B clips, T frames, N rows of any kind, D feature width, C classes.
"""

from __future__ import annotations

from typing import Any

import torch
from fastreid.config import CfgNode, configurable
from fastreid.modeling.heads import REID_HEADS_REGISTRY, EmbeddingHead

from fastreid_star.errors import UserError
from fastreid_star.modeling.pooling import gem


@REID_HEADS_REGISTRY.register()
class FrameHead(EmbeddingHead):
    """BNNeck (scale trained, shift frozen at 0) and bias-free classifier on features ``[N, D]``.

    Luo et al., "Bag of tricks and a strong baseline for deep person re-identification", CVPRW 2019. In the baseline
    the clean and the attacked frame features share one such head, each in a call of its own.

    Args:
        feat_dim: D.
        num_classes: C.
        embedding_dim: reduce D to this by a 1x1 convolution before the neck; 0: do not.
        neck_feat: which feature training hands back, `before` or `after` the neck.
        cls_type, scale, margin: the classifier, see :mod:`fastreid.layers.any_softmax`.
        norm_type: norm layer of the neck.
    """

    @configurable
    def __init__(
        self,
        *,
        feat_dim: int,
        num_classes: int,
        embedding_dim: int = 0,
        neck_feat: str = "before",
        cls_type: str = "Linear",
        scale: float = 1,
        margin: float = 0.0,
        norm_type: str = "BN",
    ):
        super().__init__(
            feat_dim=feat_dim,
            embedding_dim=embedding_dim,
            num_classes=num_classes,
            neck_feat=neck_feat,
            pool_type="Identity",
            cls_type=cls_type,
            scale=scale,
            margin=margin,
            with_bnneck=True,
            norm_type=norm_type,
        )

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        """fast-reid's keys; ``POOL_LAYER`` and ``WITH_BNNECK`` have no say, the head is defined by its neck."""
        arguments = super().from_config(cfg)
        del arguments["pool_type"], arguments["with_bnneck"]
        return arguments

    def forward(self, features: torch.Tensor, targets: torch.Tensor | None = None) -> Any:
        """Features ``[N, D]`` through neck and classifier.

        Returns:
            in evaluation the features after the neck ``[N, D]``; in training a dict of `cls_outputs` (logits with
            the classifier's margin, for the loss) and `pred_class_logits` (without), ``[N, C]``, and `features`
            ``[N, D]``.
        """
        return super().forward(features[..., None, None], targets)


@REID_HEADS_REGISTRY.register()
class ClipHead(FrameHead):
    """Temporal GeM pooling, then the neck and the classifier of :class:`FrameHead`: the global head.

    Args:
        gem_p: exponent of the pooling over T.
        others: see :class:`FrameHead`.
    """

    @configurable
    def __init__(self, *, gem_p: float = 3.0, **kwargs: Any):
        super().__init__(**kwargs)
        if gem_p <= 0:
            raise UserError(
                f"MODEL.HEADS.GEM_P is {gem_p}: the exponent of a generalized mean is larger than 0"
            )
        self.gem_p = gem_p

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        """As :class:`FrameHead`, with ``MODEL.HEADS.GEM_P``."""
        return {**super().from_config(cfg), "gem_p": cfg.MODEL.HEADS.GEM_P}

    def pool(self, frames: torch.Tensor) -> torch.Tensor:
        """Frame features ``[B, T, D]``, non-negative, to clip features ``[B, D]``."""
        return gem(frames, self.gem_p, dim=1)

    def forward(self, features: torch.Tensor, targets: torch.Tensor | None = None) -> Any:
        """Frame features ``[B, T, D]``, or clip features ``[B, D]`` that are pooled already; see `FrameHead`."""
        return super().forward(self.pool(features) if features.dim() == 3 else features, targets)
