"""Pictures of clips: frames as a JPEG in the page, with skeletons as SVG on top that can be hidden.

Letters: T frames, H height, W width, V joints.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import matplotlib
import numpy as np
from markupsafe import Markup
from PIL import Image, ImageOps

from fastreid_star.coco import BONES, JOINT_NAMES
from fastreid_star.data.clips import ClipDataset
from fastreid_star.structures import Modality, Tracklet

QUALITY = 78  # of the JPEG
DENSITY = 1.4  # encoded pixels for each CSS pixel
GAP = 2  # CSS pixels between two frames
LONG = 6  # clips of more frames get a smaller strip
FAINT = 0.5  # joints with a lower score are drawn faintly
FAR = 4  # joints outside the frame that are worth a note
COLORS = matplotlib.colormaps["plasma"]


class Picture(NamedTuple):
    """A picture in the page; sizes in CSS pixels."""

    uri: str  # a data URI
    width: int
    height: int
    alt: str  # for screen readers
    overlay: str = ""  # SVG elements to draw on top


@dataclass(frozen=True)
class Clip:
    """A test clip as the network sees it."""

    frames: np.ndarray  # uint8 [T, H, W, 3]
    joints: np.ndarray  # float32 [T, V, 3], in pixels of the frames, zeros without a skeleton
    present: np.ndarray  # bool [T], whether a frame has a skeleton
    tracklet: Tracklet
    item: Mapping  # of the dataset, for the network

    @property
    def title(self) -> str:
        """``infrared clip of identity 3, camera 5``."""
        kind = Modality(self.tracklet.modality).name.lower()
        return f"{kind} clip of identity {self.tracklet.pid}, camera {self.tracklet.camid}"


class Album:
    """The clips of a test set that a report shows. Each is decoded once.

    Args:
        dataset: the test clips.
    """

    def __init__(self, dataset: ClipDataset):
        self.dataset = dataset
        self.height = 112 if dataset.length > LONG else 140  # of a frame in a strip, CSS pixels
        self._clips: dict[int, Clip] = {}
        self._thumbnails: dict[int, Picture] = {}

    @property
    def has_skeletons(self) -> bool:
        """Whether the network reads skeletons. A single frame may still have none."""
        return self.dataset.store is not None

    def clip(self, position: int) -> Clip:
        """The clip of the tracklet at `position`."""
        if position not in self._clips:
            item = self.dataset[position]
            self._clips[position] = Clip(
                frames=item["images"].numpy().transpose(0, 2, 3, 1),
                joints=item["skeletons"].numpy(),
                present=item["has_skeleton"].numpy(),
                tracklet=self.dataset.tracklets[position],
                item=item,
            )
        return self._clips[position]

    def thumbnail(self, position: int) -> Picture:
        """Four frames of the clip, two by two, with their skeletons."""
        if position not in self._thumbnails:
            clip = self.clip(position)
            shown = np.unique(np.linspace(0, len(clip.frames) - 1, 4).round().astype(int)).tolist()
            skeletons = [
                draw_skeleton(clip.joints[n] if clip.present[n] else None, clip.frames.shape[1:])
                for n in shown
            ]
            self._thumbnails[position] = filmstrip(
                [clip.frames[n] for n in shown],
                skeletons if self.has_skeletons else None,
                height=100,
                columns=2 if len(shown) > 1 else 1,
                alt=f"{len(shown)} frames of the {clip.title}",
            )
        return self._thumbnails[position]

    def strip(self, clip: Clip) -> Picture:
        """All frames of a clip in a row, without skeletons."""
        alt = f"{len(clip.frames)} frames of the {clip.title}"
        return filmstrip(list(clip.frames), height=self.height, alt=alt)


def filmstrip(
    frames: Sequence[np.ndarray],
    drawings: Sequence[Markup] | None = None,
    *,
    height: int,
    alt: str,
    columns: int | None = None,
    style: str = "bones",
) -> Picture:
    """Frames in rows as one picture.

    Args:
        frames: uint8 [H, W, 3] of any size.
        drawings: SVG elements on top of each frame, in its pixels.
        height: of a frame, CSS pixels.
        alt: description for screen readers.
        columns: frames in a row; None: all.
        style: CSS class of the drawings.
    """
    columns = columns or len(frames)
    width = max(round(height * frame.shape[1] / frame.shape[0]) for frame in frames)
    rows = -(-len(frames) // columns)
    size = columns * (width + GAP) - GAP, rows * (height + GAP) - GAP
    sheet = Image.new("RGB", _pixels(size), "white")
    overlay = ""
    for number, frame in enumerate(frames):
        row, column = divmod(number, columns)
        corner = column * (width + GAP), row * (height + GAP)
        box = ImageOps.pad(Image.fromarray(frame), _pixels((width, height)), color="white")
        sheet.paste(box, _pixels(corner))
        if drawings is not None:
            place = f'x="{corner[0]}" y="{corner[1]}" width="{width}" height="{height}"'
            view = f'viewBox="-.5 -.5 {frame.shape[1]} {frame.shape[0]}"'
            overlay += f'<svg class="{style}" {place} {view}>{drawings[number]}</svg>'
    file = io.BytesIO()
    sheet.save(file, "JPEG", quality=QUALITY, optimize=True)
    uri = f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
    return Picture(uri, *size, alt, Markup(overlay))


def _pixels(size: tuple[int, int]) -> tuple[int, int]:
    """CSS pixels to pixels of a picture."""
    return round(DENSITY * size[0]), round(DENSITY * size[1])


def draw_skeleton(joints: np.ndarray | None, shape: Sequence[int]) -> Markup:
    """SVG elements of a skeleton in pixels of its frame. The frame clips what lies outside.

    Orange is the person's left, blue the right, white the middle. Joints with a score below
    :data:`FAINT` and their bones are faint. Joints that are not finite are left out.

    Args:
        joints: [V, 3], x, y, score; None writes "no skeleton".
        shape: height and width of the frame.
    """
    height, width = shape[:2]
    if joints is None:
        return _note("no skeleton", height, width)
    finite = np.isfinite(joints).all(1)
    points = np.clip(np.where(finite[:, None], joints[:, :2], 0), -9 * height, 9 * height)
    unit = height / 100
    lines: dict[tuple[str, float], str] = {("outline", 2 * unit): ""}
    for ends in [*BONES, *((joint,) for joint in range(len(joints)))]:  # joints above bones
        if finite[list(ends)].all():
            faint = " faint" if (joints[list(ends), 2] < FAINT).any() else ""
            x, y = points[ends[0]]
            end = "h0" if len(ends) == 1 else "L{:.1f} {:.1f}".format(*points[ends[1]])
            key = _side(ends) + faint, unit if len(ends) == 2 else 3 * unit
            lines[key] = lines.get(key, "") + f"M{x:.1f} {y:.1f}{end}"
            if len(ends) == 2:
                lines["outline", 2 * unit] += f"M{x:.1f} {y:.1f}{end}"
    svg = "".join(
        f'<path class="{style}" stroke-width="{stroke:.2f}" d="{d}"/>'
        for (style, stroke), d in lines.items()
    )
    inside = ((points >= -0.5) & (points <= np.array([width, height]) - 0.5)).all(1)
    outside = int((finite & ~inside).sum())
    note = _note(f"{outside} joints outside", height, width) if outside >= FAR else ""
    return Markup(svg) + note


def draw_attention(
    joints: np.ndarray, attention: np.ndarray, shape: Sequence[int], most: float = 2.0
) -> Markup:
    """A circle on each joint whose area is the attention that the joint received.

    Args:
        joints: [V, 3] in pixels of the frame.
        attention: [V]; a joint without attention gets no circle.
        shape: height and width of the frame.
        most: the attention of the largest circle, so that clips and networks can be compared.
    """
    circles = ""
    for joint in np.argsort(attention).tolist():
        share = min(float(attention[joint]) / most, 1.0)
        if share > 0:
            x, y = joints[joint, :2]
            radius = 0.055 * shape[0] * share**0.5
            color = matplotlib.colors.to_hex(COLORS(0.2 + 0.75 * share))
            circles += f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.2f}" fill="{color}"/>'
    return Markup(circles)


def _side(joints: Sequence[int]) -> str:
    """CSS class of a joint or bone: ``l`` and ``r`` for the person's sides, ``m`` between them."""
    sides = {JOINT_NAMES[joint][0] for joint in joints if "_" in JOINT_NAMES[joint]}
    return sides.pop() if len(sides) == 1 else "m"


def _note(text: str, height: int, width: int) -> Markup:
    size = min(height / 9, 1.7 * width / len(text))
    place = f'x="{width / 2 - 0.5:.1f}" y="{height - 0.4 * size:.1f}" font-size="{size:.1f}"'
    return Markup(f'<text class="note" {place}>{text}</text>')
