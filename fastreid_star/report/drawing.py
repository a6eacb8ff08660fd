"""Frames and skeletons as pictures. Images are uint8 RGB arrays [H,W,3], joints [V,3] as in a skeleton store."""

from __future__ import annotations

import functools
import io
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import cv2
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fastreid_star.coco import BONES, JOINT_NAMES, NUM_JOINTS

# Orange, sky blue and white differ for every kind of color vision, and stand out from gray frames with the dark line
# that is drawn round them.
LEFT, RIGHT, MIDDLE = (255, 150, 0), (60, 185, 255), (255, 255, 255)
OUTLINE = (0, 0, 0)
PAPER, INK, EMPTY = (255, 255, 255), (20, 20, 20), (225, 225, 225)
NO_SKELETON = "no skeleton"

_SHIFT = 4  # OpenCV takes coordinates in 1/16 pixels
_MARGIN = 8

Draw = Callable[[np.ndarray, int], object]


def joint_color(joint: int) -> tuple[int, int, int]:
    """The color of a joint's side of the body: the person's own left and right."""
    name = JOINT_NAMES[joint]
    return LEFT if name.startswith("left_") else RIGHT if name.startswith("right_") else MIDDLE


def bone_color(bone: tuple[int, int]) -> tuple[int, int, int]:
    """The color of the side that a bone is on; one that joins both sides is in the middle."""
    sides = {joint_color(joint) for joint in bone} - {MIDDLE}
    return sides.pop() if len(sides) == 1 else MIDDLE


def enlarge(image: np.ndarray, scale: float) -> np.ndarray:
    """The image `scale` times as large in both directions, at least one pixel; the result is the caller's own."""
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    # not OpenCV's: its resize starts threads, and a worker forked beside them may hang in cv2.setNumThreads
    return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


def draw_skeleton(
    image: np.ndarray, joints: np.ndarray | None, *, scale: float = 3.0, min_score: float = 0.0
) -> np.ndarray:
    """A frame, enlarged, with its skeleton drawn on top: the lines are as crisp as the result has pixels.

    The surer a joint, the less the frame shines through it and its bones. A joint below `min_score` is a ring, and its
    bones are faint. One outside the frame is a triangle at the edge that points to it. Values that are not finite are
    left out.

    Args:
        image: uint8 [H,W,3].
        joints: [V,3] of x, y, score in pixels of `image`, the center of its first pixel at (0, 0). None: the frame has
            no skeleton, which is written on it.
        scale: how many times larger the result is.
        min_score: joints with a lower score are marked as such.

    Returns:
        uint8, about [H * scale, W * scale, 3].
    """
    canvas = enlarge(image, scale)
    if joints is None:
        _write_across(canvas, NO_SKELETON)
        return canvas
    joints = np.asarray(joints, dtype=np.float64)
    if joints.shape != (NUM_JOINTS, 3):
        raise ValueError(f"joints have the shape {joints.shape}, expected ({NUM_JOINTS}, 3)")
    height, width = canvas.shape[:2]
    size = np.array([width, height])
    drawn = np.isfinite(joints).all(axis=1)
    joints = np.where(drawn[:, None], joints, 0)
    points = (joints[:, :2] + 0.5) * (size / image.shape[1::-1]) - 0.5
    inside = np.all((points >= -0.5) & (points <= size - 0.5), axis=1)
    points = np.clip(
        points, -10 * size, 10 * size
    )  # far enough to keep a line's direction, near enough for OpenCV
    sure = joints[:, 2] >= min_score
    opacity = 0.3 + 0.7 * np.clip(joints[:, 2], 0, 1)
    thickness = max(1, round(height / 200))
    radius = 1.5 * thickness + 0.5

    bones = [(i, j) for i, j in BONES if drawn[i] and drawn[j]]
    for i, j in bones:
        if sure[i] and sure[j]:
            _blend(
                canvas,
                OUTLINE,
                0.7 * min(opacity[i], opacity[j]),
                _line(points[i], points[j], thickness + 2),
            )
    for i, j in bones:
        strength = min(opacity[i], opacity[j]) if sure[i] and sure[j] else 0.25
        _blend(canvas, bone_color((i, j)), strength, _line(points[i], points[j], thickness))
    for joint in np.flatnonzero(drawn).tolist():
        color, point = joint_color(joint), points[joint]
        if not inside[joint]:
            _blend(canvas, OUTLINE, 0.8, _arrow(point, size, 3 * radius + 3))
            _blend(canvas, color, 1.0, _arrow(point, size, 3 * radius))
        elif sure[joint]:
            _blend(canvas, OUTLINE, 0.8 * opacity[joint], _disc(point, radius + 1))
            _blend(canvas, color, opacity[joint], _disc(point, radius))
        else:
            _blend(canvas, OUTLINE, 0.5, _ring(point, radius + 0.5, 3))
            _blend(canvas, color, 0.9, _ring(point, radius + 0.5, 1))
    return canvas


@dataclass(frozen=True, slots=True)
class GridRow:
    """One row of a :func:`frame_grid`, a tracklet or a clip.

    Args:
        caption: the line above it.
        images: its frames, uint8 [H,W,3] of sizes that may differ; None: a frame that cannot be read.
        joints: a skeleton, or None, for each frame; None instead of a list: skeletons are not what it is about.
        labels: a few characters for each frame, such as its number; may be left out.
    """

    caption: str
    images: Sequence[np.ndarray | None]
    joints: Sequence[np.ndarray | None] | None = None
    labels: Sequence[str] = ()


def frame_grid(
    rows: Sequence[GridRow],
    *,
    title: str = "",
    height: int = 320,
    min_score: float = 0.0,
    legend: bool = True,
) -> np.ndarray:
    """Tracklets below each other, their frames beside each other, each with its skeleton.

    Args:
        rows: at least one, with at least one frame.
        title: a line above everything; may be empty.
        height: of a frame in the picture, pixels; frames of any size are brought to it.
        min_score: as for :func:`draw_skeleton`.
        legend: say at the bottom what the colors and marks mean, where there are skeletons.

    Returns:
        uint8 [H,W,3].
    """
    size = max(13, height // 17)
    cells = [_cells(row, height, min_score) for row in rows]
    width = max(cell.shape[1] for row in cells for cell in row)
    across = max(len(row) for row in cells) * (width + _MARGIN) + _MARGIN
    words = [title, *(row.caption for row in rows)]
    across = max(across, *(2 * _MARGIN + math.ceil(_font(size).getlength(text)) for text in words))
    strips = [_text_strip(title, across, round(1.2 * size))] if title else []
    for row, images in zip(rows, cells, strict=True):
        strips.append(_text_strip(row.caption, across, size))
        strip = np.full((height, across, 3), PAPER, np.uint8)
        for column, image in enumerate(images):
            left = _MARGIN + column * (width + _MARGIN)
            strip[:, left : left + width] = EMPTY
            left += (width - image.shape[1]) // 2
            strip[:, left : left + image.shape[1]] = image
        strips.append(strip)
    if legend and any(row.joints is not None for row in rows):
        strips.append(_legend(across, size, min_score))
    strips.append(np.full((_MARGIN, across, 3), PAPER, np.uint8))
    return np.concatenate(strips)


def to_png(image: np.ndarray) -> bytes:
    """A picture as the bytes of a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def _cells(row: GridRow, height: int, min_score: float) -> list[np.ndarray]:
    cells = []
    for column, image in enumerate(row.images):
        if image is None:
            cell = np.full((height, height // 2, 3), EMPTY, np.uint8)
            _write_across(cell, "cannot be read")
        else:
            if row.joints is None:
                cell = enlarge(image, height / image.shape[0])
            else:
                cell = draw_skeleton(
                    image, row.joints[column], scale=height / image.shape[0], min_score=min_score
                )
        if column < len(row.labels):
            _write_corner(cell, row.labels[column], max(11, height // 22))
        cells.append(cell)
    return cells


# --- shapes ------------------------------------------------------------------------------------------------------


def _blend(canvas: np.ndarray, color: Sequence[int], opacity: float, draw: Draw) -> None:
    """Lay a color over the canvas where `draw` marks a mask [H,W], which it does with smooth edges."""
    mask = np.zeros(canvas.shape[:2], np.uint8)
    draw(mask, 255)
    x, y, width, height = cv2.boundingRect(mask)
    if not width:
        return
    part = np.s_[y : y + height, x : x + width]
    alpha = mask[part][..., None] * (opacity / 255)
    canvas[part] = np.rint(canvas[part] * (1 - alpha) + np.array(color) * alpha)


def _fixed(values: Iterable[float]) -> tuple[int, ...]:
    return tuple(int(value) for value in np.rint(np.asarray(values) * (1 << _SHIFT)))


def _line(start: np.ndarray, end: np.ndarray, thickness: int) -> Draw:
    return lambda mask, value: cv2.line(
        mask, _fixed(start), _fixed(end), value, thickness, cv2.LINE_AA, _SHIFT
    )


def _disc(center: np.ndarray, radius: float) -> Draw:
    return _ring(center, radius, -1)


def _ring(center: np.ndarray, radius: float, thickness: int) -> Draw:
    reach = round(radius * (1 << _SHIFT))
    return lambda mask, value: cv2.circle(
        mask, _fixed(center), reach, value, thickness, cv2.LINE_AA, _SHIFT
    )


def _arrow(point: np.ndarray, size: np.ndarray, length: float) -> Draw:
    """A triangle that ends at the edge of a canvas of `size` (width, height) and points to `point` outside."""
    tip = np.clip(point, 0, size - 1)
    away = (point - tip) / np.linalg.norm(point - tip)
    base, side = tip - length * away, 0.6 * length * np.array([-away[1], away[0]])
    corners = np.array([_fixed(corner) for corner in (tip, base + side, base - side)], np.int32)
    return lambda mask, value: cv2.fillConvexPoly(mask, corners, value, cv2.LINE_AA, _SHIFT)


# --- text --------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=64)
def _font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib brings along wherever it is installed."""
    return ImageFont.truetype(
        os.path.join(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), size
    )


def _text(
    canvas: np.ndarray,
    position: tuple[float, float],
    text: str,
    size: int,
    color: Sequence[int],
    anchor: str,
) -> None:
    """Write onto the canvas itself; `anchor` says which point of the text `position` is, as Pillow has it."""
    image = Image.fromarray(canvas)
    ImageDraw.Draw(image).text(position, text, fill=tuple(color), font=_font(size), anchor=anchor)
    canvas[:] = np.asarray(image)


def _text_strip(text: str, width: int, size: int) -> np.ndarray:
    strip = np.full((round(2.2 * size), width, 3), PAPER, np.uint8)
    _text(strip, (_MARGIN, 1.9 * size), text, size, INK, "ls")
    return strip


def _write_across(canvas: np.ndarray, text: str) -> None:
    """White on a dark band at the foot, as large as the width allows."""
    height, width = canvas.shape[:2]
    size = max(6, min(height // 12, int(0.9 * width / _font(100).getlength(text) * 100)))
    band = canvas[max(0, height - 2 * size) :]
    band[:] = band // 5
    _text(band, (width / 2, band.shape[0] / 2), text, size, PAPER, "mm")


def _write_corner(canvas: np.ndarray, text: str, size: int) -> None:
    """White on a dark patch, top left."""
    width, height = (
        min(canvas.shape[1], math.ceil(_font(size).getlength(text)) + 6),
        round(1.4 * size),
    )
    patch = canvas[:height, :width]
    patch[:] = patch // 4
    _text(patch, (3, height / 2), text, size, PAPER, "lm")


def _legend(width: int, size: int, min_score: float) -> np.ndarray:
    """What the colors and marks mean, in as many lines as it takes."""
    entries = [
        (_sample(size, LEFT, 1.0), "person's left"),
        (_sample(size, RIGHT, 1.0), "person's right"),
        (_sample(size, MIDDLE, 1.0), "middle"),
        (_sample(size, LEFT, 0.3), "low score: faint"),
        (_sample(size, LEFT, 1.0, outside=True), "joint outside the frame"),
    ]
    if min_score > 0:
        entries.insert(4, (_sample(size, LEFT, 1.0, hollow=True), f"score below {min_score:g}"))
    lines: list[list[tuple[int, np.ndarray, str]]] = [[]]
    x = _MARGIN
    for sample, text in entries:
        needed = sample.shape[1] + math.ceil(_font(size).getlength(text)) + 3 * size
        if x + needed > width and lines[-1]:
            lines.append([])
            x = _MARGIN
        lines[-1].append((x, sample, text))
        x += needed
    strip = np.full((round((2.2 * len(lines) + 0.5) * size), width, 3), PAPER, np.uint8)
    for number, line in enumerate(lines):
        top = round((2.2 * number + 0.7) * size)
        for x, sample, text in line:
            room = strip[top : top + sample.shape[0], x : x + sample.shape[1]]
            room[:] = sample[:, : room.shape[1]]
            _text(
                strip,
                (x + sample.shape[1] + 0.5 * size, top + sample.shape[0] / 2),
                text,
                size,
                INK,
                "lm",
            )
    return strip


def _sample(
    size: int, color: Sequence[int], opacity: float, *, hollow: bool = False, outside: bool = False
) -> np.ndarray:
    """A bit of skeleton on gray, as it looks in a frame."""
    canvas = np.full((round(1.6 * size), round(2.6 * size), 3), (128, 128, 128), np.uint8)
    height, width = canvas.shape[:2]
    start, end = np.array([0.2 * width, 0.5 * height]), np.array([0.8 * width, 0.5 * height])
    radius = 0.22 * size
    if outside:
        edge = np.array([width + 10.0, 0.5 * height])
        _blend(canvas, OUTLINE, 0.7, _arrow(edge, np.array([width, height]), 4 * radius + 2))
        _blend(canvas, color, opacity, _arrow(edge, np.array([width, height]), 4 * radius))
    elif hollow:
        middle = np.array([0.5 * width, 0.5 * height])
        _blend(canvas, OUTLINE, 0.5, _ring(middle, radius + 1, 3))
        _blend(canvas, color, 0.9, _ring(middle, radius + 1, 1))
    else:
        _blend(canvas, OUTLINE, 0.7 * opacity, _line(start, end, 4))
        _blend(canvas, color, opacity, _line(start, end, 2))
        for point in (start, end):
            _blend(canvas, OUTLINE, 0.8 * opacity, _disc(point, radius + 1))
            _blend(canvas, color, opacity, _disc(point, radius))
    return canvas
