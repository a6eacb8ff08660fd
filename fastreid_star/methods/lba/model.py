"""LbA: maps of a frame are rebuilt from frames of the other modality, and must stay classifiable.

::

    images -> stem per modality -> stages 1-3 -> maps3 -> stage 4 -> maps4 -> GeM over h, w -> x
    x     -> triplet; retrieval;  x -> neck -> classifier -> CE
    maps3 -> rebuilt from the other modality -> dense triplet; -> stage 4 -> GeM -> ... -> CE
    maps4 -> rebuilt from the other modality -> dense triplet; -> GeM -> ... -> CE

    H. Park et al. "Learning by aligning: visible-infrared person re-identification using
    cross-modal correspondences". ICCV 2021.

Shapes: B clips, T frames, N = B T frames, R rows (frames or clips).
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from fastreid.config import CfgNode, configurable
from fastreid.modeling.meta_arch import META_ARCH_REGISTRY

from fastreid_star.methods.lba.layers import (
    align_modalities,
    draw_pairs,
    running_statistics_kept,
)
from fastreid_star.methods.sad.model import SAD
from fastreid_star.modeling.backbones.two_stream import check_maps

ALIGNED_OUTPUTS = ("alignments", "rebuilt_logits")


@META_ARCH_REGISTRY.register()
class LbA(SAD):
    """:class:`SAD` with rebuilt maps in training; see the module. It has no parameters of its own.

    Args:
        reading: in `release`, the rebuilt maps change the BatchNorms' running statistics.
        kwargs: see :class:`SAD`.
    """

    provides = (*SAD.provides, *ALIGNED_OUTPUTS)

    @configurable
    def __init__(self, *, reading: str = "default", **kwargs: Any):
        super().__init__(**kwargs)
        self.reading = reading  # DenseTripletLoss checks it

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """As :class:`SAD`, with ``MODEL.LBA``."""
        options = super().from_config(cfg)
        check_maps(cfg, options["backbone"], cls.__name__)
        return {**options, "reading": cfg.MODEL.LBA.READING}

    def embed(self, outputs: dict[str, Any]) -> torch.Tensor:
        """The feature of each row for retrieval: before the neck."""
        return outputs["clip"]

    def training_outputs(self, outputs: dict[str, Any]) -> None:
        """As :class:`SAD`, with the rebuilt maps and their logits where a loss needs them."""
        super().training_outputs(outputs)
        needed = self.needed & set(ALIGNED_OUTPUTS)
        if not needed:
            return
        targets = outputs["frame_targets"]
        is_visible = outputs["is_visible"].to(targets.device, non_blocking=True)
        pairs = draw_pairs(targets, is_visible)
        maps = [outputs[name] for name in ("middle", "maps")]
        outputs["alignments"] = [align_modalities(each, pairs) for each in maps]
        if "rebuilt_logits" in needed:
            rebuilt = [
                found.positive.view_as(of)
                for found, of in zip(outputs["alignments"], maps, strict=True)
            ]
            outputs["rebuilt_logits"] = self.classify_rebuilt(*rebuilt, outputs)

    def classify_rebuilt(
        self, middle: torch.Tensor, last: torch.Tensor, outputs: dict[str, Any]
    ) -> list[torch.Tensor]:
        """Logits ``[R, C]`` of maps that were rebuilt after stage 3 and after stage 4."""
        clips, length = outputs["frames"].shape[:2]
        kept = running_statistics_kept(self.backbone, self.heads)
        with kept if self.reading == "default" else contextlib.nullcontext():
            rows = (
                self.heads.pool(self.pool_frames(maps).unflatten(0, (clips, length)))
                for maps in (self.backbone.stage4(middle, length), last)
            )
            return [self.heads(each, outputs["targets"])["cls_outputs"] for each in rows]
