"""Silhouettes and gait maps led by DINOv2's tokens (SASGL).

::

    last tokens -> mask branch -> person or not -> edge check -> support
    tokens of four blocks, on the support -> denoising branch  -> 16 maps, softmax
                                          -> appearance branch -> 16 maps, sigmoid
    both, one of them dropped in some training clips -> a stem each -> attention fusion -> trunk

Shapes: N frames, C channels of a token, 2D grids of h x w tokens, H x W = 2h x 2w positions.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from fastreid.layers import get_norm
from fastreid.modeling.backbones.resnet import BasicBlock
from torch import nn

from fastreid_star.modeling.layers.frozen_tokens import TokenMaps
from fastreid_star.modeling.layers.masked_batch_norm import MaskedBatchNorm
from fastreid_star.modeling.layers.pooling import at_least_float32

EDGE_ROWS = 5 / 64  # rows at the top and at the bottom that a person does not fill, as a share
BORDER_COLUMNS = 1 / 16  # columns at the left and at the right that are background, as a share
CHUNK = 8  # frames whose statistics are summed at once: limits the memory, not the result


def upsample(maps: torch.Tensor) -> torch.Tensor:
    """Maps ``[N, C, h, w]`` to twice the size, bilinear."""
    size = [2 * int(side) for side in maps.shape[2:]]
    return F.interpolate(maps, size, mode="bilinear", align_corners=False)


def support_of(person: torch.Tensor) -> torch.Tensor:
    """Where the gait is looked for: the rounded mask, grown by one position.

    The published program then shrinks it by two positions, and takes what is not 0 in the mixture
    of both: that is the grown mask again.

    Args:
        person: probability of the person ``[N, 1, H, W]``; exactly 1/2 is background.

    Returns:
        bool ``[N, 1, H, W]``.
    """
    return F.max_pool2d((person > 0.5).to(person.dtype), 3, stride=1, padding=1) > 0.5


def silhouette_of(person: torch.Tensor) -> torch.Tensor:
    """The closed silhouette that pictures show: 1 inside, the probability on its rim, 0 outside.

    Args:
        person: probability of the person ``[N, 1, H, W]``.
    """
    grown = support_of(person).to(person.dtype)
    inside = -F.max_pool2d(-grown, 5, stride=1, padding=2)
    return torch.where(inside > 0.5, inside, person * grown)


def fills_edge(person: torch.Tensor) -> torch.Tensor:
    """Whether a mask fills more than half of the top and bottom rows: bool ``[N, 1, 1, 1]``.

    Args:
        person: ``[N, 1, H, W]``.
    """
    rows = max(round(EDGE_ROWS * int(person.shape[2])), 1)
    edge = torch.cat([person[:, :, :rows], person[:, :, -rows:]], dim=2) > 0.5
    return edge.to(person.dtype).mean((1, 2, 3), keepdim=True) > 0.5


class MaskBranch(nn.Module):
    """Splits the positions into two classes that rebuild the tokens as well as they can.

    Dropout, BatchNorm without weights, linear layer to two classes, softmax; a second linear layer
    rebuilds the tokens from the two probabilities. Nothing in this decides which class is the
    person. The rule here: it is the class with the smaller share of the left and right border, on
    average over the training so far. The average is a buffer, so checkpoints contain the outcome.

    Args:
        width: C of the last tokens.
        fixed: class 0 is the person: the rule is switched off.
    """

    border_share: torch.Tensor

    def __init__(self, width: int, *, fixed: bool = False):
        super().__init__()
        self.fixed = fixed
        self.dropout = nn.Dropout(0.5)
        self.norm = nn.BatchNorm2d(width, affine=False)
        self.down = nn.Conv2d(width, 2, 1)
        self.up = nn.Conv2d(2, width, 1)
        self.register_buffer("border_share", torch.tensor(0.0 if fixed else 0.5))

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Upsampled tokens ``[N, C, H, W]`` to class probabilities ``[N, 2, H, W]``, float32, and
        rebuilt tokens ``[N, C, H, W]``."""
        if self.training:
            normed = self.norm(self.dropout(tokens))
        else:  # written out: ONNX has no BatchNorm without weights
            mean: Any = self.norm.running_mean
            var: Any = self.norm.running_var
            scale = (var + self.norm.eps).rsqrt()
            normed = (tokens - mean[:, None, None]) * scale[:, None, None]
        classes = at_least_float32(self.down(normed)).softmax(1)
        if self.training and not self.fixed:
            self._follow_border(classes.detach())
        return classes, self.up(classes)

    def person(self, classes: torch.Tensor) -> torch.Tensor:
        """The probability of the person ``[N, 1, H, W]``, without a gradient.

        A frame whose mask fills the top and bottom rows has the classes swapped.
        """
        first, second = classes.detach().split(1, dim=1)
        person = torch.where(self.border_share <= 0.5, first, second)
        return torch.where(fills_edge(person), 1 - person, person)

    @torch.no_grad()
    def _follow_border(self, classes: torch.Tensor) -> None:
        columns = max(round(BORDER_COLUMNS * classes.shape[3]), 1)
        border = torch.cat([classes[:, 0, :, :columns], classes[:, 0, :, -columns:]], dim=2)
        self.border_share += 0.01 * (border.mean() - self.border_share)


class Statistics(NamedTuple):
    """Mean and variance of each channel on the support ``[C]``, and the number of positions."""

    mean: torch.Tensor
    var: torch.Tensor
    positions: torch.Tensor


@torch.no_grad()
def support_statistics(tokens: torch.Tensor, support: torch.Tensor) -> Statistics:
    """The statistics of the upsampled tokens on the support, summed in chunks of frames.

    Args:
        tokens: ``[N, C, h, w]``; float32 sums, or wider.
        support: bool ``[N, 1, 2h, 2w]``.
    """
    center = at_least_float32(tokens).mean((0, 2, 3))[:, None, None]  # against cancellation
    total, squares = torch.zeros_like(center), torch.zeros_like(center)
    for maps, mask in zip(tokens.split(CHUNK), support.split(CHUNK), strict=True):
        x = (upsample(at_least_float32(maps)) - center) * mask
        total += x.sum((0, 2, 3))[:, None, None]
        squares += x.square().sum((0, 2, 3))[:, None, None]
    count = support.sum().to(center.dtype)
    mean = total / count.clamp(min=1)
    var = (squares / count.clamp(min=1) - mean.square()).clamp(min=0)
    return Statistics((mean + center).flatten(), var.flatten(), count)


class NormedLinear(nn.BatchNorm1d):
    """BatchNorm without weights on the support of upsampled tokens, then a linear layer.

    Tokens are frozen, so the statistics have no gradient. BatchNorm with given statistics, the
    linear layer and the upsampling are linear and commute: they are computed on the h x w tokens,
    and only the result is upsampled.

    Args:
        inputs, outputs: channels.
    """

    running_mean: torch.Tensor
    running_var: torch.Tensor
    num_batches_tracked: torch.Tensor
    momentum: float

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, affine=False)
        self.linear = nn.Linear(inputs, outputs)

    def forward(self, tokens: torch.Tensor, found: Statistics | None) -> torch.Tensor:  # type: ignore[override]
        """Tokens ``[N, C, h, w]`` to ``[N, outputs, 2h, 2w]``.

        Args:
            tokens: frozen.
            found: in training the statistics of these tokens; None: the running ones are used.
        """
        mean, var = self.running_mean, self.running_var
        if found is not None:
            mean, var = found.mean, found.var
            seen = (found.positions > 1).to(mean.dtype) * self.momentum
            unbiased = var * found.positions / (found.positions - 1).clamp(min=1)
            self.running_mean += seen * (mean - self.running_mean)
            self.running_var += seen * (unbiased - self.running_var)
            self.num_batches_tracked += 1
        weight = self.linear.weight * (var + self.eps).rsqrt()
        bias = self.linear.bias - weight @ mean.to(weight.dtype)
        if not torch.is_autocast_enabled(tokens.device.type):
            tokens = tokens.to(weight.dtype)
        # the bias last: it cancels the mean, which half precision would round
        rows = F.conv2d(tokens, weight[..., None, None])
        return at_least_float32(upsample(rows)) + bias[:, None, None]


class MaskedNormMaps(MaskedBatchNorm):
    """:class:`MaskedBatchNorm` on maps ``[N, C, H, W]`` and a mask ``[N, 1, H, W]``."""

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        rows = x.permute(0, 2, 3, 1)
        normed = super().forward(rows.reshape(-1, rows.shape[-1]), mask.reshape(-1, 1))
        return normed.reshape(rows.shape).permute(0, 3, 1, 2)


class DenoisingBranch(nn.Module):
    """Tokens on the support to maps that sum to 1: body parts without texture."""

    def __init__(self, width: int, channels: int):
        super().__init__()
        self.first = NormedLinear(width, width // 2)
        self.norm = MaskedNormMaps(width // 2, affine=False)
        self.last = nn.Conv2d(width // 2, channels, 1)

    def forward(
        self, tokens: torch.Tensor, support: torch.Tensor, found: Statistics | None
    ) -> torch.Tensor:
        """``[N, C, h, w]`` to ``[N, channels, 2h, 2w]``, 0 outside of the support."""
        hidden = F.gelu(self.norm(self.first(tokens, found), support))
        return at_least_float32(self.last(hidden)).softmax(1) * support


class AppearanceBranch(nn.Module):
    """Tokens on the support to maps from 0 to 1 that keep the texture."""

    def __init__(self, width: int, channels: int):
        super().__init__()
        self.first = NormedLinear(width, channels)
        self.norm = MaskedNormMaps(channels, affine=False)

    def forward(
        self, tokens: torch.Tensor, support: torch.Tensor, found: Statistics | None
    ) -> torch.Tensor:
        """``[N, C, h, w]`` to ``[N, channels, 2h, 2w]``, 0 outside of the support."""
        return self.norm(self.first(tokens, found), support).sigmoid() * support


def clip_drop(clips: int, share: float) -> torch.Tensor:
    """Which of two kinds of maps are kept: float ``[clips, 2]``, on the CPU.

    round(share * clips) clips, drawn without replacement, lose one of the two, by a coin.
    """
    keep = torch.ones(clips, 2)
    dropped = torch.randperm(clips)[: round(share * clips)]
    keep[dropped, torch.randint(2, (len(dropped),))] = 0
    return keep


class AttentionFusion(nn.Module):
    """Weighs two kinds of maps, channel by channel and position by position.

    Args:
        width: C of each.
        hidden: channels between the convolutions.
    """

    def __init__(self, width: int, hidden: int = 4):
        super().__init__()
        self.weigh = nn.Sequential(
            nn.Conv2d(2 * width, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU(),
            nn.Conv2d(hidden, hidden, 3, padding=1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU(),
            nn.Conv2d(hidden, 2 * width, 1, bias=False),
        )  # fmt: skip

    def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """Two ``[N, C, H, W]`` to one. The weights of a channel stand side by side."""
        weights = at_least_float32(self.weigh(torch.cat([first, second], dim=1)))
        shape = (first.shape[0], first.shape[1], 2, *first.shape[2:])
        weights = weights.reshape(shape).softmax(2)
        return weights[:, :, 0] * first + weights[:, :, 1] * second


def map_stem(channels: int, width: int) -> nn.Sequential:
    """Maps ``[N, channels, H, W]`` to ``[N, width, H, W]``, without stride."""
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1, bias=False),
        get_norm("BN", width),
        nn.ReLU(inplace=True),
        BasicBlock(width, width, "BN"),
    )


class GaitMaps(nn.Module):
    """Tokens to silhouettes, and to the maps that the gait trunk reads.

    Args:
        token_width: C of the last tokens; those of the four blocks have 4C.
        width: channels of the trunk's input.
        channels: maps of each branch.
        drop: share of the training clips that lose one of the two kinds of maps.
        fixed_person: see :class:`MaskBranch`.
    """

    def __init__(
        self,
        token_width: int,
        width: int,
        *,
        channels: int = 16,
        drop: float = 0.2,
        fixed_person: bool = False,
    ):
        super().__init__()
        self.drop = drop
        self.mask = MaskBranch(token_width, fixed=fixed_person)
        self.denoising = DenoisingBranch(4 * token_width, channels)
        self.appearance = AppearanceBranch(4 * token_width, channels)
        self.stems = nn.ModuleList([map_stem(channels, width), map_stem(channels, width)])
        self.fusion = AttentionFusion(width)

    def forward(self, tokens: TokenMaps, length: int) -> dict[str, Any]:
        """Tokens of N frames to named outputs.

        Args:
            tokens: of all frames, clip by clip.
            length: T, frames of a clip.

        Returns:
            `gait_maps` ``[N, width, H, W]``, `classes` ``[N, 2, H, W]``, `tokens` and
            `rebuilt_tokens` ``[N, C, H, W]``, `person` and bool `support` ``[N, 1, H, W]``,
            `denoised` ``[N, channels, H, W]``.
        """
        last = upsample(tokens.last)
        if not torch.is_autocast_enabled(last.device.type):
            last = last.to(self.mask.down.weight.dtype)
        classes, rebuilt = self.mask(last)
        person = self.mask.person(classes)
        support = support_of(person)
        found = support_statistics(tokens.blocks, support) if self.training else None
        denoised = self.denoising(tokens.blocks, support, found)
        maps = [denoised, self.appearance(tokens.blocks, support, found)]
        if self.training and self.drop:
            keep = clip_drop(len(person) // length, self.drop).repeat_interleave(length, dim=0)
            kept = keep.to(denoised.device, non_blocking=True).to(denoised.dtype)
            maps = [m * k[:, None, None, None] for m, k in zip(maps, kept.unbind(1), strict=True)]
        stems = [stem(each) for stem, each in zip(self.stems, maps, strict=True)]
        return {
            "gait_maps": self.fusion(*stems),
            "classes": classes,
            "tokens": last,
            "rebuilt_tokens": rebuilt,
            "person": person,
            "support": support,
            "denoised": denoised,
        }
