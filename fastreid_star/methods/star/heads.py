"""Sequence level of STAR: body parts guide the pooling of the frame features, equations (8)-(13).

::

    skeletons -> graph attention -> node features h'
    h' -> mean over a part's joints in each frame -> tokens alpha [B, T, P, C]
    Y -> GeM over T, one for each exponent, averaged -> g [B, D]
    G = g + mean over t of relu(sum over p of W_p alpha_p(t))

This is the reading `parts`, the default. Invalid joints send nothing, and are left out of every
mean and of the BatchNorm statistics. A clip without a valid joint gets the baseline's clip feature.
Every mean is taken over fixed shapes with masks.

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
from fastreid_star.methods.star.pooling import (
    add_parts,
    clip_part_tokens,
    gem_pyramid,
    joint_means,
    part_shares,
    part_tokens,
    weigh_by_parts,
    weigh_by_softmax,
)
from fastreid_star.modeling.heads import ClipHead
from fastreid_star.modeling.layers.masked_batch_norm import MaskedBatchNorm
from fastreid_star.modeling.layers.pooling import at_least_float32
from fastreid_star.modeling.layers.skeleton_gat import SkeletonGAT
from fastreid_star.modeling.layers.skeleton_graph import (
    GEOMETRIES,
    GRAPH_READINGS,
    choose,
    joint_validity,
    measured_skeletons,
    normalize_joints,
)

GUIDES = ("parts", "sigmoid", "release")
# Dropout of the attention, and between the layers of graph attention, in each reading of the graph.
# With the larger ones, the part tokens lost much of the gait: 4 points of mean mAP in a trial.
DROPOUTS = {"standardized": (0.1, 0.1), "normalized": (0.6, 0.3), "release": (0.6, 0.3)}
LARGEST = 5.0  # standardized input of a node, in standard deviations


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
        guide: how the skeleton guides the pooling. `parts`: see the top of this file. `sigmoid`: a
            gate for each part, exponent and channel, from the token of the part in the whole clip,
            ``2 / (K P) sum_k sum_p gate_kp * g_k``. `release`: softmax over K of a linear layer on
            BN([last LSTM step; node features, flattened and averaged to D]).
        graph: `standardized`, `normalized` or `release`: bones in frame 0 only, joints in raw
            pixels, regardless of their scores. See
            :func:`~fastreid_star.modeling.layers.skeleton_graph.normalize_joints`.
        geometry: in which pixels joints are measured, see
            :func:`~fastreid_star.modeling.layers.skeleton_graph.measured_skeletons`.
        score_threshold: joints with a lower score are ignored.
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
        guide: str = "parts",
        graph: str = "standardized",
        geometry: str = "crop",
        score_threshold: float = 0.0,
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
        self.graph = choose("GRAPH", graph, GRAPH_READINGS)
        self.score_threshold = None if graph == "release" else score_threshold
        attention_dropout, dropout = DROPOUTS[graph]
        self.gat = SkeletonGAT(
            attention_dropout=attention_dropout,
            dropout=dropout,
            graph=graph,
            norm=guide != "release",
        )
        self.node_norm = MaskedBatchNorm(NUM_JOINTS * 3) if graph == "standardized" else None
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
            # one linear layer C -> D for each part (and exponent), initialized as nn.Linear is,
            # with a bias of 0: the gates of `sigmoid` are 1/2 on average
            each = (len(exponents),) if guide == "sigmoid" else ()
            shape = (*each, NUM_PARTS, feat_dim)
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
            "pose_logits": "PoseConsistencyLoss" in cfg.MODEL.LOSSES.NAME,
        }

    def aggregate(
        self, outputs: dict[str, Any], batch: dict[str, Any], explain: bool = False
    ) -> dict[str, Any]:
        """Pool Y ``[B, T, D]``, non-negative, guided by the skeletons; see :class:`ClipHead`.

        `attention` has `joint_attention` ``[B, T, V]`` (received in the second layer); with the
        guides `parts` and `sigmoid` `part_weights` ``[B, P]`` (share of the parts' contributions;
        mean gate over K and D), with `sigmoid` and `release` `exponent_weights` ``[B, K]`` (sum 1).
        All are 0 for a clip without a skeleton.
        """
        frames, skeletons = outputs["corrected"], measured_skeletons(batch, self.geometry)
        valid = joint_validity(skeletons, batch["has_skeleton"], self.score_threshold)
        has_clip = valid.flatten(1).any(1)
        nodes, joint_attention = self.gat(self.joint_inputs(skeletons, valid), valid, explain)
        pooled = gem_pyramid(frames, self.exponents)

        found: dict[str, Any] = {"joints": joint_means(nodes, valid), "has_clip": has_clip}
        attention = {"joint_attention": joint_attention}
        if self.guide == "parts":
            contributions, seen = self.part_contributions(nodes, valid)
            clip = add_parts(contributions, seen, pooled)
            if explain:
                attention["part_weights"] = part_shares(contributions, seen)
        elif self.guide == "sigmoid":
            clip, gates = weigh_by_parts(self.part_logits(nodes, valid), pooled)
            attention["part_weights"] = gates.mean((1, 3))
            attention["exponent_weights"] = F.normalize(gates.mean((2, 3)), p=1, dim=1)
        else:
            guide = self.release_guide(nodes, outputs["bone_states"], has_clip)
            shape = (len(self.exponents), self.feat_dim)
            logits = at_least_float32(self.guide_layer(guide)).unflatten(1, shape)
            clip, weights = weigh_by_softmax(logits, pooled)
            attention["exponent_weights"] = weights.mean(2)
            if self.training and self.pose_classifier is not None:
                found["pose_logits"] = self.pose_classifier(guide)
        found["clip"] = torch.where(has_clip[:, None], clip, self.pool(frames))
        if explain:
            unseen = ~has_clip
            found["attention"] = {
                name: weights.masked_fill(unseen.view(-1, *[1] * (weights.dim() - 1)), 0)
                for name, weights in attention.items()
            }
        return found

    def joint_inputs(self, skeletons: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """The inputs of the graph's nodes ``[B, T, V, 3]``.

        In the `standardized` reading each of the V 3 numbers is batch-normalized over the frames in
        which its joint is valid, cut off at `LARGEST`, and then multiplied by the score of the
        joint. Without the limit, the scores of another pose network could become huge: where all
        scores were equal in training, there is no spread to divide by.
        """
        joints = normalize_joints(skeletons, valid, self.graph)
        if self.node_norm is None:
            return joints
        scores = joints[..., 2:].clamp(0, 1)
        rows = joints.flatten(0, 1).flatten(1)
        known = valid[..., None].expand_as(joints).flatten(0, 1).flatten(1)
        return self.node_norm(rows, known).clamp(-LARGEST, LARGEST).view_as(joints) * scores

    def part_contributions(
        self, nodes: torch.Tensor, valid: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Node features ``[B, T, V, C]`` to ``W_p alpha_p(t) + b_p`` ``[B, T, P, D]``, and seen.

        The tokens of each part are batch-normalized by themselves.
        """
        tokens, seen = part_tokens(nodes, valid, self.members)
        rows = tokens.flatten(0, 1).flatten(1)
        known = seen[..., None].expand_as(tokens).flatten(0, 1).flatten(1)
        tokens = self.token_norm(rows, known).view_as(tokens)
        found = (tokens.transpose(1, 2) @ self.gate_weight.transpose(1, 2)).transpose(1, 2)
        return at_least_float32(found) + self.gate_bias, seen

    def part_logits(self, nodes: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """Node features ``[B, T, V, C]`` to the logits of the gates ``[B, K, P, D]``.

        The tokens of each part are batch-normalized by themselves: the gates shall depend on what
        distinguishes clips, not on what distinguishes legs from arms. A part that is never seen has
        the mean token, 0.
        """
        tokens, seen = clip_part_tokens(nodes, valid, self.members)
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
