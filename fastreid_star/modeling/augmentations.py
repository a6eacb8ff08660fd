"""Augmentations of the pixels of training clips, by name: ``INPUT.AUGMENTATIONS``.

An augmentation is a function of :class:`TrainingClips` and a share, and returns new images. They
act on pixels of 0 to 255, before the images are normalized, so that a gray image is gray. What
published programs do after the normalization is written in its units. One draw is for all frames of
a clip; with ``MODEL.UNIT frame`` each frame draws for itself. Random numbers are drawn on the host.

Shapes: B clips, T frames.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from fastreid.utils.registry import Registry

from fastreid_star.errors import UserError
from fastreid_star.modeling.clips import frame_modality
from fastreid_star.modeling.layers import colors
from fastreid_star.modeling.layers.style import augment_style, style_factors
from fastreid_star.modeling.losses.pairing import partners

AUGMENTATION_REGISTRY = Registry("AUGMENTATION")
AUGMENTATION_REGISTRY.__doc__ = """
Augmentations by function name, for ``INPUT.AUGMENTATIONS``. They are called as
``augmentation(clips, share)``.
"""
BRIGHT_GRAY = (0.4914, 0.4822, 0.4465)  # CAJL's value of erased pixels, in normalized units
ERASED = (0.02, 0.4)  # CAJL's areas


@dataclass(frozen=True)
class TrainingClips:
    """The clips of a batch.

    Args:
        images: ``[B, T, 3, H, W]``, 0 to 255, floating point, on the device.
        is_visible: bool ``[B]``, on the host.
        second_view: bool ``[B]``, on the host: clips that ``SecondViewSampler`` has drawn again.
        targets: ``[B]``.
        mean, std: ``[3, 1, 1]``, of the normalization.
    """

    images: torch.Tensor
    is_visible: torch.Tensor
    second_view: torch.Tensor
    targets: torch.Tensor
    mean: torch.Tensor
    std: torch.Tensor

    def draw(self, share: float) -> torch.Tensor:
        """Which clips are chosen, bool ``[B]``, on the host."""
        return torch.rand(len(self.images)) < share

    def mixed(self, mixing: torch.Tensor) -> torch.Tensor:
        """The images with channels mixed by ``[B, 3, 3]``."""
        mixing = mixing.to(self.images.device, self.images.dtype, non_blocking=True)
        return colors.mix_channels(self.images, mixing)

    def normalized(self) -> TrainingClips:
        """The same with normalized images."""
        return replace(self, images=(self.images - self.mean) / self.std)

    def to_pixels(self, images: torch.Tensor) -> torch.Tensor:
        """Normalized images to pixels."""
        return images * self.std + self.mean


def one_channel(number: int) -> torch.Tensor:
    """Mixings that put a random channel into all three, ``[number, 3, 3]``."""
    return torch.eye(3)[torch.randint(3, (number, 1))].expand(-1, 3, -1)


def where(chosen: torch.Tensor, mixing: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """The mixing of the chosen clips, and the other of the rest."""
    return torch.where(chosen[:, None, None], mixing, other)


@AUGMENTATION_REGISTRY.register()
def channel_choice(clips: TrainingClips, share: float = 0.5) -> torch.Tensor:
    """One of R, G and B, drawn for the clip, in all three channels (CAJL, SGIEL, DEEN).

    Of all second views, if the batch has them, else of a share of the visible clips.
    """
    chosen = clips.draw(share) & clips.is_visible
    if clips.second_view.any():
        chosen = clips.second_view
    return clips.mixed(where(chosen, one_channel(len(chosen)), torch.eye(3)))


@AUGMENTATION_REGISTRY.register()
def published_channels(clips: TrainingClips, share: float = 0.5) -> torch.Tensor:
    """CAJL's program: channel choice after the normalization, which leaves no clip gray.

    Visible clips as by channel_choice. Infrared clips: one channel with a probability of 3/4, luma
    with 1/8.
    """
    normal, number = clips.normalized(), len(clips.images)
    visible = clips.draw(share) & clips.is_visible
    if clips.second_view.any():
        visible = clips.second_view
    kind = torch.rand(number)
    chosen = visible | ((kind < 0.75) & ~clips.is_visible)
    luma = torch.tensor(colors.GRAY).expand(number, 3, 3)
    gray = (kind >= 0.75) & (kind < 0.875) & ~clips.is_visible
    mixing = where(chosen, one_channel(number), where(gray, luma, torch.eye(3)))
    return clips.to_pixels(normal.mixed(mixing))


@AUGMENTATION_REGISTRY.register()
def luma(clips: TrainingClips, share: float = 0.5) -> torch.Tensor:
    """0.299 R + 0.587 G + 0.114 B in all channels, of a share of the visible clips (PMT, VCD)."""
    chosen = clips.draw(share) & clips.is_visible
    gray = torch.tensor(colors.GRAY).expand(len(chosen), 3, 3)
    return clips.mixed(where(chosen, gray, torch.eye(3)))


@AUGMENTATION_REGISTRY.register()
def random_luma(clips: TrainingClips, share: float = 0.5) -> torch.Tensor:
    """Gray with random weights of the colors, of a share of the visible clips (M3-ReID)."""
    return clips.mixed(colors.gray_mixing(clips.is_visible, share))


@AUGMENTATION_REGISTRY.register()
def channel_factors(clips: TrainingClips, share: float = 1.0) -> torch.Tensor:
    """Normalized channels times 0.5 to 1.5, and permuted; infrared: one factor (SAADG).

    ``MODEL.SAD.AUGMENT`` does so for each frame.
    """
    factors, order = style_factors(clips.is_visible, 0.5, 1.5)
    chosen = clips.draw(share)[:, None]
    factors = torch.where(chosen, factors, 1.0)
    order = torch.where(chosen, order, torch.arange(3))
    length, images = clips.images.shape[1], clips.normalized().images
    drawn = (x.repeat_interleave(length, 0).to(images.device) for x in (factors, order))
    return clips.to_pixels(augment_style(images.flatten(0, 1), *drawn).view_as(images))


@AUGMENTATION_REGISTRY.register()
def erasing(clips: TrainingClips, share: float = 0.5) -> torch.Tensor:
    """A rectangle of 2 to 40 % with the bright gray 0.4914, 0.4822, 0.4465 in normalized units.

    The same in all frames of a clip (CAJL). INPUT.REA paints another one into each frame.
    """
    images = clips.images.clone()
    value = clips.to_pixels(colors.color(BRIGHT_GRAY, images))
    colors.erase(images, share, area=ERASED, value=value)
    return images


@AUGMENTATION_REGISTRY.register()
def cutmix(clips: TrainingClips, share: float = 0.2) -> torch.Tensor:
    """One rectangle from a clip of the same identity in the other modality; a share of the steps.

    SGIEL takes it from any identity and mixes the labels; here the label stays.
    """
    if torch.rand(()) >= share:
        return clips.images
    top, bottom, left, right = colors.cutmix_box(*clips.images.shape[-2:])
    partner, _ = partners(clips.targets, clips.is_visible.to(clips.targets.device))
    images, part = clips.images.clone(), (..., slice(top, bottom), slice(left, right))
    images[part] = clips.images[part][partner.to(images.device)]
    return images


@AUGMENTATION_REGISTRY.register()
def anaglyph(clips: TrainingClips, share: float = 0.5) -> torch.Tensor:
    """The relief of the gray image, of a share of the clips of both modalities (IBAN)."""
    chosen = clips.draw(share).to(clips.images.device)[:, None, None, None, None]
    relief = colors.anaglyph(clips.images.flatten(0, 1)).view_as(clips.images)
    return torch.where(chosen, relief, clips.images)


class Augmentations:
    """The augmentations of a run, in their order.

    Args:
        names: ``INPUT.AUGMENTATIONS``: names, or pairs of a name and a share.

    Raises:
        UserError: a name is not registered, or a share is none.
    """

    def __init__(self, names: Any = ()):
        self.steps: list[Callable[..., torch.Tensor]] = []
        known = AUGMENTATION_REGISTRY._obj_map  # fast-reid's registry cannot list its names
        for entry in names:
            name, *share = [entry] if isinstance(entry, str) else list(entry)
            if name not in known:
                choices = ", ".join(sorted(known))
                raise UserError(f"INPUT.AUGMENTATIONS has {name!r}: choose of {choices}")
            if len(share) > 1 or not all(0 <= float(number) <= 1 for number in share):
                raise UserError(
                    f"INPUT.AUGMENTATIONS has {entry!r}: give a name, or a name and a share of the "
                    'clips from 0 to 1, such as ["luma", 0.5]'
                )
            chosen = {"share": float(share[0])} if share else {}
            self.steps.append(functools.partial(known[name], **chosen))

    def __call__(
        self, batch: dict[str, Any], mean: torch.Tensor, std: torch.Tensor
    ) -> dict[str, Any]:
        """A training batch with changed images, on the device of `mean` and `std` ``[3, 1, 1]``."""
        if not self.steps:
            return batch
        number = len(batch["images"])
        clips = TrainingClips(
            images=batch["images"].to(mean.device, non_blocking=True).to(mean.dtype),
            is_visible=frame_modality(batch, 1),
            second_view=torch.as_tensor(batch.get("view", [0] * number)).cpu() > 0,
            targets=batch["targets"],
            mean=mean,
            std=std,
        )
        for step in self.steps:
            clips = replace(clips, images=step(clips))
        return {**batch, "images": clips.images}
