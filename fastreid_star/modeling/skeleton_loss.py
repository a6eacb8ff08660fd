"""Skeleton consistency loss (14): bones and joints of a clip are to say the same.

In float32 or wider whatever autocast says. Shapes: B clips, V joints, C channels of a node, D feature width.
"""

from __future__ import annotations

import torch
from fastreid.config import CfgNode, configurable
from torch import nn

from fastreid_star.coco import NUM_JOINTS
from fastreid_star.errors import UserError
from fastreid_star.modeling.frame_corrector import BoneStates
from fastreid_star.modeling.pooling import at_least_float32
from fastreid_star.modeling.skeleton_graph import choose

LAST_STATES = ("last_step", "final_states")


def symmetric_kl(p_logits: torch.Tensor, q_logits: torch.Tensor) -> torch.Tensor:
    """``KL(P||Q) + KL(Q||P)`` of each row, P and Q the softmax of logits ``[R, D]``; ``[R]``.

    The two sums are one, of (P - Q)(log P - log Q): never negative, term by term.
    """
    log_p, log_q = (at_least_float32(logits).log_softmax(-1) for logits in (p_logits, q_logits))
    return ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(-1)


def masked_mean(values: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Mean of values ``[R]`` where bool ``[R]`` says that they count; 0 if none does."""
    counts = counts.to(values.dtype)
    return (values * counts).sum() / counts.sum().clamp(min=1)


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
    """The `release` reading: the n-th visible against the n-th infrared clip, by identity logits, without the half.

    Args:
        logits: ``[B, classes]``.
        is_visible: bool ``[B]``, on the host. The sampler's two halves have the same identities in the same order.
        has_clip: bool ``[B]``; a pair counts if both clips do.
    """
    visible, infrared = is_visible.nonzero().flatten(), (~is_visible).nonzero().flatten()
    if len(visible) != len(infrared):
        raise UserError(
            f"MODEL.STAR.KL release pairs visible with infrared clips, but the batch has {len(visible)} and "
            f"{len(infrared)}: use the cross-modal sampler"
        )
    halves = [half.to(logits.device) for half in (visible, infrared)]
    divergence = symmetric_kl(*(logits.index_select(0, half) for half in halves))
    first, second = (has_clip.index_select(0, half) for half in halves)
    return masked_mean(divergence, first & second)


class SkeletonConsistency(nn.Module):
    """Equation (14) with its linear layer: P from the bones' LSTM, Q from the joints' graph attention.

    Args:
        feat_dim: D.
        joint_channels: C.
        last: which output of the LSTM is P. `last_step`: that at t = T, as in the release, whose backward half has
            seen one frame; `final_states`: both directions after all frames.
    """

    @configurable
    def __init__(self, *, feat_dim: int, joint_channels: int = 12, last: str = "last_step"):
        super().__init__()
        self.last = choose("KL_LAST", last, LAST_STATES)
        self.fc = nn.Linear(NUM_JOINTS * joint_channels, feat_dim)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        """Read ``MODEL.STAR``; `feat_dim` is the backbone's and comes with the call."""
        return {"feat_dim": cfg.MODEL.BACKBONE.FEAT_DIM, "last": cfg.MODEL.STAR.KL_LAST}

    def forward(
        self, bone_states: BoneStates, joints: torch.Tensor, has_clip: torch.Tensor
    ) -> torch.Tensor:
        """The loss of bone states, joint features ``[B, V, C]`` and bool ``[B]``: which clips have a skeleton."""
        return skeleton_consistency(
            getattr(bone_states, self.last), self.fc(joints.flatten(1)), has_clip
        )
