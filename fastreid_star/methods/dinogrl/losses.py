"""The losses of the silhouettes and of the denoised maps.

Shapes: N frames, C channels, H x W positions. Every loss is computed in float32 or wider.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from fastreid.config import CfgNode, configurable

from fastreid_star.errors import UserError
from fastreid_star.modeling.layers.pooling import at_least_float32
from fastreid_star.modeling.losses import LOSS_REGISTRY, Loss

READINGS = ("default", "authors")
SOBEL = ((1.0, 0.0, -1.0), (2.0, 0.0, -2.0), (1.0, 0.0, -1.0))


def sobel(maps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sobel gradients along x and y of each channel, zeros around: ``[N, C, H, W]`` each."""
    kernel = maps.new_tensor(SOBEL)
    flat = maps.flatten(0, 1)[:, None]
    found = (F.conv2d(flat, k[None, None], padding=1) for k in (kernel, kernel.T))
    gx, gy = (g.view_as(maps) for g in found)
    return gx, gy


def smoothness(maps: torch.Tensor, support: torch.Tensor) -> torch.Tensor:
    """Mean of \\|Gx\\| + \\|Gy\\| inside the support, channel by channel.

    A position counts if its 3 x 3 neighborhood lies in the support and in the frame: the edge of
    the support is no unevenness. 0 if none does.

    Args:
        maps: ``[N, C, H, W]``.
        support: bool ``[N, 1, H, W]``.
    """
    maps = at_least_float32(maps)
    outside = F.pad((~support).to(maps.dtype), (1, 1, 1, 1), value=1.0)
    inside = F.max_pool2d(outside, 3, stride=1) < 0.5
    gx, gy = sobel(maps)
    total = ((gx.abs() + gy.abs()) * inside).sum()
    return total / (inside.sum() * maps.shape[1]).clamp(min=1)


def summed_smoothness(maps: torch.Tensor) -> torch.Tensor:
    """The published program's: \\|sum over channels of the gradients\\|, over all values of `maps`.

    Args:
        maps: ``[N, C, H, W]``.
    """
    gx, gy = sobel(at_least_float32(maps).sum(1, keepdim=True))
    return (gx.abs().sum() + gy.abs().sum()) / maps.numel()


def diversity(denoised: torch.Tensor, support: torch.Tensor, eps: float = 1e-6) -> torch.Tensor:
    """log2(C) - the entropy of the channels' shares, mean over the frames with a support.

    Args:
        denoised: ``[N, C, H, W]``, 0 outside of the support.
        support: bool ``[N, 1, H, W]``.
    """
    mass = at_least_float32(denoised).sum((2, 3))
    shares = mass / (mass.sum(1, keepdim=True) + eps)
    entropy = -(shares * (shares + eps).log2()).sum(1)
    seen = support.flatten(1).any(1).to(entropy.dtype)
    lack = math.log2(denoised.shape[1]) - entropy
    return (lack * seen).sum() / seen.sum().clamp(min=1)


class _ReadLoss(Loss):
    """A loss with a default weight and a reading, ``MODEL.DINOGRL.READING``."""

    default_weight = 1.0

    @configurable
    def __init__(self, *, reading: str = "default", **kwargs: Any):
        super().__init__(**kwargs)
        if reading not in READINGS:
            raise UserError(
                f"MODEL.DINOGRL.READING is {reading!r}: choose one of {', '.join(READINGS)}"
            )
        self.reading = reading

    @classmethod
    def from_config(cls, cfg: CfgNode, *, feat_dim: int) -> dict[str, Any]:
        options = {"reading": cfg.MODEL.DINOGRL.READING, "weight": cls.default_weight}
        return {**super().from_config(cfg, feat_dim=feat_dim), **options}


@LOSS_REGISTRY.register()
class TokenReconstructionLoss(_ReadLoss):
    """Mean squared error of the tokens that the mask branch rebuilds from its two classes."""

    needs = ("rebuilt_tokens", "tokens")
    log_name = "loss_mask"
    equation = "mean squared error of the tokens that the mask branch rebuilds"
    source = "DinoGRL, ACM MM 2025 (arXiv 2511.04281)"

    def forward(self, rebuilt: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return F.mse_loss(at_least_float32(rebuilt), at_least_float32(tokens))


@LOSS_REGISTRY.register()
class MaskSmoothnessLoss(_ReadLoss):
    """Smoothness of the mask inside the support, weight 0.02.

    The reading `authors` takes the program's: the classes of the positions, ``[H W, 2]``, are read
    as two maps without a transposition, which mixes both and folds the image.
    """

    needs = ("classes", "support")
    log_name = "loss_mask_smooth"
    equation = "mean |Gx| + |Gy| of the mask inside the support, G by Sobel"
    source = "DinoGRL, ACM MM 2025 (arXiv 2511.04281)"
    default_weight = 0.02

    def forward(self, classes: torch.Tensor, support: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        if self.reading == "default":
            return smoothness(classes[:, :1], support)
        return summed_smoothness(classes.permute(0, 2, 3, 1).reshape(classes.shape))


@LOSS_REGISTRY.register()
class PartSmoothnessLoss(_ReadLoss):
    """Smoothness of the denoised maps inside the support, weight 0.01.

    The reading `authors` takes the program's, of the sum of all channels but the last: on the
    support that is 1 less the last one.
    """

    needs = ("denoised", "support")
    log_name = "loss_part_smooth"
    equation = "the same of the denoised maps"
    source = "DinoGRL, ACM MM 2025 (arXiv 2511.04281)"
    default_weight = 0.01

    def forward(self, denoised: torch.Tensor, support: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        if self.reading == "default":
            return smoothness(denoised, support)
        return summed_smoothness(denoised[:, :-1])


@LOSS_REGISTRY.register()
class PartDiversityLoss(_ReadLoss):
    """:func:`diversity` of the denoised maps, weight 5."""

    needs = ("denoised", "support")
    log_name = "loss_diversity"
    equation = "mean over the frames of log2 K - the entropy of the shares of the K denoised maps"
    source = "DinoGRL, ACM MM 2025 (arXiv 2511.04281)"
    default_weight = 5.0

    def forward(self, denoised: torch.Tensor, support: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return diversity(denoised, support)
