"""The two heads of the baseline: a BNNeck and a bias-free classifier, for clips and for frames.

Both are fast-reid's `EmbeddingHead` without its spatial pooling. Its classifiers
(``MODEL.HEADS.CLS_LAYER``: Linear, ArcSoftmax, CosSoftmax, CircleSoftmax), its optional reduction
(``EMBEDDING_DIM``), its norm layers and its initialization are used unchanged. `EmbeddingHead`
works on maps ``[N, D, H, W]``: a feature ``[N, D]`` is given to it as a map of one position.

Shapes: B clips, T frames, N rows, D feature width, C classes.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from fastreid.config import CfgNode, configurable
from fastreid.modeling.heads import REID_HEADS_REGISTRY, EmbeddingHead

from fastreid_star.errors import UserError
from fastreid_star.modeling.layers.pooling import gem


@REID_HEADS_REGISTRY.register()
class FrameHead(EmbeddingHead):
    """BNNeck (scale trained, shift frozen at 0) and bias-free classifier on features ``[N, D]``.

    Luo et al., "Bag of tricks and a strong baseline for deep person re-identification", CVPRW 2019.

    Args:
        options: arguments of EmbeddingHead: `feat_dim` D, `num_classes` C, and in place of
            `DEFAULTS` `embedding_dim` (reduce D to this by a 1x1 convolution before the neck; 0: do
            not), `neck_feat` (which feature training hands back, `before` or `after` the neck),
            `cls_type`, `scale`, `margin` (the classifier, see :mod:`fastreid.layers.any_softmax`),
            `norm_type` (of the neck).
    """

    DEFAULTS: ClassVar[dict[str, Any]] = {
        "embedding_dim": 0,
        "neck_feat": "before",
        "cls_type": "Linear",
        "scale": 1,
        "margin": 0.0,
        "norm_type": "BN",
    }

    @configurable
    def __init__(self, **options: Any):
        fixed = {"pool_type": "Identity", "with_bnneck": True}
        super().__init__(**{**self.DEFAULTS, **options, **fixed})
        if self.neck_feat not in ("before", "after"):
            raise UserError(f"MODEL.HEADS.NECK_FEAT is {self.neck_feat!r}: choose before or after")
        self.hands_back, self.neck_feat = self.neck_feat, "after"

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        """Read ``MODEL.HEADS``, except ``POOL_LAYER`` and ``WITH_BNNECK``: this head has a neck."""
        arguments = super().from_config(cfg)
        del arguments["pool_type"], arguments["with_bnneck"]
        return arguments

    def forward(self, features: torch.Tensor, targets: torch.Tensor | None = None) -> Any:
        """Features ``[N, D]`` through neck and classifier.

        Returns:
            in evaluation the features after the neck ``[N, D]``; in training a dict of
            `cls_outputs` ``[N, C]`` (logits with the classifier's margin, for the loss),
            `pred_class_logits` ``[N, C]`` (without the margin), `embeddings` ``[N, D]`` (after the
            neck) and `features` ``[N, D]`` (those that `neck_feat` chooses).
        """
        found = super().forward(features[..., None, None], targets)
        if self.training:
            found["embeddings"] = found["features"]
            found["features"] = features if self.hands_back == "before" else found["embeddings"]
        return found

    def classify(
        self, features: torch.Tensor, targets: torch.Tensor, *, learn: bool = True
    ) -> torch.Tensor:
        """Features after another neck ``[N, D]`` to this classifier's logits ``[N, C]``.

        The classifier learns from them, unless `learn` is False.
        """
        weight = self.weight if learn else self.weight.detach()
        if type(self.cls_layer).__name__ != "Linear":  # the others are of cosines, as in fast-reid
            features, weight = F.normalize(features), F.normalize(weight)
        return self.cls_layer(F.linear(features, weight), targets)


@REID_HEADS_REGISTRY.register()
class ClipHead(FrameHead):
    """Temporal GeM pooling, then the neck and the classifier of :class:`FrameHead`.

    A head that pools in another way overrides :meth:`aggregate`.

    Attributes:
        reads_skeletons: whether :meth:`aggregate` needs the skeletons of the batch.
        needs: names of the outputs that :meth:`aggregate` reads.
        provides: names of the outputs that it adds.

    Args:
        gem_p: exponent of the pooling over T.
        kwargs: see :class:`FrameHead`.
    """

    reads_skeletons = False
    needs: tuple[str, ...] = ("corrected",)
    provides: tuple[str, ...] = ("clip",)

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

    def aggregate(
        self, outputs: dict[str, Any], batch: dict[str, Any], explain: bool = False
    ) -> dict[str, Any]:
        """Pool the frames of each clip.

        Args:
            outputs: the model's outputs so far, with `corrected` ``[B, T, D]``.
            batch: the model's batch; its skeletons are on the device.
            explain: add `attention`, a dict of what the head attended to.

        Returns:
            a dict with `clip` ``[B, D]`` and what else :attr:`provides` names.
        """
        return {"clip": self.pool(outputs["corrected"])}
