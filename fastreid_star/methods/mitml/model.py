"""MITML: an LSTM over the frames gates the frames of a second branch.

::

    images -> stem per modality -> stages 1-3 -+-> stage 4 -> H [B, T, D]
                                               +-> its copy -> L [B, T, D] -> LSTM -> h [B, D]
    h, L -> gates s [B, T, D];  mean over T of H (1 + s) -> clip -> CE, triplet; retrieval
    clip, detached -> modality classifier, which its own optimizer trains in each step
    clip -> modality classifier, as it is then -> confusion, from a later epoch on

Shapes: B clips, T frames, D feature width of the backbone.
"""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch
from fastreid.config import CfgNode, configurable
from fastreid.modeling.meta_arch import META_ARCH_REGISTRY
from torch import nn

from fastreid_star.methods.mitml.layers import INFRARED, VISIBLE, ModalityClassifier
from fastreid_star.modeling.layers.frame_gates import FrameGates
from fastreid_star.modeling.losses.cross_entropy import modality_cross_entropy
from fastreid_star.modeling.losses.loss import outputs_needed
from fastreid_star.modeling.own_optimizer import step_alone
from fastreid_star.modeling.video_reid import VideoReID
from fastreid_star.weights import fill_copy

MODALITY_OUTPUTS = ("modality_loss", "confusion_logits")
# of the modality classifier's optimizer; they stay the same during the whole training
MODALITY_SGD: dict[str, Any] = {"lr": 0.01, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}


@META_ARCH_REGISTRY.register()
class MITML(VideoReID):
    """Modality-invariant and temporal-memory learning (Lin et al., CVPR 2022).

    Args:
        lstm: over the frames, from D to D numbers.
        gates: for each position of a frame.
        modality: the modality classifier; None: no loss needs it.
        kwargs: see :class:`VideoReID`. There is no frame head.
    """

    provides = (
        *("is_visible", "frames", "temporal", "corrected", "clip", "clip_logits", "clip_features"),
        *("targets", "frame_targets", *MODALITY_OUTPUTS),
    )
    units = ("clip",)

    @configurable
    def __init__(
        self,
        *,
        lstm: nn.LSTM,
        gates: FrameGates,
        modality: ModalityClassifier | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.temporal_stage = copy.deepcopy(self.backbone.stages[3])
        self.lstm, self.gates, self.modality = lstm, gates, modality

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """As :class:`VideoReID`; a loss decides whether there is a modality classifier."""
        options = super().from_config(cfg)
        width = options["backbone"].feature_width
        needed = outputs_needed(options["losses"])
        return {
            **options,
            "frame_heads": nn.Identity(),
            "lstm": nn.LSTM(width, width, num_layers=2, batch_first=True),
            "gates": FrameGates(width, cfg.INPUT.CLIP.LENGTH),
            "modality": ModalityClassifier(width) if needed & set(MODALITY_OUTPUTS) else None,
        }

    @functools.cached_property
    def own_optimizer(self) -> torch.optim.Optimizer | None:
        """Of the modality classifier."""
        if self.modality is None:
            return None
        return torch.optim.SGD(self.modality.parameters(), **MODALITY_SGD)

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *args: Any) -> None:
        """Load weights; those of another method have one stage 4, and both start from it."""
        fill_copy(state, f"{prefix}backbone.stages.3.", f"{prefix}temporal_stage.")
        super()._load_from_state_dict(state, prefix, *args)

    @property
    def has_idle_parameters(self) -> bool:
        """Whether some parameters may get no gradient in some step: DDP must be told so."""
        losses: dict[str, Any] = dict(self.losses.items())
        first = [loss for loss in losses.values() if loss.first_epoch <= (self.epoch or 0)]
        return not any("clip_logits" in loss.needs for loss in first)

    def encode_frames(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Images to `is_visible`, `frames` H and `temporal` L, both ``[B, T, D]``."""
        clips, length = batch["images"].shape[:2]
        is_visible = self.frame_modality(batch, length)
        images = self.preprocess(batch["images"], is_visible)
        middle = self.backbone.stage3(self.backbone.low(self.backbone.stem(images, is_visible)))
        maps = {"frames": self.backbone.stage4(middle), "temporal": self.temporal_stage(middle)}
        pooled = {n: self.pool_frames(m).unflatten(0, (clips, length)) for n, m in maps.items()}
        return {"is_visible": is_visible, **pooled}

    def encode_clip(self, outputs: dict[str, Any], batch: dict[str, Any], explain: bool) -> None:
        """Add `corrected` and `clip`, the mean of the gated frames."""
        super().encode_clip(outputs, batch, explain)
        temporal = outputs["temporal"]
        with torch.autocast(temporal.device.type, enabled=False):
            context = self.lstm(temporal)[0][:, -1]
            gates = self.gates(context, temporal)
            outputs["clip"] = (outputs["corrected"] * (1 + gates)).mean(1)

    def training_outputs(self, outputs: dict[str, Any]) -> None:
        """As :class:`VideoReID`; the modality classifier takes its step before it is confused."""
        super().training_outputs(outputs)
        needed = self.needed & set(MODALITY_OUTPUTS)
        if "modality_loss" in needed:
            outputs["modality_loss"] = self.train_modality(outputs)
        if "confusion_logits" in needed:
            assert self.modality is not None
            outputs["confusion_logits"] = self.modality(outputs["clip"])

    def train_modality(self, outputs: dict[str, Any]) -> torch.Tensor:
        """A step of the modality classifier on the detached clips; its loss before the step."""
        assert self.modality is not None
        assert self.own_optimizer is not None
        modality, clip = self.modality, outputs["clip"].detach()
        is_visible = outputs["is_visible"][:: outputs["frames"].shape[1]]
        labels = torch.where(is_visible, VISIBLE, INFRARED).to(clip.device, non_blocking=True)
        return step_alone(
            self.own_optimizer, lambda: modality_cross_entropy(modality(clip), labels, is_visible)
        )
