"""Skeleton consistency (14): the bones and the joints of a clip shall agree.

Computed in float32 or wider. Shapes: B clips, V joints, C channels of a node or identities, D
feature width.
"""

from __future__ import annotations

from typing import Any

import torch
from fastreid.config import CfgNode, configurable
from torch import nn

from fastreid_star.coco import NUM_JOINTS
from fastreid_star.errors import UserError
from fastreid_star.methods.star.layers import BoneStates
from fastreid_star.modeling.layers.pooling import at_least_float32
from fastreid_star.modeling.losses import LOSS_REGISTRY, CrossEntropyLoss, Loss


def symmetric_kl(p_logits: torch.Tensor, q_logits: torch.Tensor) -> torch.Tensor:
    """``KL(P||Q) + KL(Q||P)`` of each row, with P and Q the softmax of logits ``[R, D]``.

    Written as one sum of (P - Q)(log P - log Q), whose terms are never negative. Returns ``[R]``.
    """
    log_p, log_q = (at_least_float32(logits).log_softmax(-1) for logits in (p_logits, q_logits))
    return ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(-1)


def masked_mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean of the values ``[R]`` whose bool mask ``[R]`` is set; 0 if none is."""
    mask = mask.to(values.dtype)
    return (values * mask).sum() / mask.sum().clamp(min=1)


def skeleton_consistency(
    p_logits: torch.Tensor, q_logits: torch.Tensor, has_clip: torch.Tensor
) -> torch.Tensor:
    """Equation (14): half the symmetric divergence, mean over the clips that have a skeleton.

    Args:
        p_logits, q_logits: ``[B, D]``.
        has_clip: bool ``[B]``.
    """
    return masked_mean(symmetric_kl(p_logits, q_logits) / 2, has_clip)


def modality_consistency(
    logits: torch.Tensor, is_visible: torch.Tensor, has_clip: torch.Tensor
) -> torch.Tensor:
    """The authors' program: the n-th visible clip against the n-th infrared clip, without the half.

    Args:
        logits: identity logits ``[B, C]``.
        is_visible: bool ``[B]``, on the host. The two halves of a batch of the cross-modal sampler
            have the same identities in the same order.
        has_clip: bool ``[B]``; a pair counts if both clips have a skeleton.
    """
    visible, infrared = is_visible.nonzero().flatten(), (~is_visible).nonzero().flatten()
    if len(visible) != len(infrared):
        raise UserError(
            "PoseConsistencyLoss pairs visible with infrared clips, but the batch has "
            f"{len(visible)} and {len(infrared)}: set "
            "DATALOADER.SAMPLER_TRAIN TrainingSampler"
        )
    halves = [half.to(logits.device) for half in (visible, infrared)]
    divergence = symmetric_kl(*(logits.index_select(0, half) for half in halves))
    first, second = (has_clip.index_select(0, half) for half in halves)
    return masked_mean(divergence, first & second)


@LOSS_REGISTRY.register()
class SkeletonConsistencyLoss(Loss):
    """Equation (14) with its linear layer: P from the bones' LSTM, Q from the joints' attention.

    P is the output of the LSTM at t = T, as in the paper's text and in the authors' program.

    Args:
        feat_dim: D.
        joint_channels: C.
        kwargs: see :class:`Loss`.
    """

    needs = ("bone_states", "joints", "has_clip")
    log_name = "loss_skeleton"
    equation = "KL(P || Q) + KL(Q || P) of bones P and joints Q, equation (14)"
    source = "the paper of STAR, arXiv 2024"

    @configurable
    def __init__(self, *, feat_dim: int, joint_channels: int = 12, **kwargs: Any):
        super().__init__(**kwargs)
        self.fc = nn.Linear(NUM_JOINTS * joint_channels, feat_dim)

    @classmethod
    def from_config(cls, cfg: CfgNode, *, feat_dim: int) -> dict[str, Any]:
        return {**super().from_config(cfg, feat_dim=feat_dim), "feat_dim": feat_dim}

    def forward(  # type: ignore[override]
        self, bone_states: BoneStates, joints: torch.Tensor, has_clip: torch.Tensor
    ) -> torch.Tensor:
        """The loss of bone states, joint features ``[B, V, C]`` and has_clip, bool ``[B]``."""
        return skeleton_consistency(bone_states.last_step, self.fc(joints.flatten(1)), has_clip)


@LOSS_REGISTRY.register()
class PoseConsistencyLoss(Loss):
    """:func:`modality_consistency` of the pose logits of ``MODEL.STAR.GUIDE release``."""

    needs = ("pose_logits", "is_visible", "has_clip")
    log_name = "loss_skeleton"
    equation = "KL(P || Q) + KL(Q || P) of the pose logits of a visible and an infrared clip"
    source = "the authors' program of STAR"
    pairs_modalities = True

    def forward(  # type: ignore[override]
        self, pose_logits: torch.Tensor, is_visible: torch.Tensor, has_clip: torch.Tensor
    ) -> torch.Tensor:
        """Pose logits ``[B, C]``, is_visible ``[N]`` of the frames, has_clip, bool ``[B]``."""
        of_clips = is_visible.view(len(has_clip), -1)[:, 0]
        return modality_consistency(pose_logits, of_clips, has_clip)


@LOSS_REGISTRY.register()
class AbsentSkeletonLoss(CrossEntropyLoss):
    """Cross entropy of the clips as if they had no skeletons; ours.

    It trains the neck of :class:`STAR` for clips without skeletons. The classifier and the frame
    features learn as if there was no such loss.
    """

    needs = ("absent_logits", "targets")
    log_name = "loss_absent"
    equation = "CE of the clips as if they had no skeletons"
    source = "ours"
    from_start = False
