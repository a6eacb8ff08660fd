"""Augmentation of training clips that is the same in all frames of a clip.

Random numbers are drawn on the host: one seed gives the same clips on every device.

Shapes: B clips, T frames; `is_visible` is a bool tensor ``[B]`` on the host.
"""

from __future__ import annotations

import torch
from torchvision.transforms import RandomErasing

AREA, ASPECT = (0.02, 0.33), (0.3, 3.3)  # torchvision's defaults, which the authors use


def gray_mixing(is_visible: torch.Tensor, prob: float = 0.5) -> torch.Tensor:
    """Draw how the color channels of each clip are mixed.

    A gray clip has ``w_r R + w_g G + w_b B`` in all channels, with w uniform in [0, 1] and divided
    by its sum. Liang et al., "Bridging the gap: multi-level cross-modality joint alignment for
    visible-infrared person re-identification", TCSVT 2024.

    Args:
        is_visible: infrared clips stay as they are.
        prob: share of the visible clips that become gray.

    Returns:
        ``[B, 3, 3]``: output channel c is ``sum_d mixing[c, d] * channel d``.
    """
    weights = torch.rand(len(is_visible), 1, 3)
    gray = (weights / weights.sum(-1, keepdim=True)).expand(-1, 3, 3)
    chosen = (torch.rand(len(is_visible)) < prob) & is_visible
    return torch.where(chosen[:, None, None], gray, torch.eye(3))


def mix_channels(clips: torch.Tensor, mixing: torch.Tensor) -> torch.Tensor:
    """Clips ``[B, T, 3, H, W]`` with the mixing of :func:`gray_mixing`, in a new tensor."""
    flat = clips.flatten(3).transpose(1, 2).flatten(2)  # [B, 3, T H W]
    mixed = (mixing @ flat).view(len(clips), 3, clips.shape[1], -1)
    return mixed.transpose(1, 2).reshape(clips.shape)


def erase(clips: torch.Tensor, prob: float = 0.5) -> None:
    """Set a rectangle of some normalized clips to 0, in place, as torchvision's RandomErasing.

    Args:
        clips: ``[B, T, 3, H, W]``.
        prob: share of the clips.
    """
    for clip in clips:
        if torch.rand(()) < prob:
            found = RandomErasing.get_params(clip, AREA, ASPECT, [0.0])
            top, left, height, width, value = found
            if value is not clip:  # no rectangle fitted
                clip[..., top : top + height, left : left + width] = 0
