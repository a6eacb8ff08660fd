"""What changes the pixels of training clips, as functions of clips and of numbers drawn before.

Random numbers are drawn on the host: one seed gives the same clips on every device.

Shapes: B clips, T frames; `is_visible` is a bool tensor ``[B]`` on the host.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torchvision.transforms import RandomErasing

GRAY = (0.299, 0.587, 0.114)  # ITU-R BT.601
AREA, ASPECT = (0.02, 0.33), (0.3, 3.3)  # torchvision's defaults, which M3-ReID's authors use


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


def erase(
    clips: torch.Tensor,
    prob: float = 0.5,
    *,
    area: tuple[float, float] = AREA,
    value: float | torch.Tensor = 0.0,
) -> None:
    """Paint a rectangle over some clips, the same in all frames, in place.

    Rectangles are those of torchvision's RandomErasing.

    Args:
        clips: ``[B, T, 3, H, W]``.
        prob: share of the clips.
        area: smallest and largest share of the frame.
        value: a number, or a color ``[3, 1, 1]``.
    """
    for clip in clips:
        if torch.rand(()) < prob:
            found = RandomErasing.get_params(clip, area, ASPECT, [0.0])
            top, left, height, width, painted = found
            if painted is not clip:  # no rectangle fitted
                clip[..., top : top + height, left : left + width] = value


def cutmix_box(height: int, width: int) -> tuple[int, int, int, int]:
    """Draw the rectangle of CutMix: its share of the image is uniform, its center anywhere.

    Yun et al., "CutMix: regularization strategy to train strong classifiers with localizable
    features", ICCV 2019, with Beta(1, 1). It is cut off at the border.

    Returns:
        top, bottom, left and right.
    """
    share, y, x = torch.rand(3).tolist()
    sides = []
    for size, center in ((height, int(y * height)), (width, int(x * width))):
        half = int(size * share**0.5) // 2
        sides += [max(center - half, 0), min(center + half, size)]
    return sides[0], sides[1], sides[2], sides[3]


def anaglyph(images: torch.Tensor) -> torch.Tensor:
    """The relief of an image: each pixel of its gray image less its lower right neighbor, plus 128.

    ``clip(g(i + 1, j + 1) - g(i, j) + 128, 0, 255)``; the last row and the last column are 0.

    Args:
        images: ``[N, 3, H, W]``, 0 to 255, floating point.

    Returns:
        ``[N, 3, H, W]``, three equal channels.
    """
    gray = (images * color(GRAY, images)).sum(1, keepdim=True)
    relief = (gray[:, :, 1:, 1:] - gray[:, :, :-1, :-1] + 128).clamp(0, 255)
    return F.pad(relief, (0, 1, 0, 1)).expand(-1, 3, -1, -1)


def color(numbers: Sequence[float], like: torch.Tensor) -> torch.Tensor:
    """Three numbers as a tensor ``[3, 1, 1]`` of the type and device of `like`."""
    return torch.tensor(numbers, dtype=like.dtype, device=like.device).view(3, 1, 1)
