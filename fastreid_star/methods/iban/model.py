"""IBAN: a second network reads anaglyphs of the frames, and leads the first by cross attention.

::

    images    -> stem per modality -> stages 1-3 -> cross attention -> stage 4 -> cross attention
    anaglyphs -> stem per modality -> stages 1-3 --^----------------> stage 4 --^
    images:    mean over h, w -> x [B, T, D] -> two LSTMs, forward and backward -> h, r [B, D]
    h, x    -> gates s [B, T, D];  cosines of x with h and r -> c [B, T]
    mean over T of x (1 + s) (1 + c) -> clip -> CE, triplet, easy samples; retrieval
    anaglyphs: mean over T, h, w -> a neck of its own, the same classifier; the same losses
    anaglyphs of one modality -> those of the other: reconstruction

Shapes: B clips, T frames, N = B T frames, D feature width of the backbone.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from fastreid.config import CfgNode, configurable
from fastreid.modeling.meta_arch import META_ARCH_REGISTRY
from torch import nn

from fastreid_star.errors import UserError
from fastreid_star.methods.iban.layers import CrossAttention, Reconstruction
from fastreid_star.methods.iban.losses import READINGS
from fastreid_star.modeling.backbones.two_stream import check_maps, probe
from fastreid_star.modeling.heads import FrameHead
from fastreid_star.modeling.layers.colors import anaglyph
from fastreid_star.modeling.layers.frame_gates import FrameGates
from fastreid_star.modeling.layers.pooling import at_least_float32
from fastreid_star.modeling.losses.loss import outputs_needed
from fastreid_star.modeling.video_reid import VideoReID
from fastreid_star.weights import fill_copy

ANAGLYPH_OUTPUTS = ("anaglyph_logits", "anaglyph_features")


@META_ARCH_REGISTRY.register()
class IBAN(VideoReID):
    """Intermediary-guided bidirectional spatial-temporal aggregation (Li et al., TCSVT 2023).

    Args:
        attention: after stage 3 and after stage 4.
        forward_lstm, backward_lstm: over the frames, from D to D numbers.
        gates: for each position of a frame.
        anaglyph_neck: the neck of the anaglyphs' clips.
        reconstruction: rebuilds the other modality; None: no loss needs it.
        kwargs: see :class:`VideoReID`. There is no frame head and no frame corrector.
    """

    provides = (
        *("is_visible", "frames", "clip", "clip_logits", "clip_features", "reconstruction"),
        *("targets", "frame_targets", "corrected", *ANAGLYPH_OUTPUTS),
    )
    units = ("clip",)

    @configurable
    def __init__(
        self,
        *,
        attention: nn.ModuleList,
        forward_lstm: nn.LSTM,
        backward_lstm: nn.LSTM,
        gates: FrameGates,
        anaglyph_neck: nn.Module,
        reconstruction: Reconstruction | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.anaglyph_backbone = copy.deepcopy(self.backbone)
        self.attention, self.gates = attention, gates
        self.forward_lstm, self.backward_lstm = forward_lstm, backward_lstm
        self.anaglyph_neck, self.reconstruction = anaglyph_neck, reconstruction

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """As :class:`VideoReID`, with ``MODEL.IBAN``; a loss decides about the reconstruction."""
        reading = cfg.MODEL.IBAN.READING
        if reading not in READINGS:
            choices = ", ".join(READINGS)
            raise UserError(f"MODEL.IBAN.READING is {reading!r}: choose one of {choices}")
        if cfg.MODEL.FRAME_CORRECTOR.NAME:
            raise UserError("IBAN has no frame corrector: set MODEL.FRAME_CORRECTOR.NAME ''")
        options = super().from_config(cfg)
        backbone = options["backbone"]
        check_maps(cfg, backbone, cls.__name__)
        width = backbone.feature_width
        first = nn.Sequential(backbone.visible_stem, *backbone.stages[:3])
        widths = probe(first, cfg.INPUT.SIZE_TRAIN).shape[1], width
        mixed = reading == "authors"
        needed = outputs_needed(options["losses"])
        lstms = (nn.LSTM(width, width, num_layers=2, batch_first=True) for _ in range(2))
        return {
            **options,
            "frame_heads": nn.Identity(),
            "attention": nn.ModuleList(CrossAttention(each, mixed=mixed) for each in widths),
            "forward_lstm": next(lstms),
            "backward_lstm": next(lstms),
            "gates": FrameGates(width, cfg.INPUT.CLIP.LENGTH),
            "anaglyph_neck": FrameHead(cfg, feat_dim=width).bottleneck,
            "reconstruction": Reconstruction(*widths) if "reconstruction" in needed else None,
        }

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *args: Any) -> None:
        """Load weights; those of another method have one network, and both start from it."""
        fill_copy(state, f"{prefix}backbone.", f"{prefix}anaglyph_backbone.")
        super()._load_from_state_dict(state, prefix, *args)

    @property
    def has_idle_parameters(self) -> bool:
        """Whether some parameters may get no gradient in some step: DDP must be told so."""
        losses: dict[str, Any] = dict(self.losses.items())
        needs = outputs_needed(losses)
        idle = not {"clip_logits", "anaglyph_logits"} <= needs
        return idle or any(loss.first_epoch > (self.epoch or 0) for loss in losses.values())

    def encode_frames(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Images to `is_visible`, `frames` x ``[B, T, D]``, `anaglyph` ``[B, D]`` and the two
        `anaglyph_maps`."""
        clips, length = batch["images"].shape[:2]
        is_visible = self.frame_modality(batch, length)
        x = self.preprocess(batch["images"], is_visible)
        pixels = batch["images"].to(self.device, non_blocking=True).flatten(0, 1)
        f = (anaglyph(pixels.to(x.dtype)) - self.pixel_mean) / self.pixel_std
        main, relief = self.backbone, self.anaglyph_backbone
        x, f = (
            net.stage3(net.low(net.stem(each, is_visible)))
            for net, each in ((main, x), (relief, f))
        )
        x, last = main.stage4(self.attention[0](x, f, length)), relief.stage4(f)
        x = self.attention[1](x, last, length)
        # not cut off at 0: the attention adds values of both signs
        frames, reliefs = (
            at_least_float32(maps).mean((2, 3)).unflatten(0, (clips, length)) for maps in (x, last)
        )
        found = {"frames": frames, "anaglyph": reliefs.mean(1), "anaglyph_maps": (f, last)}
        return {"is_visible": is_visible, **found}

    def encode_clip(self, outputs: dict[str, Any], batch: dict[str, Any], explain: bool) -> None:
        """Add `clip`, the mean of the gated and weighed frames."""
        frames = outputs["corrected"] = outputs["frames"]
        with torch.autocast(frames.device.type, enabled=False):
            forth = self.forward_lstm(frames)[0][:, -1]
            back = self.backward_lstm(frames.flip(1))[0][:, -1]
            gated = frames * (1 + self.gates(forth, frames))
            unit, *ends = (F.normalize(each, dim=-1) for each in (frames, forth, back))
            cosines = sum((unit * end[:, None]).sum(-1, keepdim=True) for end in ends) / 2
            outputs["clip"] = (gated * (1 + cosines)).mean(1)

    def training_outputs(self, outputs: dict[str, Any]) -> None:
        """As :class:`VideoReID`, with the outputs of the anaglyphs where a loss needs them."""
        super().training_outputs(outputs)
        needed = self.needed
        outputs["anaglyph_features"] = outputs["anaglyph"]
        if "anaglyph_logits" in needed:
            after = self.anaglyph_neck(outputs["anaglyph"][..., None, None])[..., 0, 0]
            outputs["anaglyph_logits"] = self.heads.classify(after, outputs["targets"])
        if "reconstruction" in needed:
            assert self.reconstruction is not None
            maps, is_visible = outputs["anaglyph_maps"], outputs["is_visible"]
            outputs["reconstruction"] = self.reconstruction(maps, is_visible)
