"""The losses of the anaglyphs, the easy samples and the reconstruction.

Shapes: B clips, T frames, N = B T frames, D feature width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from fastreid.config import CfgNode, configurable

from fastreid_star.errors import UserError
from fastreid_star.modeling.layers.pooling import at_least_float32
from fastreid_star.modeling.losses import LOSS_REGISTRY, CrossEntropyLoss, Loss, TripletLoss

READINGS = ("default", "authors")


def easy_sample_loss(
    clips: torch.Tensor,
    targets: torch.Tensor,
    is_visible: torch.Tensor,
    *,
    reading: str = "default",
) -> torch.Tensor:
    """Pull clips of one modality to the easiest one among them.

    The easy sample of a clip is its nearest clip of the same identity in the other modality,
    detached. By default the clips of that identity and modality are pulled to it: mean squared
    error, mean over these clips, mean over all clips that have an easy sample. The reading
    `authors` pulls all clips of the other modality, other identities too, and takes sums.

    Args:
        clips: ``[B, D]``.
        targets: ``[B]``, identities.
        is_visible: bool ``[B]``, on the device of `clips`.
        reading: one of `READINGS`.
    """
    with torch.autocast(clips.device.type, enabled=False):
        clips = at_least_float32(clips)
        other = is_visible[:, None] != is_visible
        positive = other & (targets[:, None] == targets)
        has_easy = positive.any(1)
        with torch.no_grad():
            squares = (clips[:, None] - clips).square().sum(-1)
            easy = clips[squares.masked_fill(~positive, torch.inf).argmin(1)]
        errors = (clips - easy[:, None]).square().mean(-1)  # [anchor, pulled clip]
        if reading == "authors":
            return (errors * (other & has_easy[:, None])).sum()
        of_anchor = (errors * positive).sum(1) / positive.sum(1).clamp(min=1)
        return of_anchor.sum() / has_easy.sum().clamp(min=1)


class _Late(Loss):
    """A loss that begins in the epoch ``MODEL.IBAN.ANAGLYPH_EPOCH``."""

    @classmethod
    def from_config(cls, cfg: CfgNode, *, feat_dim: int) -> dict[str, Any]:
        first = {"first_epoch": cfg.MODEL.IBAN.ANAGLYPH_EPOCH}
        return {**super().from_config(cfg, feat_dim=feat_dim), **first}


@LOSS_REGISTRY.register()
class EasySampleLoss(Loss):
    """:func:`easy_sample_loss` of the clip features.

    Args:
        reading: ``MODEL.IBAN.READING``.
        kwargs: see :class:`Loss`.
    """

    needs: tuple[str, ...] = ("clip_features", "targets", "is_visible")
    log_name = "loss_easy"
    equation = (
        "mean ||f - easy||^2 / D, easy the nearest clip of the identity in the other "
        "modality, detached"
    )
    source = "Li et al., TCSVT 2023 (IBAN)"

    @configurable
    def __init__(self, *, reading: str = "default", **kwargs: Any):
        super().__init__(**kwargs)
        if reading not in READINGS:
            raise UserError(
                f"MODEL.IBAN.READING is {reading!r}: choose one of {', '.join(READINGS)}"
            )
        self.reading = reading

    @classmethod
    def from_config(cls, cfg: CfgNode, *, feat_dim: int) -> dict[str, Any]:
        reading = {"reading": cfg.MODEL.IBAN.READING}
        return {**super().from_config(cfg, feat_dim=feat_dim), **reading}

    def forward(  # type: ignore[override]
        self, clips: torch.Tensor, targets: torch.Tensor, is_visible: torch.Tensor
    ) -> torch.Tensor:
        of_clips = is_visible[:: len(is_visible) // len(clips)].to(clips.device, non_blocking=True)
        return easy_sample_loss(clips, targets, of_clips, reading=self.reading)


@LOSS_REGISTRY.register()
class AnaglyphEasySampleLoss(_Late, EasySampleLoss):
    """:func:`easy_sample_loss` of the anaglyphs' clips."""

    needs = ("anaglyph_features", "targets", "is_visible")
    log_name = "loss_easy_anaglyph"
    equation = "the same of the anaglyphs"
    source = "Li et al., TCSVT 2023 (IBAN)"


@LOSS_REGISTRY.register()
class AnaglyphTripletLoss(TripletLoss):
    """The triplet loss of the anaglyphs' clips; options as for the clips."""

    needs = ("anaglyph_features", "targets")
    log_name = "loss_triplet_anaglyph"
    equation = "the triplet loss of the anaglyphs"
    source = "Li et al., TCSVT 2023 (IBAN)"


@LOSS_REGISTRY.register()
class AnaglyphCrossEntropyLoss(_Late, CrossEntropyLoss):
    """The cross entropy of the anaglyphs' clips; options as for the clips."""

    needs = ("anaglyph_logits", "targets")
    log_name = "loss_cls_anaglyph"
    equation = "CE of the anaglyphs"
    source = "Li et al., TCSVT 2023 (IBAN)"
    from_start = False


@LOSS_REGISTRY.register()
class ReconstructionLoss(_Late):
    """The mean squared errors of the rebuilt maps, their sum."""

    needs = ("reconstruction",)
    log_name = "loss_reconstruction"
    equation = "sum of the mean squared errors of the rebuilt maps"
    source = "Li et al., TCSVT 2023 (IBAN)"
    pairs_modalities = True

    def forward(self, pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:  # type: ignore[override]
        errors = [F.mse_loss(at_least_float32(maps), at_least_float32(to)) for maps, to in pairs]
        return torch.stack(errors).sum()
