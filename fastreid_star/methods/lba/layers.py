"""Dense correspondences between the maps of frames, and frames that are rebuilt from them.

Shapes: N frames, C channels, L = h w positions.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from fastreid_star.modeling.layers.pooling import at_least_float32
from fastreid_star.modeling.losses.pairing import partners

SHARPNESS = 50.0  # of the softmax over the cosines


class Alignment(NamedTuple):
    """Maps and what they are rebuilt to, ``[N, C, L]`` in float32 or wider.

    `maps` x, `positive` r+ (rebuilt from a frame of the same identity in the other modality),
    `negative` r- (from one of another identity), `co_mask` ``[N, L]``, where both frames of the
    positive pair are salient, from 0 to 1, and `usable`, bool ``[N]``: frames that have both.
    """

    maps: torch.Tensor
    positive: torch.Tensor
    negative: torch.Tensor
    co_mask: torch.Tensor
    usable: torch.Tensor


class Pairs(NamedTuple):
    """The frames from which each frame is rebuilt, `positive` and `negative` ``[N]``, and `usable`,
    bool ``[N]``: frames that have both. A frame without one is its own."""

    positive: torch.Tensor
    negative: torch.Tensor
    usable: torch.Tensor


def draw_pairs(targets: torch.Tensor, is_visible: torch.Tensor) -> Pairs:
    """Draw a positive and a negative frame of the other modality for each frame.

    The positive frames of an identity are a random pairing of its two modalities. The negative ones
    are drawn from all frames of other identities, with replacement. The numbers are drawn on the
    host: one seed gives the same pairs on every device.

    Args:
        targets: ``[N]``, identities.
        is_visible: bool ``[N]``, on the device of `targets`.
    """
    order = torch.randperm(len(targets))
    back = order.argsort()
    order, back = (each.to(targets.device, non_blocking=True) for each in (order, back))
    partner, has_positive = partners(targets[order], is_visible[order])
    chances = torch.rand(len(targets), len(targets)).to(targets.device, non_blocking=True)
    others = (targets[:, None] != targets) & (is_visible[:, None] != is_visible)
    has_negative = others.any(1)
    negative = chances.masked_fill(~others, -1).argmax(1)
    own = torch.arange(len(targets), device=targets.device)
    return Pairs(
        order[partner][back],
        torch.where(has_negative, negative, own),
        has_positive[back] & has_negative,
    )


def correspondences(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """``softmax_q(50 cos(x_p, y_q))``: where each position p of x is found in y.

    Args:
        x, y: ``[N, C, L]``.

    Returns:
        ``[N, L, L]``, rows p of sum 1.
    """
    cosines = F.normalize(x, dim=1).transpose(1, 2) @ F.normalize(y, dim=1)
    return (SHARPNESS * cosines).softmax(-1)


def min_max(x: torch.Tensor, eps: float = 1e-12) -> torch.Tensor:
    """Scale each row of ``[N, L]`` to 0 to 1; a constant row becomes 0."""
    low, high = x.aminmax(dim=1, keepdim=True)
    return (x - low) / (high - low).clamp(min=eps)


def align_modalities(maps: torch.Tensor, pairs: Pairs) -> Alignment:
    """Rebuild each frame from its positive and from its negative frame.

    ``r = m (A y) + (1 - m) x`` with the correspondences A and the mask m, the length of x over the
    channels, scaled to 0 to 1 in each frame. The co-mask is ``m_x (A m_y)``, scaled again, of the
    positive pair. Masks have no gradient. Autocast is switched off: the softmax is sharp.

    Args:
        maps: ``[N, C, h, w]``.
        pairs: see :func:`draw_pairs`.
    """
    with torch.autocast(maps.device.type, enabled=False):
        x = at_least_float32(maps).flatten(2)
        mask = min_max(x.detach().norm(dim=1))
        rebuilt = []
        for index in (pairs.positive, pairs.negative):
            y = x.index_select(0, index)
            found = correspondences(x, y)
            warped = y @ found.transpose(1, 2)
            rebuilt.append(x + mask[:, None] * (warped - x))
            if index is pairs.positive:
                with torch.no_grad():
                    seen = found @ mask.index_select(0, index)[..., None]
                    co_mask = min_max(mask * seen[..., 0])
        return Alignment(x, *rebuilt, co_mask, pairs.usable)


@contextlib.contextmanager
def running_statistics_kept(*modules: nn.Module) -> Iterator[None]:
    """BatchNorms meanwhile normalize by their batch and keep their running statistics."""
    norms = [
        norm
        for module in modules
        for norm in module.modules()
        if isinstance(norm, nn.modules.batchnorm._BatchNorm)
    ]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
