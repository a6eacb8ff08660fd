"""VCD: three whole networks and their bottlenecks, distilled from what they observe.

::

    x -> visible network  -> v -> W -> CE, rank;  v -> bottleneck -> z -> CE, rank;  VSD: z keeps v
    g -> infrared network -> the same; Sinkhorn between the classes of both
    x -> shared network   -> the same -+
    g -> shared network   -> the same -+- VCD: z of one keeps v of the other
    the four v, of unit length together -> retrieval

g is the gray copy of the image x. The networks have their names from the paper, but every image
passes all of them, visible or infrared.

Shapes: B clips, T frames, N = B T frames, D feature width, V = 4 branches.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from fastreid.config import CfgNode, configurable
from fastreid.modeling.meta_arch import META_ARCH_REGISTRY
from torch import nn

from fastreid_star.errors import UserError
from fastreid_star.methods.vcd.heads import BranchHead
from fastreid_star.methods.vcd.layers import ChannelAttention, gray
from fastreid_star.methods.vcd.losses import BRANCHES
from fastreid_star.modeling.backbones.two_stream import check_maps
from fastreid_star.modeling.losses.cross_entropy import log_accuracy
from fastreid_star.modeling.losses.loss import outputs_needed
from fastreid_star.modeling.video_reid import VideoReID
from fastreid_star.weights import fill_copy

BRANCH_OUTPUTS = (
    *("observations", "observation_logits", "representations", "representation_logits"),
)
COPIES = ("visible", "infrared")  # beside the shared network


@META_ARCH_REGISTRY.register()
class VCD(VideoReID):
    """Tian et al., "Farewell to mutual information: variational distillation for cross-modal person
    re-identification", CVPR 2021.

    `backbone` and `heads` are those of the shared network. All three networks start from the same
    pretrained weights.

    Args:
        visible_head, infrared_head: of the other two networks.
        kwargs: see :class:`VideoReID`. There is no frame head.
    """

    provides = ("is_visible", "frames", "corrected", "clip", "targets", "frame_targets",
                *BRANCH_OUTPUTS)  # fmt: skip

    @configurable
    def __init__(self, *, visible_head: BranchHead, infrared_head: BranchHead, **kwargs: Any):
        super().__init__(**kwargs)
        for stage in "123":
            self.backbone.after[stage] = ChannelAttention()
        self.visible_backbone = copy.deepcopy(self.backbone)
        self.infrared_backbone = copy.deepcopy(self.backbone)
        self.visible_head, self.infrared_head = visible_head, infrared_head

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """As :class:`VideoReID`, with a head for each network."""
        if cfg.MODEL.HEADS.NAME != "BranchHead" or cfg.MODEL.BACKBONE.STREAMS != 1:
            raise UserError(
                "VCD needs MODEL.HEADS.NAME BranchHead and MODEL.BACKBONE.STREAMS 1: every image "
                "passes each of its three networks"
            )
        if cfg.MODEL.FRAME_CORRECTOR.NAME:
            raise UserError("VCD takes no frame corrector: set MODEL.FRAME_CORRECTOR.NAME ''")
        options = super().from_config(cfg)
        backbone = options["backbone"]
        check_maps(cfg, backbone, "VCD")
        for name in COPIES:
            options[f"{name}_head"] = BranchHead(cfg, feat_dim=backbone.feature_width)
        return {**options, "frame_heads": nn.Identity()}

    @property
    def branch_heads(self) -> tuple[BranchHead, ...]:
        """The heads of the branches, in the order of `BRANCHES`."""
        shared: Any = self.heads
        return self.visible_head, self.infrared_head, shared, shared

    @property
    def has_idle_parameters(self) -> bool:
        """Whether some parameters may get no gradient in some step: DDP must be told so."""
        losses: dict[str, Any] = dict(self.losses.items())
        first = {n: loss for n, loss in losses.items() if loss.first_epoch <= (self.epoch or 0)}
        return not {"observation_logits", "representation_logits"} <= outputs_needed(first)

    def fill_state(self, state: dict[str, Any], prefix: str) -> None:
        """Let all networks start from the one of another method, where a state has no others."""
        for name in COPIES:
            fill_copy(state, f"{prefix}backbone.", f"{prefix}{name}_backbone.")
            fill_copy(state, f"{prefix}heads.", f"{prefix}{name}_head.")

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *args: Any) -> None:
        """Load weights; those of another method have one network."""
        self.fill_state(state, prefix)
        super()._load_from_state_dict(state, prefix, *args)

    def encode_frames(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Images to `is_visible` and `frames` ``[B, T, V D]``, the branches one after the other."""
        clips, length = batch["images"].shape[:2]
        is_visible = self.frame_modality(batch, length)
        images = self.preprocess(batch["images"], is_visible)
        copies = gray(images)
        passes = (
            (self.visible_backbone, images),
            (self.infrared_backbone, copies),
            (self.backbone, images),
            (self.backbone, copies),
        )
        pooled = [
            self.pool_frames(backbone(pixels, is_visible, length)) for backbone, pixels in passes
        ]
        frames = torch.cat(pooled, dim=1).unflatten(0, (clips, length))
        return {"is_visible": is_visible, "frames": frames}

    def embed(self, outputs: dict[str, Any]) -> torch.Tensor:
        """The observations of all branches ``[B, V D]``."""
        parts = outputs["clip"].chunk(len(BRANCHES), dim=1)
        seen = [head.observe(x) for head, x in zip(self.branch_heads, parts, strict=True)]
        return torch.cat(seen, dim=1)

    def training_outputs(self, outputs: dict[str, Any]) -> None:
        """Add `BRANCH_OUTPUTS`, each ``[V, B, ...]``."""
        parts = outputs["clip"].chunk(len(BRANCHES), dim=1)
        found = [head.outputs(x) for head, x in zip(self.branch_heads, parts, strict=True)]
        outputs |= {name: torch.stack([each[name] for each in found]) for name in BRANCH_OUTPUTS}
        log_accuracy(outputs["observation_logits"][0], outputs["targets"])
