"""Frame level of STAR: bones correct the features of single frames, equations (1)-(7).

::

    skeletons -> bone features -> FC -> two-way LSTM -> S
    H_t = attention(q=X, k=v=S)     W = SE(H_t)
    H_o = attention(q=S, k=v=X)     Y = relu(LN(FFN([H_o; H_t]))) * W + X + 1e-3

A frame without a valid joint keeps its feature: Y = X. It gives the LSTM a zero input, so nothing
stored for it reaches another frame, and its S is not a key of H_t. It is a key of H_o like any
other frame, because its X is good.

Shapes: B clips, T frames, V joints, E bones, F numbers a bone, D feature width.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from fastreid.config import CfgNode, configurable
from torch import nn

from fastreid_star.coco import BONES, NUM_BONES
from fastreid_star.errors import UserError
from fastreid_star.modeling.frame_correctors import FRAME_CORRECTOR_REGISTRY, FrameCorrectorBase
from fastreid_star.modeling.layers.masked_batch_norm import MaskedBatchNorm
from fastreid_star.modeling.layers.pooling import at_least_float32
from fastreid_star.modeling.layers.skeleton_graph import (
    BONE_READINGS,
    GEOMETRIES,
    bone_features,
    bone_scores,
    choose,
    joint_validity,
    measured_skeletons,
)

READINGS = ("paper", "release")
FLOOR = 1e-3  # epsilon of equation (7): keeps Y > 0, and with it the gradient of Y^0.7 bounded


class BoneStates(NamedTuple):
    """What the LSTM has read from the bones.

    Attributes:
        states: S ``[B, T, D]``: forward half, backward half.
        last_step: S at t = T, ``[B, D]``; its backward half has seen one frame.
        seen: bool ``[B, T]``, frames with at least one valid joint.
        bones: the input of the linear layer ``[B, T, E, F]``.
    """

    states: torch.Tensor
    last_step: torch.Tensor
    seen: torch.Tensor
    bones: torch.Tensor


class BoneEncoder(nn.Module):
    """Equations (1)-(3): bone features, one linear layer, a two-way LSTM over the frames.

    Computed in float32 or wider: the encoder is small, and a recurrence accumulates rounding
    errors.

    In the `standardized` reading, each of the E F inputs is batch-normalized over the frames in
    which its bone is seen, and then multiplied by the score of the bone. Lengths vary by a few
    hundredths where sines vary by one: without this step they are too small to be learned from.

    Args:
        feat_dim: D, half of it for each direction.
        bones: `standardized`, `normalized` or `release`, see
            :func:`~fastreid_star.modeling.layers.skeleton_graph.bone_features`. `release` also uses
            every joint of a skeleton, regardless of its score.
        score_threshold: joints with a lower score are ignored.
        hidden: width of the linear layer.
    """

    @configurable
    def __init__(
        self,
        *,
        feat_dim: int,
        bones: str = "standardized",
        score_threshold: float = 0.0,
        hidden: int = 64,
    ):
        super().__init__()
        self.reading = choose("BONES", bones, BONE_READINGS)
        if feat_dim % 2:
            raise UserError(
                f"a two-way LSTM cannot halve {feat_dim} features: choose a backbone of even width"
            )
        self.score_threshold = None if bones == "release" else score_threshold
        inputs = NUM_BONES * BONE_READINGS[bones]
        self.norm = MaskedBatchNorm(inputs) if bones == "standardized" else None
        self.fc = nn.Linear(inputs, hidden)
        self.lstm = nn.LSTM(hidden, feat_dim // 2, batch_first=True, bidirectional=True)
        self.bones: torch.Tensor
        self.register_buffer("bones", torch.tensor(BONES), persistent=False)

    @classmethod
    def from_config(cls, cfg: CfgNode, *, feat_dim: int) -> dict[str, Any]:
        """Read ``MODEL.STAR``."""
        star = cfg.MODEL.STAR
        return {
            "feat_dim": feat_dim,
            "bones": star.BONES,
            "score_threshold": star.SCORE_THRESHOLD,
        }

    def forward(self, skeletons: torch.Tensor, has_skeleton: torch.Tensor) -> BoneStates:
        """Skeletons ``[B, T, V, 3]``, has_skeleton bool ``[B, T]``."""
        valid = joint_validity(skeletons, has_skeleton, self.score_threshold)
        seen = valid.any(-1)
        with torch.autocast(skeletons.device.type, enabled=False):
            bones = bone_features(skeletons, valid, self.reading, self.bones)
            if self.norm is not None:
                scores = bone_scores(skeletons, valid, self.bones)[..., None].expand_as(bones)
                rows = bones.flatten(0, 1).flatten(1)
                rows = self.norm(rows, (scores > 0).flatten(0, 1).flatten(1))
                bones = rows.view_as(bones) * scores
            states, _ = self.lstm(self.fc(bones.flatten(2)).masked_fill(~seen[..., None], 0))
        return BoneStates(states, states[:, -1], seen, bones)

    def bone_weights(self, bones: torch.Tensor) -> torch.Tensor:
        """Share of each bone in the linear layer's input: ``|W_e f_e|``, sum 1 over the bones.

        Args:
            bones: ``[B, T, E, F]``.

        Returns:
            ``[B, T, E]``.
        """
        weight = self.fc.weight.unflatten(1, (NUM_BONES, -1))
        norms = torch.einsum("btef,hef->bteh", bones, weight).norm(dim=-1)
        return norms / norms.sum(-1, keepdim=True).clamp(min=1e-12)


@FRAME_CORRECTOR_REGISTRY.register()
class BoneReader(FrameCorrectorBase):
    """Reads the bones and leaves the frames unchanged, for a head or a loss that needs the bones.

    Args:
        encoder: equations (1)-(3).
        geometry: in which pixels bones are measured, see
            :func:`~fastreid_star.modeling.layers.skeleton_graph.measured_skeletons`.
    """

    reads_skeletons = True
    provides = ("bone_states", "has_clip")
    without_gradient = ("has_clip",)
    corrects = False

    @configurable
    def __init__(self, *, encoder: BoneEncoder, geometry: str = "crop"):
        super().__init__()
        self.encoder = encoder
        self.geometry = choose("GEOMETRY", geometry, GEOMETRIES)

    @classmethod
    def from_config(cls, cfg: CfgNode, *, feat_dim: int) -> dict[str, Any]:
        """Read ``MODEL.STAR``."""
        encoder = BoneEncoder(cfg, feat_dim=feat_dim)
        return {"encoder": encoder, "geometry": cfg.MODEL.STAR.GEOMETRY}

    def forward(
        self, frames: torch.Tensor, batch: dict[str, Any], explain: bool = False
    ) -> dict[str, Any]:
        """See :class:`FrameCorrectorBase`; `corrected` is X.

        Added are `bone_states` and `has_clip`, bool ``[B]``: clips with a valid joint.
        """
        states = self.encoder(measured_skeletons(batch, self.geometry), batch["has_skeleton"])
        return {"corrected": frames, "bone_states": states, "has_clip": states.seen.any(1)}


@FRAME_CORRECTOR_REGISTRY.register()
class SkeletonFrameCorrector(BoneReader):
    """Equations (1)-(7).

    Args:
        feat_dim: D.
        encoder, geometry: see :class:`BoneReader`.
        reading: `paper`, or `release`: without the squeeze-and-excitation (5) and without the
            LayerNorm. The LayerNorm is ours: without it most units of the last ReLU die.
        heads: of both attentions.
        reduction: of the squeeze-and-excitation.
    """

    corrects = True

    @configurable
    def __init__(
        self,
        *,
        feat_dim: int,
        encoder: BoneEncoder,
        geometry: str = "crop",
        reading: str = "paper",
        heads: int = 4,
        reduction: int = 16,
    ):
        super().__init__(encoder=encoder, geometry=geometry)
        choose("CORRECTOR", reading, READINGS)
        if feat_dim % heads:
            raise UserError(
                f"{heads} attention heads cannot share {feat_dim} features: choose another backbone"
            )
        self.attend_time = nn.MultiheadAttention(feat_dim, heads, batch_first=True)
        self.attend_visual = nn.MultiheadAttention(feat_dim, heads, batch_first=True)
        self.ffn = nn.Sequential(
            nn.Linear(2 * feat_dim, feat_dim), nn.ReLU(), nn.Linear(feat_dim, feat_dim)
        )
        self.norm = self.se = None
        if reading == "paper":
            narrow = max(feat_dim // reduction, 1)
            self.norm = nn.LayerNorm(feat_dim)
            self.se = nn.Sequential(
                nn.Linear(feat_dim, narrow, bias=False),
                nn.ReLU(),
                nn.Linear(narrow, feat_dim, bias=False),
                nn.Sigmoid(),
            )

    @classmethod
    def from_config(cls, cfg: CfgNode, *, feat_dim: int) -> dict[str, Any]:
        """Read ``MODEL.STAR``."""
        options = {"feat_dim": feat_dim, "reading": cfg.MODEL.STAR.CORRECTOR}
        return {**super().from_config(cfg, feat_dim=feat_dim), **options}

    def forward(
        self, frames: torch.Tensor, batch: dict[str, Any], explain: bool = False
    ) -> dict[str, Any]:
        """See :class:`FrameCorrectorBase`.

        `attention` has `bone_weights` ``[B, T, E]``, `frame_attention` ``[B, T, T]`` (H_t: frame t
        attends to the bones of frame s) and `frame_updates` ``[B, T]`` (the length of Y - X divided
        by that of Y). All are 0 for a frame without a skeleton.
        """
        frames = at_least_float32(frames)
        bone_states = self.encoder(measured_skeletons(batch, self.geometry), batch["has_skeleton"])
        states, seen = bone_states.states, bone_states.seen
        # Frames without a skeleton are not keys. A clip without any skeleton keeps all its keys,
        # because a softmax needs one; its result is not used. The mask is a number to add, and not
        # a boolean, so that all kernels of all devices treat it alike.
        closed = ~seen & seen.any(1, keepdim=True)
        bias = torch.zeros_like(frames[..., 0]).masked_fill(closed, float("-inf"))
        by_time, frame_attention = self.attend_time(
            frames, states, states, key_padding_mask=bias, need_weights=explain
        )
        by_sight, _ = self.attend_visual(states, frames, frames, need_weights=False)
        update = at_least_float32(self.ffn(torch.cat([by_sight, by_time], dim=-1)))
        update = F.relu(update if self.norm is None else self.norm(update))
        gates = None if self.se is None else at_least_float32(self.se(by_time))
        corrected = (update if gates is None else update * gates) + frames + FLOOR
        found: dict[str, Any] = {
            "corrected": torch.where(seen[..., None], corrected, frames),
            "bone_states": bone_states,
            "has_clip": seen.any(1),
        }
        if explain:
            attention = {
                "bone_weights": self.encoder.bone_weights(bone_states.bones),
                "frame_attention": at_least_float32(frame_attention).masked_fill(
                    ~seen[..., None], 0
                ),
            }
            change = (corrected - frames).norm(dim=-1) / corrected.norm(dim=-1)
            attention["frame_updates"] = change.masked_fill(~seen, 0)
            found["attention"] = attention
        return found
