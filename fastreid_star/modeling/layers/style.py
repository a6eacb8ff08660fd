"""Style augmentation and style attack.

The style of a frame is what its channels' statistics carry: illumination, sensor, modality. The augmentation
changes it in the pixels, the attack in the feature maps, by adaptive instance normalization (AdaIN). Functions
that draw random numbers are apart from functions that apply them, and draw on the host: one seed gives the same
styles on every device.

Shapes: N frames in the order of the batch; maps are ``[N, C, H, W]``, or ``[N, L, D]`` for a transformer's tokens.
`is_visible` is a bool tensor ``[N]`` on the host.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from fastreid_star.errors import UserError
from fastreid_star.modeling.layers.pooling import at_least_float32

STD_KINDS = ("sqrt_var", "release")


def style_factors(
    is_visible: torch.Tensor, low: float, high: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw a pixel style for every frame.

    An infrared frame has one sensor: one factor for all channels, which stay where they are. A visible frame gets
    a factor a channel, all ~ U[low, high], and a random order of its channels.

    Returns:
        factors ``[N, 3]``, and order ``[N, 3]``: output channel c is taken from input channel ``order[n, c]``.
    """
    n, visible = len(is_visible), is_visible[:, None]
    per_channel = torch.empty(n, 3).uniform_(low, high)
    per_frame = torch.empty(n, 1).uniform_(low, high)
    shuffled = torch.rand(n, 3).argsort(
        dim=1
    )  # the order of uniform noise is a uniform permutation
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
    # (frame, channel) as one axis: an index of N * 3 entries instead of one as large as the images
    rows = (order + channels * torch.arange(n, device=order.device)[:, None]).flatten()
    scaled = images * factors[:, :, None, None]
    return scaled.flatten(0, 1).index_select(0, rows).view_as(images)


def channel_statistics(
    x: torch.Tensor, dims: tuple[int, ...], std: str = "sqrt_var"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of every frame and channel.

    ``sqrt_var`` is sqrt(var + 1e-5) with the population variance, as in instance normalization: its gradient is
    bounded on a constant map. ``release`` is ``torch.std(x) + 1e-6`` (divided by n - 1), as in the authors'
    program: x / std then has a gradient of up to 1e6 on a constant map.

    Args:
        x: maps ``[N, C, H, W]`` or tokens ``[N, L, D]``.
        dims: the axes the statistics run over: (2, 3) or (1,).
        std: `sqrt_var` or `release`.

    Returns:
        both with the reduced axes kept as 1, in float32 or wider.

    Raises:
        UserError: unknown `std`, or `release` on maps of a single position, which have no such deviation.
    """
    mean, centered = _center(x, dims)
    return mean, _deviation(centered, dims, std)[0]


def adain(
    x: torch.Tensor, partner: torch.Tensor, dims: tuple[int, ...] = (2, 3), std: str = "sqrt_var"
) -> torch.Tensor:
    """Give every frame the style of another: ``(x - mean) / sd * sd[partner] + mean[partner]``.

    Huang and Belongie, "Arbitrary style transfer in real-time with adaptive instance normalization", ICCV 2017.
    Gradients flow through all four statistics, once: a second derivative is refused.

    Args:
        x: maps ``[N, C, H, W]`` or tokens ``[N, L, D]``.
        partner: ``[N]``, the frame whose statistics each frame takes, on the device of `x`.
        dims, std: see :func:`channel_statistics`.

    Returns:
        the shape and type of `x`.
    """
    return _AdaIN.apply(x, partner, dims, std)


class _AdaIN(torch.autograd.Function):
    """:func:`adain` with its gradient written out.

    The maps are large and little is done to them, so what counts is how often they are read and written, and how many
    are kept: left to autograd, this takes four times as long on a CPU, and keeps three maps where one is enough.
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, partner: torch.Tensor, dims: tuple[int, ...], std: str
    ) -> torch.Tensor:
        mean, centered = _center(x, dims)
        sd, slope = _deviation(centered, dims, std)
        gain = sd.index_select(0, partner) / sd
        ctx.save_for_backward(centered, partner, sd, slope, gain)
        ctx.dims = dims
        return torch.addcmul(mean.index_select(0, partner), centered, gain).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        centered, partner, sd, slope, gain = ctx.saved_tensors
        wide = at_least_float32(grad)
        by_mean = wide.sum(ctx.dims, keepdim=True)
        by_gain = (wide * centered).sum(ctx.dims, keepdim=True)
        # A frame's statistics serve twice: they are taken from it, and lent to those whose partner it is.
        to_mean = torch.zeros_like(sd).index_add_(0, partner, by_mean) - by_mean * gain
        to_sd = torch.zeros_like(sd).index_add_(0, partner, by_gain / sd) - by_gain * gain / sd
        shift = to_mean / _positions(centered, sd)
        to_x = torch.addcmul(torch.addcmul(shift, centered, to_sd * slope), wide, gain)
        return to_x.to(grad.dtype), None, None, None


def _positions(x: torch.Tensor, reduced: torch.Tensor) -> int:
    """How many numbers of `x` went into each of `reduced`."""
    return x[0].numel() // reduced[0].numel()


def _center(x: torch.Tensor, dims: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean, and x without it, both in float32 or wider."""
    mean = x.mean(dims, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))
    return mean, x - mean


def _deviation(
    centered: torch.Tensor, dims: tuple[int, ...], std: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """The standard deviation, and what `centered` is multiplied by for its derivative by x."""
    variance = centered.square().mean(dims, keepdim=True)
    n = _positions(centered, variance)
    if std == "sqrt_var":
        sd = (variance + 1e-5).sqrt()
        return sd, 1 / (n * sd)
    if std != "release":
        raise UserError(f"MODEL.SAD.STD is {std!r}: choose one of {', '.join(STD_KINDS)}")
    if n == 1:
        raise UserError(
            "MODEL.SAD.STD release needs feature maps of more than one position: use sqrt_var, or larger images"
        )
    sd = (variance * (n / (n - 1))).sqrt()
    return sd + 1e-6, (1 / ((n - 1) * sd)).masked_fill(sd == 0, 0)


def attack_partners(is_visible: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw whose style each frame takes in the two steps of the attack.

    Returns:
        same ``[N]``: a random permutation within each modality half (a frame may meet itself). other ``[N]``: frames
        of the other half, a permutation of it where the halves are equal, else drawn with replacement.

    Raises:
        UserError: one half is empty.
    """
    halves = [is_visible.nonzero().flatten(), (~is_visible).nonzero().flatten()]
    if not all(len(half) for half in halves):
        raise UserError(
            "a training batch needs both modalities, visible and infrared: the style attack swaps their styles; "
            "use the cross-modal sampler, or leave out StyleAttackLoss and StyleDefenseLoss"
        )
    same, other = torch.empty(2, len(is_visible), dtype=torch.long)
    for half, opposite in (halves, halves[::-1]):
        same[half] = half[torch.randperm(len(half))]
        if len(half) == len(opposite):
            other[half] = opposite[torch.randperm(len(opposite))]
        else:
            other[half] = opposite[torch.randint(len(opposite), (len(half),))]
    return same, other
