"""The losses of SAD and SAADG: the style attack, its defense, and the graphs of the frames.

Shapes: B clips, T frames, N = B T frames, D feature width, C identities.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from fastreid.config import CfgNode, configurable

from fastreid_star.methods.sad.layers import GraphBranch, frame_pairs
from fastreid_star.modeling.heads.clip_head import FrameHead
from fastreid_star.modeling.layers.pooling import at_least_float32
from fastreid_star.modeling.losses import LOSS_REGISTRY, CrossEntropyLoss, Loss


def defense_loss(x: torch.Tensor, attacked: torch.Tensor, eps: float = 1e-12) -> torch.Tensor:
    """Mean over the frames of the L2 distance between the clean and the attacked feature.

    No side is detached. The squared distance is clamped from below at `eps`, because the square
    root has an infinite slope at 0: the gradient of a frame that the attack did not change is 0,
    that of any other frame is a unit vector.

    Args:
        x, attacked: ``[..., D]``.
    """
    difference = at_least_float32(x) - at_least_float32(attacked)
    return difference.square().sum(-1).clamp(min=eps).sqrt().mean()


@LOSS_REGISTRY.register()
class StyleAttackLoss(CrossEntropyLoss):
    """Cross entropy of the attacked frames' logits; options as for the clips' cross entropy."""

    needs = ("attacked_logits", "frame_targets")
    log_name = "loss_cls_attack"
    equation = "CE of the frames after the style attack"
    source = "Zhou et al., ACM MM 2023 (SAADG)"
    from_start = False


@LOSS_REGISTRY.register()
class StyleDefenseLoss(Loss):
    """:func:`defense_loss` of the clean and the attacked frames."""

    needs = ("frames", "attacked_frames")
    log_name = "loss_defense"
    equation = "mean ||x - x_attacked||"
    source = "Zhou et al., ACM MM 2023 (SAADG)"

    def forward(self, frames: torch.Tensor, attacked: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return defense_loss(frames, attacked)


def graph_loss(
    graph_logits: torch.Tensor,
    frame_logits: torch.Tensor,
    targets: torch.Tensor,
    counts: torch.Tensor,
) -> torch.Tensor:
    """``(CE(graph) + KL(frame || graph)) / 2``, mean over the frames that have an edge; 0 if none.

    The frames' own distribution is the target of the divergence. It is not detached, as in the
    authors' program: both distributions learn from each other. No label is smoothed.

    Args:
        graph_logits, frame_logits: ``[N, C]``.
        targets: ``[N]``, identities.
        counts: bool ``[N]``, whether a frame has an edge.
    """
    log_q = at_least_float32(graph_logits).log_softmax(1)
    log_p = at_least_float32(frame_logits).log_softmax(1)
    divergence = (log_p.exp() * (log_p - log_q)).sum(1)
    each = F.nll_loss(log_q, targets, reduction="none") + divergence
    return 0.5 * (each * counts).sum() / counts.sum().clamp(min=1)


@LOSS_REGISTRY.register()
class GraphInteractionLoss(Loss):
    """SAADG's graph dual interaction: :func:`graph_loss` of the intra and of the inter graph.

    Zhou et al., "Video-based visible-infrared person re-identification via style disturbance
    defense and dual interaction", ACM MM 2023. Both graphs belong to the loss: they take part in
    training only, and checkpoints keep their weights. With several processes each one sees its
    share of the batch, which has whole identities.

    Args:
        intra, inter: see :func:`frame_pairs` for the frames that they join.
        kwargs: see :class:`Loss`.
    """

    needs = ("frames", "frame_logits", "frame_targets", "is_visible")
    log_name = "loss_graph"
    equation = "sum over two graphs of (CE(graph) + KL(frame || graph)) / 2, mean over the frames"
    source = "Zhou et al., ACM MM 2023 (SAADG)"

    @configurable
    def __init__(self, *, intra: GraphBranch, inter: GraphBranch, **kwargs: Any):
        super().__init__(**kwargs)
        self.intra, self.inter = intra, inter

    @classmethod
    def from_config(cls, cfg: CfgNode, *, feat_dim: int) -> dict[str, Any]:
        """Necks and classifiers are those of ``MODEL.HEADS``."""
        options = super().from_config(cfg, feat_dim=feat_dim)
        for name in ("intra", "inter"):
            options[name] = GraphBranch(feat_dim, FrameHead(cfg, feat_dim=feat_dim))
        return options

    def forward(  # type: ignore[override]
        self,
        frames: torch.Tensor,
        frame_logits: torch.Tensor,
        targets: torch.Tensor,
        is_visible: torch.Tensor,
    ) -> torch.Tensor:
        length, is_visible = frames.shape[1], is_visible.to(targets.device, non_blocking=True)
        total = frames.new_zeros(())
        with torch.autocast(frames.device.type, enabled=False):
            rows = at_least_float32(frames).flatten(0, 1)
            pairs = frame_pairs(targets, is_visible, length)
            for branch, joined in zip((self.intra, self.inter), pairs, strict=True):
                logits = branch(rows, joined, targets)
                total = total + graph_loss(logits, frame_logits, targets, joined.any(1))
        return total
