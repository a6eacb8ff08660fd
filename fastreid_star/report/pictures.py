"""Clips as pictures: frames in a row with their skeletons, encoded into the page itself."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from fastreid_star.data.clips import ClipDataset
from fastreid_star.report.drawing import draw_skeleton, enlarge
from fastreid_star.structures import Modality

QUALITY = 76
DENSITY = 1.3  # encoded pixels a CSS pixel
LONG = 6  # clips of more frames are shown smaller, and one below the other
GAP = 2  # pixels between two frames, as they are encoded


@dataclass(frozen=True)
class Picture:
    """A picture in the page.

    Args:
        uri: a data URI.
        width, height: in CSS pixels, as it is shown.
        alt: for readers who do not see it.
    """

    uri: str
    width: int
    height: int
    alt: str


@dataclass(frozen=True)
class Clip:
    """A test clip as the network sees it, and who is on it.

    Args:
        position: of its tracklet in the test set.
        frames: uint8 [T, H, W, 3].
        joints: float32 [T, V, 3] in pixels of `frames`, zeros where there are none.
        present: bool [T], which frames have a skeleton.
        pid, camid, modality: as in the tracklet.
        first_frame: the tracklet's first file.
        item: what the dataset gave, for the network.
    """

    position: int
    frames: np.ndarray
    joints: np.ndarray
    present: np.ndarray
    pid: int
    camid: int
    modality: Modality
    first_frame: str
    item: Mapping

    @property
    def what(self) -> str:
        """``infrared clip of identity 3, camera 5``."""
        return f"{self.modality.name.lower()} clip of identity {self.pid}, camera {self.camid}"


class Album:
    """The clips that are shown, each decoded and drawn once.

    Args:
        dataset: the test clips.
        min_score: joints with a lower score are not drawn.

    Attributes:
        long: whether its clips are.
        height: of a frame in a filmstrip, CSS pixels.
    """

    def __init__(self, dataset: ClipDataset, *, min_score: float):
        self.dataset, self.min_score = dataset, min_score
        self.long = dataset.length > LONG
        self.height = 112 if self.long else 140
        self._clips: dict[int, Clip] = {}
        self._strips: dict[tuple[int, bool], Picture] = {}

    @property
    def has_skeletons(self) -> bool:
        """Whether the network is given any; a single frame may lack its own."""
        return self.dataset.store is not None

    def clip(self, position: int) -> Clip:
        """The clip of the tracklet at `position`."""
        if position not in self._clips:
            item, tracklet = self.dataset[position], self.dataset.tracklets[position]
            self._clips[position] = Clip(
                position=position,
                frames=item["images"].numpy().transpose(0, 2, 3, 1),
                joints=item["skeletons"].numpy(),
                present=item["has_skeleton"].numpy(),
                pid=tracklet.pid,
                camid=tracklet.camid,
                modality=Modality(tracklet.modality),
                first_frame=tracklet.frames[0],
                item=item,
            )
        return self._clips[position]

    def strip(self, position: int, *, skeletons: bool = True) -> Picture:
        """The clip's frames in a row, with their skeletons where the network is given any."""
        if (position, skeletons) not in self._strips:
            clip = self.clip(position)
            frames = [frame for frame, _ in self.drawn(clip, self.height, skeletons=skeletons)]
            shown = " with skeletons" if skeletons and clip.present.any() else ""
            alt = f"{len(frames)} frames of the {clip.what}{shown}"
            self._strips[position, skeletons] = encode(
                side_by_side(frames), height=self.height, alt=alt
            )
        return self._strips[position, skeletons]

    def drawn(
        self, clip: Clip, height: int, *, skeletons: bool = True
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """The frames [H, W, 3] for a height in CSS pixels, with their skeletons, and the joints [V, 3] in them."""
        drawn = []
        for frame, joints, present in zip(clip.frames, clip.joints, clip.present, strict=True):
            scale = round(DENSITY * height) / frame.shape[0]
            if not (skeletons and self.has_skeletons):
                large = enlarge(frame, scale)
            else:
                large = draw_skeleton(
                    frame, joints if present else None, scale=scale, min_score=self.min_score
                )
            moved = joints.copy()
            moved[:, :2] = (joints[:, :2] + 0.5) * (
                np.array(large.shape[1::-1]) / frame.shape[1::-1]
            ) - 0.5
            drawn.append((large, moved))
        return drawn


def side_by_side(frames: Sequence[np.ndarray]) -> np.ndarray:
    """Frames [H, W, 3] of one size in a row, a white gap between two."""
    height, width = frames[0].shape[:2]
    row = np.full((height, len(frames) * (width + GAP) - GAP, 3), 255, np.uint8)
    for number, frame in enumerate(frames):
        row[:, number * (width + GAP) :][:, :width] = frame
    return row


def encode(image: np.ndarray, *, height: int, alt: str) -> Picture:
    """An image [H, W, 3], uint8, as a JPEG in the page.

    Args:
        image: RGB.
        height: at which it is shown, in CSS pixels; the width follows.
        alt: for readers who do not see it.
    """
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=QUALITY, optimize=True)
    uri = f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
    return Picture(uri, round(height * image.shape[1] / image.shape[0]), height, alt)
