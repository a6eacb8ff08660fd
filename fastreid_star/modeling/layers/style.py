"""Style augmentation and style attack.

The style of a frame is what the statistics of its channels hold: illumination, sensor, modality.
The augmentation changes it in the pixels, the attack in the feature maps, by adaptive instance
normalization (AdaIN). Functions that draw random numbers are separate from those that apply them,
and draw on the host: one seed gives the same styles on every device.

Shapes: N frames in the order of the batch; maps are ``[N, C, H, W]``, or ``[N, L, D]`` for the
tokens of a transformer. `is_visible` is a bool tensor ``[N]`` on the host.
"""

from __future__ import annotations

import torch

from fastreid_star.errors import UserError
from fastreid_star.modeling.layers.pooling import at_least_float32

STD_KINDS = ("sqrt_var", "release")


def style_factors(
    is_visible: torch.Tensor, low: float, high: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw a pixel style for every frame.

    An infrared frame has one sensor, so it gets one factor for all channels, and its channels keep
    their order. A visible frame gets one factor for each channel and a random order of the
    channels. All factors are drawn from U[low, high].

    Returns:
        factors ``[N, 3]``, and order ``[N, 3]``: output channel c is input channel ``order[n, c]``.
    """
    n, visible = len(is_visible), is_visible[:, None]
    per_channel = torch.empty(n, 3).uniform_(low, high)
    per_frame = torch.empty(n, 1).uniform_(low, high)
    shuffled = torch.rand(n, 3).argsort(dim=1)  # the order of uniform noise is a permutation
    factors = torch.where(visible, per_channel, per_frame)
    order = torch.where(visible, shuffled, torch.arange(3).expand(n, 3))
    return factors, order


def augment_style(images: torch.Tensor, factors: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """Scale the channels of every frame, then put them into a new order.

    Args:
        images: ``[N, 3, H, W]``, normalized.
        factors, order: ``[N, 3]``, from :func:`style_factors`, on the images' device.

    Returns:
        ``[N, 3, H, W]``, a new tensor.
    """
    n, channels = order.shape
    # with (frame, channel) as one axis the index has N * 3 entries, not as many as the images
    rows = (order + channels * torch.arange(n, device=order.device)[:, None]).flatten()
    scaled = images * factors[:, :, None, None]
    return scaled.flatten(0, 1).index_select(0, rows).view_as(images)


def channel_statistics(
    x: torch.Tensor, dims: tuple[int, ...], std: str = "sqrt_var"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of every frame and channel.

    ``sqrt_var`` is sqrt(var + 1e-5) with the population variance, as in instance normalization: its
    gradient is bounded on a constant map. ``release`` is ``torch.std(x) + 1e-6`` (divided by n -
    1), as in the authors' program: x / std then has a gradient of up to 1e6 on a constant map.

    Args:
        x: maps ``[N, C, H, W]`` or tokens ``[N, L, D]``.
        dims: the axes of the positions: (2, 3) or (1,).
        std: `sqrt_var` or `release`.

    Returns:
        both with the reduced axes kept as 1, in float32 or wider.

    Raises:
        UserError: `release` on maps of one position, which have no such deviation.
    """
    if std == "release" and all(x.shape[axis] == 1 for axis in dims):
        raise UserError(
            "MODEL.SAD.STD release needs feature maps of more than one position: choose "
            "sqrt_var, or larger images"
        )
    correction = 1 if std == "release" else 0
    variance, mean = torch.var_mean(at_least_float32(x), dims, correction=correction, keepdim=True)
    if std == "sqrt_var":
        return mean, (variance + 1e-5).sqrt()
    # torch.std's gradient is 0 on a constant map, where that of the square root is infinite
    constant = variance == 0
    return mean, torch.where(constant, 1, variance).sqrt().masked_fill(constant, 0) + 1e-6


def adain(
    x: torch.Tensor, partner: torch.Tensor, dims: tuple[int, ...] = (2, 3), std: str = "sqrt_var"
) -> torch.Tensor:
    """Give every frame the style of another: ``(x - mean) / sd * sd[partner] + mean[partner]``.

    Huang and Belongie, "Arbitrary style transfer in real-time with adaptive instance
    normalization", ICCV 2017. Gradients flow through all four statistics.

    Args:
        x: maps ``[N, C, H, W]`` or tokens ``[N, L, D]``.
        partner: ``[N]``, the frame whose statistics each frame takes, on the device of `x`.
        dims, std: see :func:`channel_statistics`.

    Returns:
        the shape and type of `x`.
    """
    mean, sd = channel_statistics(x, dims, std)
    gain = sd.index_select(0, partner) / sd
    shifted = torch.addcmul(mean.index_select(0, partner), at_least_float32(x) - mean, gain)
    return shifted.to(x.dtype)


def attack_partners(is_visible: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw whose style each frame takes in the two steps of the attack.

    Returns:
        same ``[N]``: a random permutation within each modality (a frame may be its own partner).
        other ``[N]``: frames of the other modality, a permutation where both have equally many
        frames, else drawn with replacement.

    Raises:
        UserError: a modality has no frame.
    """
    halves = [is_visible.nonzero().flatten(), (~is_visible).nonzero().flatten()]
    if not all(len(half) for half in halves):
        raise UserError(
            "a training batch needs both modalities, visible and infrared, because the style "
            "attack swaps their styles: set DATALOADER.SAMPLER_TRAIN TrainingSampler, or leave "
            "out StyleAttackLoss and StyleDefenseLoss"
        )
    same, other = torch.empty(2, len(is_visible), dtype=torch.long)
    for half, opposite in (halves, halves[::-1]):
        same[half] = half[torch.randperm(len(half))]
        if len(half) == len(opposite):
            other[half] = opposite[torch.randperm(len(opposite))]
        else:
            other[half] = opposite[torch.randint(len(opposite), (len(half),))]
    return same, other
