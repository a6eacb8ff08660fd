"""Transforms of one clip; a transform that moves pixels moves joints and shapes with them.

T frames, V = 17 joints. The center of a pixel has whole coordinates: (0, 0) is the first pixel,
(W - 1, 0) the last of the first row. Scores never change. A joint whose three values are zero is
missing and stays zero, as do all joints of a frame without skeleton.

A transform takes a clip and a random generator and returns a new clip. It has no state and never
writes into its input.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from PIL import Image

from fastreid_star.coco import LEFT_RIGHT
from fastreid_star.data.io import to_rgb
from fastreid_star.errors import UserError


@dataclass(frozen=True, slots=True)
class Clip:
    """T frames, their joints and their body shapes.

    Args:
        frames: uint8 [T,H,W,3]; before :class:`Resize` a list of T images, uint8 [H,W,3] or counts
            of 16 bits [H,W].
        joints: float32 [T,V,3]: x, y, score.
        present: bool [T], frames that have a skeleton.
        sizes: float32 [T,2], height and width of each frame before :class:`Resize`, which sets it.
        shapes: uint8 [T,H,W], body shapes of the frames, which move with them; before
            :class:`Resize` a list of T arrays of any size. None: the clip has none.
    """

    frames: np.ndarray
    joints: np.ndarray
    present: np.ndarray
    sizes: np.ndarray | None = None
    shapes: np.ndarray | None = None


class Transform(Protocol):
    def __call__(self, clip: Clip, rng: np.random.Generator) -> Clip: ...


class Compose:
    """Apply `transforms` in their order."""

    def __init__(self, transforms: Sequence[Transform]):
        self.transforms = tuple(transforms)

    def __call__(self, clip: Clip, rng: np.random.Generator) -> Clip:
        for transform in self.transforms:
            clip = transform(clip, rng)
        return clip


class Resize:
    """Resize every frame, bilinear with antialiasing; the frames of a clip differ in size.

    Args:
        size: height and width of the result in pixels.
        levels: of frames of 16 bits, see :func:`fastreid_star.data.io.to_rgb`.
    """

    def __init__(self, size: Sequence[int], levels: Sequence[float] = ()):
        self.height, self.width = size
        self.levels = tuple(levels)

    def __call__(self, clip: Clip, rng: np.random.Generator) -> Clip:
        frames = np.empty((len(clip.frames), self.height, self.width, 3), np.uint8)
        sizes = np.array([frame.shape[:2] for frame in clip.frames], np.float32)
        target = np.array((self.height, self.width), np.float32)
        scales = (target / sizes)[:, None, ::-1]  # of x and y
        for t, frame in enumerate(to_rgb(list(clip.frames), self.levels)):
            frames[t] = self._resized(frame)
        joints = _move(clip, (clip.joints[..., :2] + 0.5) * scales - 0.5)
        shapes = clip.shapes
        if shapes is not None:
            shapes = np.stack([self._resized(shape) for shape in shapes])
        return Clip(frames, joints, clip.present, sizes, shapes)

    def _resized(self, image: np.ndarray) -> np.ndarray:
        if image.shape[:2] == (self.height, self.width):
            return image
        size = (self.width, self.height)
        return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))


class PadCrop:
    """Pad with zeros, then crop at random to the size before: a random shift.

    Args:
        padding: pixels on each side, the largest shift in every direction.
        shared: one crop for all frames of the clip; False: every frame draws its own.
    """

    def __init__(self, padding: int, *, shared: bool = True):
        self.padding, self.shared = padding, shared

    def __call__(self, clip: Clip, rng: np.random.Generator) -> Clip:
        length = len(clip.frames)
        number = 1 if self.shared else length
        shifts = rng.integers(-self.padding, self.padding + 1, size=(number, 2))
        frames = self._shifted(clip.frames, shifts)
        shapes = None if clip.shapes is None else self._shifted(clip.shapes, shifts)
        joints = _move(clip, clip.joints[..., :2] + shifts[:, None])
        return replace(clip, frames=frames, joints=joints, shapes=shapes)

    @staticmethod
    def _shifted(images: np.ndarray, shifts: np.ndarray) -> np.ndarray:
        shifted = np.zeros_like(images)
        if len(shifts) == 1:
            _paste(shifted, images, *shifts[0])
        else:
            for t, (dx, dy) in enumerate(shifts):
                _paste(shifted[t : t + 1], images[t : t + 1], dx, dy)
        return shifted


class HorizontalFlip:
    """Mirror the frames; left joints become right joints.

    Args:
        prob: probability.
        shared: one draw for all frames of the clip; False: every frame draws its own.
    """

    def __init__(self, prob: float = 0.5, *, shared: bool = True):
        self.prob, self.shared = prob, shared

    def __call__(self, clip: Clip, rng: np.random.Generator) -> Clip:
        flip = rng.random(1 if self.shared else len(clip.frames)) < self.prob  # [1] or [T]
        if not flip.any():
            return clip
        flip = np.broadcast_to(flip, len(clip.frames))
        mirrored = clip.joints[..., :2].copy()
        mirrored[..., 0] = clip.frames.shape[2] - 1 - mirrored[..., 0]
        mirrored = _move(clip, mirrored)[:, LEFT_RIGHT]
        joints = np.where((flip & clip.present)[:, None, None], mirrored, clip.joints)
        frames = self._mirrored(clip.frames, flip)
        shapes = None if clip.shapes is None else self._mirrored(clip.shapes, flip)
        return replace(clip, frames=frames, joints=joints, shapes=shapes)

    @staticmethod
    def _mirrored(images: np.ndarray, flip: np.ndarray) -> np.ndarray:
        if flip.all():  # a view: copied once, into the batch
            return images[:, :, ::-1]
        mirrored = images.copy()
        mirrored[flip] = np.take(images[flip], np.arange(images.shape[2])[::-1], axis=2)
        return mirrored


class RandomErasing:
    """Paint a rectangle over a frame, as an occluder would; joints and shapes are not changed.

    Every frame draws its own rectangle, even if crop and flip are shared, so that one frame shows
    what another hides.

    Args:
        prob: probability for a frame.
        area: smallest and largest share of the frame that is painted over.
        aspect: smallest and largest height / width of the rectangle.
        value: its color, RGB in 0 .. 255.
    """

    attempts = 10

    def __init__(
        self,
        prob: float = 0.5,
        area: Sequence[float] = (0.02, 0.4),
        aspect: Sequence[float] = (0.3, 3.3),
        value: Sequence[float] = (124, 116, 104),
    ):
        self.prob, self.area, self.aspect = prob, tuple(area), tuple(aspect)
        self.value = np.rint(np.clip(value, 0, 255)).astype(np.uint8)

    def __call__(self, clip: Clip, rng: np.random.Generator) -> Clip:
        chosen = np.flatnonzero(rng.random(len(clip.frames)) < self.prob)
        if not len(chosen):
            return clip
        frames = clip.frames.copy()
        for t in chosen:
            top, left, height, width = self._rectangle(frames.shape[1], frames.shape[2], rng)
            row = np.tile(self.value, (width, 1))  # copying rows is faster than single pixels
            frames[t, top : top + height, left : left + width] = row
        return replace(clip, frames=frames)

    def _rectangle(self, rows: int, columns: int, rng: np.random.Generator) -> tuple[int, ...]:
        """Top, left, height and width; empty if no draw fits."""
        for _ in range(self.attempts):
            area = rng.uniform(self.area[0], self.area[1]) * rows * columns
            aspect = rng.uniform(self.aspect[0], self.aspect[1])
            height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < height <= rows and 0 < width <= columns:
                top, left = rng.integers(rows - height + 1), rng.integers(columns - width + 1)
                return int(top), int(left), height, width
        return 0, 0, 0, 0


class Blank:
    """Set all pixels to 0 and keep the joints: a control with skeletons alone."""

    def __call__(self, clip: Clip, rng: np.random.Generator) -> Clip:
        return replace(clip, frames=np.zeros_like(clip.frames))


def build_transforms(cfg, is_train: bool) -> Compose:
    """The transforms of fast-reid's INPUT section.

    Raises:
        UserError: a value is invalid or an augmentation is not available for clips.
    """
    for name in ("CROP", "CJ", "AFFINE", "AUTOAUG", "AUGMIX", "RPT"):
        if cfg.INPUT[name].ENABLED:
            raise UserError(f"INPUT.{name}.ENABLED is not available for clips: set it to False")
    key = "SIZE_TRAIN" if is_train else "SIZE_TEST"
    size = list(cfg.INPUT[key])
    if len(size) != 2 or not all(isinstance(side, int) and side > 0 for side in size):
        raise UserError(
            f"INPUT.{key} is {size}: give height and width in pixels, such as [288, 144]"
        )
    levels = list(cfg.INPUT.RANGE_16BIT)
    if levels and (len(levels) != 2 or not levels[0] < levels[1]):
        raise UserError(f"INPUT.RANGE_16BIT is {levels}: give two counts, low < high, or []")
    transforms: list[Transform] = [Resize(size, levels)]
    if cfg.INPUT.BLANK:
        transforms.append(Blank())
    if not is_train:
        return Compose(transforms)
    shared = cfg.INPUT.CLIP.SHARED_GEOMETRY
    if cfg.INPUT.PADDING.ENABLED:
        if cfg.INPUT.PADDING.MODE != "constant":
            raise UserError(
                f"INPUT.PADDING.MODE {cfg.INPUT.PADDING.MODE} is not available: use constant"
            )
        if cfg.INPUT.PADDING.SIZE < 0:
            raise UserError(
                f"INPUT.PADDING.SIZE is {cfg.INPUT.PADDING.SIZE}: give 0 or more pixels"
            )
        transforms.append(PadCrop(cfg.INPUT.PADDING.SIZE, shared=shared))
    if cfg.INPUT.REA.ENABLED:
        transforms.append(RandomErasing(cfg.INPUT.REA.PROB, value=cfg.INPUT.REA.VALUE))
    if cfg.INPUT.FLIP.ENABLED:  # last, because a mirrored view costs nothing
        transforms.append(HorizontalFlip(cfg.INPUT.FLIP.PROB, shared=shared))
    return Compose(transforms)


def _move(clip: Clip, positions: np.ndarray) -> np.ndarray:
    """The clip's joints at new `positions` [T,V,2]; missing joints stay as they are."""
    joints = clip.joints.copy()
    found = clip.present[:, None] & clip.joints.any(axis=-1)
    joints[found, :2] = positions[found]
    return joints


def _paste(target: np.ndarray, source: np.ndarray, dx: int, dy: int) -> None:
    """Copy source [T,H,W,3] or [T,H,W] into target, moved dx to the right and dy down."""
    height, width = source.shape[1:3]
    rows, columns = max(0, height - abs(dy)), max(0, width - abs(dx))
    y, x = max(0, dy), max(0, dx)
    y0, x0 = max(0, -dy), max(0, -dx)
    target[:, y : y + rows, x : x + columns] = source[:, y0 : y0 + rows, x0 : x0 + columns]
