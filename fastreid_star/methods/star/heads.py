"""Sequence level of STAR: body parts weigh differently pooled clip features, equations (8)-(13).

::

    skeletons -> graph attention -> node features -> mean over a part's joints -> tokens [B, P, C]
    tokens -> gates [B, K, P, D]
    Y -> GeM over T, one for each exponent -> g [B, K, D]
    G = 2 / (K P) sum_k sum_p gate_kp * g_k

Invalid joints send nothing, and are left out of every mean and of the BatchNorm statistics. A clip
without a valid joint gets the baseline's clip feature. Every mean is taken over fixed shapes with
masks.

Shapes: B clips, T frames, V joints, D feature width, C channels of a node, P body parts,
K exponents.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from fastreid.config import CfgNode, configurable
from fastreid.modeling.heads import REID_HEADS_REGISTRY
from torch import nn

from fastreid_star.coco import NUM_JOINTS, NUM_PARTS, PARTS
from fastreid_star.errors import UserError
from fastreid_star.methods.star.layers import BoneStates
from fastreid_star.modeling.heads import ClipHead
from fastreid_star.modeling.layers.masked_batch_norm import MaskedBatchNorm
from fastreid_star.modeling.layers.pooling import at_least_float32, gem
from fastreid_star.modeling.layers.skeleton_gat import SkeletonGAT
from fastreid_star.modeling.layers.skeleton_graph import (
    GEOMETRIES,
    GRAPH_READINGS,
    choose,
    joint_validity,
    measured_skeletons,
    normalize_joints,
)

GUIDES = ("sigmoid", "softmax", "release")


def gem_pyramid(
    frames: torch.Tensor, exponents: Sequence[float], eps: float = 1e-6
) -> torch.Tensor:
    """Equation (11) over T for each exponent: frames ``[B, T, D]``, non-negative, to ``[B, K, D]``.

    Frames are clamped at `eps`, because x^0.7 has an infinite slope at 0. The root adds the 1e-12
    of :func:`gem`: x^7 of small features underflows in float32, and a root of 0 has no gradient.
    """
    frames = at_least_float32(frames).clamp(min=eps)
    return torch.stack([gem(frames, p, dim=1) for p in exponents], dim=1)


def joint_means(nodes: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Mean of each joint over the frames in which it is valid; 0 where it never is.

    Args:
        nodes: ``[B, T, V, C]``.
        valid: bool ``[B, T, V]``.

    Returns:
        ``[B, V, C]``.
    """
    weights = valid[..., None].to(nodes.dtype)
    return (nodes * weights).sum(1) / weights.sum(1).clamp(min=1)


def part_tokens(
    nodes: torch.Tensor, valid: torch.Tensor, members: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Equation (12): mean of h' over the frames and over the joints of each part.

    Args:
        nodes: h' ``[B, T, V, C]``.
        valid: bool ``[B, T, V]``.
        members: bool ``[P, V]``, which joints belong to a part.

    Returns:
        tokens ``[B, P, C]``, 0 for a part that is never seen, and bool ``[B, P]``: which parts are
        seen.
    """
    weights = valid[..., None].to(nodes.dtype)
    sums, counts = (
        (x.sum(1)[:, None] * members[..., None]).sum(2) for x in (nodes * weights, weights)
    )
    return sums / counts.clamp(min=1), counts[..., 0] > 0


def weigh_by_parts(logits: torch.Tensor, pooled: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Equation (13) with a sigmoid gate for each part.

    Args:
        logits: ``[B, K, P, D]``.
        pooled: ``[B, K, D]``.

    Returns:
        G ``[B, D]``, the mean over K where all gates are 1/2, and the gates ``[B, K, P, D]``.
    """
    gates = logits.sigmoid()
    exponents, parts = gates.shape[1:3]
    return 2 / (exponents * parts) * (gates.sum(2) * pooled).sum(1), gates


def weigh_by_softmax(
    logits: torch.Tensor, pooled: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """A softmax over the exponents: logits and pooled ``[B, K, D]`` to G ``[B, D]`` and weights."""
    weights = logits.softmax(1)
    return (weights * pooled).sum(1), weights


@REID_HEADS_REGISTRY.register()
class GATGeMHead(ClipHead):
    """Skeleton-guided pooling, then the neck and the classifier of :class:`ClipHead`.

    Beside `clip` ``[B, D]`` it provides `joints` ``[B, V, C]`` (node features, mean over the
    frames), `has_clip` bool ``[B]`` (clips with a valid joint) and, with `pose_logits`, the
    identity logits of the pose feature ``[B, classes]``.

    Args:
        feat_dim: D.
        num_classes: identities.
        exponents: of the GeM poolings, K of them.
        guide: how the skeleton weighs them. `sigmoid`: a gate for each part and exponent, from the
            token of the part. `softmax`: the same logits, mean over the parts, softmax over K.
            `release`: softmax over K of a linear layer on BN([last LSTM step; node features,
            flattened and averaged to D]).
        graph: `paper`, or `release`: bones in frame 0 only, joints in raw pixels, regardless of
            their scores.
        geometry: in which pixels joints are measured, see
            :func:`~fastreid_star.modeling.layers.skeleton_graph.measured_skeletons`.
        score_threshold: joints with a lower score are ignored.
        attention_dropout, dropout: of the graph attention, and between its layers.
        pose_logits: classify the pose feature of the `release` guide as well.
        kwargs: see :class:`ClipHead`.
    """

    reads_skeletons = True

    @configurable
    def __init__(
        self,
        *,
        feat_dim: int,
        num_classes: int,
        exponents: Sequence[float] = (0.7, 1.0, 3.0, 5.0, 7.0),
        guide: str = "sigmoid",
        graph: str = "paper",
        geometry: str = "crop",
        score_threshold: float = 0.0,
        attention_dropout: float = 0.6,
        dropout: float = 0.3,
        pose_logits: bool = False,
        **kwargs: Any,
    ):
        super().__init__(feat_dim=feat_dim, num_classes=num_classes, **kwargs)
        if not exponents or min(exponents) <= 0:
            raise UserError(
                f"MODEL.STAR.EXPONENTS is {list(exponents)}: give at least one, all larger than 0"
            )
        if pose_logits and guide != "release":
            raise UserError(
                "PoseConsistencyLoss compares the pose features of MODEL.STAR.GUIDE release, but "
                f"the guide is {guide}"
            )
        self.exponents, self.feat_dim = tuple(exponents), feat_dim
        self.guide = choose("GUIDE", guide, GUIDES)
        self.score_threshold = None if graph == "release" else score_threshold
        self.gat = SkeletonGAT(
            attention_dropout=attention_dropout,
            dropout=dropout,
            graph=choose("GRAPH", graph, GRAPH_READINGS),
            norm=guide != "release",
        )
        self.graph = graph
        self.geometry = choose("GEOMETRY", geometry, GEOMETRIES)
        self.needs = ("corrected", "bone_states") if guide == "release" else ("corrected",)
        self.provides = ("clip", "joints", "has_clip", *(["pose_logits"] if pose_logits else []))
        channels = self.gat.out_channels
        members = torch.zeros(NUM_PARTS, NUM_JOINTS, dtype=torch.bool)
        for part, joints in enumerate(PARTS.values()):
            members[part, list(joints)] = True
        self.register_buffer("members", members, persistent=False)
        if guide == "release":
            self.guide_norm = MaskedBatchNorm(2 * feat_dim)
            self.guide_layer = nn.Linear(2 * feat_dim, len(exponents) * feat_dim)
            self.pose_classifier = nn.Linear(2 * feat_dim, num_classes) if pose_logits else None
        else:
            self.token_norm = MaskedBatchNorm(NUM_PARTS * channels)
            shape = (len(exponents), NUM_PARTS, feat_dim)
            # one linear layer C -> D for each exponent and part, initialized as nn.Linear is, with
            # a bias of 0: all gates are 1/2 on average
            bound = channels**-0.5
            self.gate_weight = nn.Parameter(torch.empty(*shape, channels).uniform_(-bound, bound))
            self.gate_bias = nn.Parameter(torch.zeros(shape))

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """As :class:`ClipHead`, with ``MODEL.STAR``."""
        star = cfg.MODEL.STAR
        return {
            **super().from_config(cfg),
            "exponents": star.EXPONENTS,
            "guide": star.GUIDE,
            "graph": star.GRAPH,
            "geometry": star.GEOMETRY,
            "score_threshold": star.SCORE_THRESHOLD,
            "attention_dropout": star.ATTENTION_DROPOUT,
            "dropout": star.GAT_DROPOUT,
            "pose_logits": "PoseConsistencyLoss" in cfg.MODEL.LOSSES.NAME,
        }

    def aggregate(
        self, outputs: dict[str, Any], batch: dict[str, Any], explain: bool = False
    ) -> dict[str, Any]:
        """Pool Y ``[B, T, D]``, non-negative, guided by the skeletons; see :class:`ClipHead`.

        `attention` has `joint_attention` ``[B, T, V]`` (received in the second layer),
        `exponent_weights` ``[B, K]`` (sum 1) and, with the `sigmoid` guide, `part_weights` ``[B,
        P]`` (mean gate over K and D). All are 0 for a clip without a skeleton.
        """
        frames, skeletons = outputs["corrected"], measured_skeletons(batch, self.geometry)
        valid = joint_validity(skeletons, batch["has_skeleton"], self.score_threshold)
        has_clip = valid.flatten(1).any(1)
        joints = normalize_joints(skeletons, valid, self.graph)
        nodes, joint_attention = self.gat(joints, valid, explain)
        pooled = gem_pyramid(frames, self.exponents)

        found: dict[str, Any] = {"joints": joint_means(nodes, valid), "has_clip": has_clip}
        gates = None
        if self.guide == "release":
            guide = self.release_guide(nodes, outputs["bone_states"], has_clip)
            shape = (len(self.exponents), self.feat_dim)
            logits = at_least_float32(self.guide_layer(guide)).unflatten(1, shape)
            clip, weights = weigh_by_softmax(logits, pooled)
            if self.training and self.pose_classifier is not None:
                found["pose_logits"] = self.pose_classifier(guide)
        else:
            logits = self.part_logits(nodes, valid)
            if self.guide == "sigmoid":
                clip, gates = weigh_by_parts(logits, pooled)
                weights = gates.mean(2)
            else:
                clip, weights = weigh_by_softmax(logits.mean(2), pooled)
        found["clip"] = torch.where(has_clip[:, None], clip, self.pool(frames))

        if explain:
            unseen, share = ~has_clip[:, None], weights.mean(2)
            attention = {
                "joint_attention": joint_attention,
                "exponent_weights": (share / share.sum(1, keepdim=True)).masked_fill(unseen, 0),
            }
            if gates is not None:
                attention["part_weights"] = gates.mean((1, 3)).masked_fill(unseen, 0)
            found["attention"] = attention
        return found

    def part_logits(self, nodes: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """Node features ``[B, T, V, C]`` to the logits of the gates ``[B, K, P, D]``.

        The tokens of each part are batch-normalized by themselves: the gates shall depend on what
        distinguishes clips, not on what distinguishes legs from arms. A part that is never seen has
        the mean token, 0.
        """
        tokens, seen = part_tokens(nodes, valid, self.members)
        seen = seen[..., None].expand_as(tokens).flatten(1)
        tokens = self.token_norm(tokens.flatten(1), seen).view_as(tokens)
        logits = torch.einsum("bpc,kpdc->bkpd", tokens, self.gate_weight)
        return at_least_float32(logits) + self.gate_bias

    def release_guide(
        self, nodes: torch.Tensor, bone_states: BoneStates, has_clip: torch.Tensor
    ) -> torch.Tensor:
        """BN([last LSTM step; node features, flattened and averaged to D]), ``[B, 2D]``."""
        pose = F.adaptive_avg_pool1d(nodes.flatten(1)[:, None], self.feat_dim).squeeze(1)
        return self.guide_norm(torch.cat([bone_states.last_step, pose], dim=1), has_clip[:, None])
