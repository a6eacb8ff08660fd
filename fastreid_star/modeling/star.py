"""STAR: the baseline, with bones correcting the frames and joints weighing the clip. Reads like the paper's Figure 2.

::

    images    -> two-stream backbone -> X [B, T, D] -+-> frame CE, style attack and defense: as in SAD
                                                     |
    skeletons -> bones (1)-(3) ----> frame corrector (4)-(7) -> Y [B, T, D]
        |                |                                      |
        +--> joints, graph attention (8)-(10) -> parts (12) -> GeM pyramid (11), weighed (13) -> G [B, D]
                         |         |                                                              |
                         +--- skeleton consistency (14)                       clip CE, triplet, retrieval

Without a part, its input goes on as it is; without all of them this is SAD, number for number.

Shapes: B clips, T frames, V joints, D feature width.
"""

from __future__ import annotations

from typing import Any

import torch
from fastreid.config import CfgNode, configurable
from fastreid.modeling.meta_arch import META_ARCH_REGISTRY

from fastreid_star.errors import UserError
from fastreid_star.modeling.frame_corrector import BoneEncoder, BoneStates, FrameCorrector
from fastreid_star.modeling.gat_gem_head import GATGeMHead
from fastreid_star.modeling.sad import SAD
from fastreid_star.modeling.skeleton_graph import choose, drop_skeletons
from fastreid_star.modeling.skeleton_loss import SkeletonConsistency, modality_consistency
from fastreid_star.structures import Modality

KL_READINGS = ("paper", "release")


@META_ARCH_REGISTRY.register()
class STAR(SAD):
    """Skeleton-guided spatial-temporal feature learning (Jiang et al., 2024, arXiv 2411.11069).

    Args:
        corrector: the frame level; None: Y is X.
        encoder: reads the bones where no corrector does but the head or the consistency loss needs them.
        consistency: the loss (14) in the paper's reading; None: the `release` reading, where it is chosen.
        skeleton_dropout: share of training clips that lose their skeletons, at both levels.
        others: see :class:`SAD`. The sequence level is the head: :class:`GATGeMHead` has it, `ClipHead` does not.

    Raises:
        UserError: the consistency loss is chosen without the sequence level, whose joints it compares.
    """

    wants_skeletons = True  # the trainer says so where a config names none
    known_losses = (*SAD.known_losses, "SkeletonConsistencyLoss")

    @configurable
    def __init__(
        self,
        *,
        corrector: FrameCorrector | None = None,
        encoder: BoneEncoder | None = None,
        consistency: SkeletonConsistency | None = None,
        skeleton_dropout: float = 0.0,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if not 0 <= skeleton_dropout <= 1:
            raise UserError(
                f"MODEL.STAR.SKELETON_DROPOUT is {skeleton_dropout}: it is a share, from 0 to 1"
            )
        if "SkeletonConsistencyLoss" in self.loss_names and not isinstance(self.heads, GATGeMHead):
            raise UserError(
                "SkeletonConsistencyLoss compares bones with the joints of the sequence level: set MODEL.HEADS.NAME "
                "GATGeMHead, or leave the loss out of MODEL.LOSSES.NAME"
            )
        self.corrector = corrector
        self.encoder = encoder
        self.consistency = consistency
        self.skeleton_dropout = skeleton_dropout

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        """As :class:`SAD`, with ``MODEL.STAR``. SAD's parts are drawn first: one seed gives both the same weights."""
        star = cfg.MODEL.STAR
        arguments = super().from_config(cfg)
        width = arguments["backbone"].feature_width
        consistent = "SkeletonConsistencyLoss" in cfg.MODEL.LOSSES.NAME
        paper = choose("KL", star.KL, KL_READINGS) == "paper"
        reads_bones = (consistent and paper) or getattr(
            arguments["heads"], "needs_edge_state", False
        )
        return {
            **arguments,
            "corrector": FrameCorrector(cfg, feat_dim=width) if star.FRAME_LEVEL else None,
            "encoder": BoneEncoder(cfg, feat_dim=width)
            if reads_bones and not star.FRAME_LEVEL
            else None,
            "consistency": SkeletonConsistency(cfg, feat_dim=width)
            if consistent and paper
            else None,
            "skeleton_dropout": star.SKELETON_DROPOUT,
        }

    @property
    def reads_skeletons(self) -> bool:
        """Whether any part does."""
        return self.corrector is not None or isinstance(self.heads, GATGeMHead)

    def clip_feature(
        self, frames: torch.Tensor, batch: dict, with_attention: bool = False
    ) -> tuple[torch.Tensor, dict]:
        """X ``[B, T, D]`` to the clip ``[B, D]``: frame level, then sequence level; see :meth:`SAD.clip_feature`.

        Args:
            batch: with `skeletons` ``[B, T, V, 3]`` and `has_skeleton`, bool ``[B, T]``.
            with_attention: collect what the parts looked at in ``extras["attention"]``.
        """
        if not self.reads_skeletons:
            return super().clip_feature(frames, batch)
        skeletons, has_skeleton = (
            batch[key].to(self.device, non_blocking=True) for key in ("skeletons", "has_skeleton")
        )
        if self.training and self.skeleton_dropout:
            has_skeleton = drop_skeletons(has_skeleton, self.skeleton_dropout)
        bones: BoneStates | None = None
        attention: dict[str, torch.Tensor] = {}
        if self.corrector is not None:
            corrected = self.corrector(frames, skeletons, has_skeleton, with_attention)
            frames, bones = corrected.frames, corrected.bone_states
            attention.update(corrected.attention or {})
        elif self.encoder is not None:
            bones = self.encoder(skeletons, has_skeleton)
        if not isinstance(self.heads, GATGeMHead):
            return self.heads.pool(frames), {"attention": attention}
        edge_state = None if bones is None else bones.last_step
        pose = self.heads.aggregate(frames, skeletons, has_skeleton, edge_state, with_attention)
        attention.update(pose.attention or {})
        return pose.clip, {
            "bones": bones,
            "pose": pose,
            "modality": batch["modality"],
            "attention": attention,
        }

    def losses(
        self,
        frames: torch.Tensor,
        attacked: torch.Tensor | None,
        clip: torch.Tensor,
        extras: dict,
        targets: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """SAD's losses and, where it is chosen, `loss_skeleton`, equation (14); see :meth:`SAD.losses`."""
        losses = super().losses(frames, attacked, clip, extras, targets)
        if "SkeletonConsistencyLoss" in self.loss_names:
            pose = extras["pose"]
            if self.consistency is not None:
                losses["loss_skeleton"] = self.consistency(
                    extras["bones"], pose.joints, pose.has_clip
                )
            else:
                is_visible = torch.as_tensor(extras["modality"]).cpu() == Modality.VISIBLE
                losses["loss_skeleton"] = modality_consistency(
                    pose.pose_logits, is_visible, pose.has_clip
                )
        return losses

    @torch.no_grad()
    def look(self, batch: dict) -> dict[str, torch.Tensor]:
        """What the model looks at in these clips, in evaluation mode.

        Returns:
            what the parts that are there give: `bone_weights` ``[B, T, E]``, `frame_gates` ``[B, T]``,
            `frame_attention` ``[B, T, T]`` (frame level); `joint_attention` ``[B, T, V]``, `part_weights` ``[B, P]``,
            `exponent_weights` ``[B, K]`` (sequence level). All are 0 where there is no skeleton.

        Raises:
            UserError: the model reads no skeletons.
        """
        if not self.reads_skeletons:
            raise UserError(
                "this model reads no skeletons: there is nothing to see; train one with MODEL.STAR's parts"
            )
        modes = {module: module.training for module in self.modules()}
        self.eval()
        try:
            clips, length = batch["images"].shape[:2]
            is_visible = self.frame_modality(batch["modality"], length)
            low = self.backbone.low(
                self.backbone.stem(self.preprocess(batch["images"], is_visible), is_visible)
            )
            frames = self.frame_features(low).unflatten(0, (clips, length))
            return self.clip_feature(frames, batch, with_attention=True)[1]["attention"]
        finally:
            for module, training in modes.items():
                module.training = training
