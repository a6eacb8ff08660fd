"""A tracklet as a program has it: images in memory, image files or a video, with or without skeletons.

n frames of the tracklet, T of a clip, V = 17 COCO joints.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from PIL import Image

from fastreid_star.coco import NUM_JOINTS
from fastreid_star.data.clips import segment_indices
from fastreid_star.data.images import as_rgb, read_clip
from fastreid_star.data.skeletons import SkeletonStore, are_there, as_joints
from fastreid_star.data.transforms import Clip
from fastreid_star.data.video import read_video, spread
from fastreid_star.errors import UserError
from fastreid_star.structures import Modality, Tracklet

_MODALITIES = {"visible": Modality.VISIBLE, "infrared": Modality.INFRARED}
_PIL_MODES = ("RGB", "RGBA", "L", "LA", "P", "1", "CMYK")


@dataclass(frozen=True, eq=False)
class TrackletInput:
    """One person filmed by one camera for a while. Checked when it is used.

    Args:
        frames: in temporal order: a list of images, uint8 RGB [H,W,3] or gray [H,W], or PIL's, None where one is
            broken; or a list of image files; or the path of a video.
        modality: ``visible`` or ``infrared``, or a :class:`~fastreid_star.structures.Modality`.
        skeletons: [n,V,3], x and y in pixels of each frame with the first pixel's center at (0, 0), and a score;
            NaN where a frame has none. Or a store, see `keys`. None: no skeletons.
        keys: with a store: n keys, one a frame.
        name: for messages, galleries and tables.
        video_frames: take so many frames, evenly spread over the video, for the tracklet; None: all. n counts those.
    """

    frames: (
        Sequence[np.ndarray | Image.Image | None] | Sequence[str | os.PathLike] | str | os.PathLike
    )
    modality: Modality | str
    skeletons: np.ndarray | SkeletonStore | None = None
    keys: Sequence[str] | None = None
    name: str = ""
    video_frames: int | None = None

    @property
    def is_video(self) -> bool:
        """Whether the frames are those of a video file."""
        return isinstance(self.frames, str | os.PathLike)

    @property
    def is_files(self) -> bool:
        """Whether the frames are image files."""
        return not self.is_video and all(
            isinstance(frame, str | os.PathLike) for frame in self.images
        )

    @property
    def images(self) -> Sequence[Any]:
        """The frames of a tracklet that is no video: images, or their files."""
        return cast(Sequence, self.frames)


def as_modality(value: Modality | str | int) -> Modality:
    """``visible``, ``infrared``, or a :class:`Modality` or its number.

    Raises:
        UserError: it is none.
    """
    try:
        return _MODALITIES[value.lower()] if isinstance(value, str) else Modality(value)
    except (KeyError, ValueError):
        raise UserError(f"modality {value!r} is none: give visible or infrared") from None


def check_input(tracklet: TrackletInput) -> None:
    """Refuse what can be told without reading a frame.

    Raises:
        UserError: no frames, frames that are no images, another modality, skeletons that do not fit the frames.
    """
    as_modality(tracklet.modality)
    if tracklet.video_frames is not None and not (tracklet.is_video and tracklet.video_frames >= 1):
        raise UserError(
            f"video_frames is {tracklet.video_frames}: give a positive number, and a video"
        )
    if not tracklet.is_video:
        if len(tracklet.images) == 0:
            raise UserError("it has no frames")
        if not tracklet.is_files:
            for index, frame in enumerate(tracklet.images):
                _check_image(frame, index)
    if isinstance(tracklet.skeletons, SkeletonStore):
        if tracklet.keys is None:
            raise UserError("a skeleton store needs keys, one a frame")
    elif tracklet.keys is not None:
        raise UserError("keys need a skeleton store to look them up in")
    elif tracklet.skeletons is not None:
        joints = as_joints(tracklet.skeletons)
        if joints.shape[1:] != (NUM_JOINTS, 3):
            raise UserError(
                f"skeletons of the shape {joints.shape}: expected (frames, {NUM_JOINTS}, 3)"
            )
    if not tracklet.is_video:
        _check_skeleton_count(tracklet, len(tracklet.images))


def read_test_clip(tracklet: TrackletInput, length: int) -> tuple[Clip, int]:
    """The T frames that a test shows of a tracklet, with their joints, before any transform.

    The frames are those of :func:`~fastreid_star.data.clips.segment_indices`; for a broken one its nearest good
    neighbor stands in, with the neighbor's joints.

    Args:
        tracklet: that :func:`check_input` has nothing against.
        length: T.

    Returns:
        the clip; how many of its frames were replaced.

    Raises:
        UserError: no frame can be read, or a video has another number of frames than skeletons.
    """
    if tracklet.is_video:
        frames, used, replaced = _from_video(tracklet, length)
    elif tracklet.is_files:
        files = tuple(os.fspath(frame) for frame in tracklet.images)
        wanted = segment_indices(len(files), length)
        frames, used, replaced = read_clip(
            Tracklet(0, 0, as_modality(tracklet.modality), "", files), wanted.tolist()
        )
    else:
        frames, used, replaced = _from_memory(
            tracklet.images, segment_indices(len(tracklet.images), length)
        )
    return Clip(frames, *_joints(tracklet, used)), replaced  # type: ignore[arg-type] # see Clip


def _from_video(tracklet: TrackletInput, length: int) -> tuple[list[np.ndarray], list[int], int]:
    def of_tracklet(n: int) -> range | np.ndarray:
        """Which frames of the video are the tracklet's."""
        return range(n) if tracklet.video_frames is None else spread(n, tracklet.video_frames)

    def choose(n: int) -> list[int]:
        taken = of_tracklet(n)
        return [int(taken[index]) for index in segment_indices(len(taken), length)]

    frames, used, n = read_video(cast(str, tracklet.frames), choose)
    taken = np.array(of_tracklet(n))
    _check_skeleton_count(tracklet, len(taken))
    # A frame that stands in for another may be none of the tracklet's: the nearest of those gives the joints.
    positions = [int(np.abs(taken - index).argmin()) for index in used]
    return frames, positions, sum(a != b for a, b in zip(used, choose(n), strict=True))


def _from_memory(images: Sequence, wanted: np.ndarray) -> tuple[list[np.ndarray], list[int], int]:
    decoded: dict[int, Any] = {}  # None: broken

    def good(index: int) -> bool:
        if index not in decoded:
            decoded[index] = _as_rgb(images[index])
        return decoded[index] is not None

    used = []
    for index in wanted.tolist():
        # as read_clip: nearest in frames, the earlier one first
        nearest = next(
            filter(good, sorted(range(len(images)), key=lambda other: (abs(other - index), other))),
            None,
        )
        if nearest is None:
            raise UserError(f"none of its {len(images)} images is good")
        used.append(nearest)
    return (
        [decoded[index] for index in used],
        used,
        sum(a != b for a, b in zip(wanted.tolist(), used, strict=True)),
    )


def _check_image(image: np.ndarray | Image.Image | None, index: int) -> None:
    if image is None:
        return
    if isinstance(image, Image.Image):
        if image.mode not in _PIL_MODES:
            raise UserError(
                f"frame {index} is a PIL image of mode {image.mode}: give the file's path, or 8 bits"
            )
    elif not isinstance(image, np.ndarray):
        raise UserError(
            f"frame {index} is a {type(image).__name__}: give arrays and PIL images, or paths alone, or one video"
        )
    elif (
        image.dtype != np.uint8
        or not image.size
        or image.ndim < 2
        or image.shape[2:] not in ((), (3,))
    ):
        raise UserError(
            f"frame {index} is {image.dtype} of the shape {image.shape}: expected uint8 (H, W, 3), RGB"
        )


def _as_rgb(image: np.ndarray | Image.Image | None) -> np.ndarray | None:
    """uint8 [H,W,3]; None where the image is broken."""
    if isinstance(image, Image.Image):
        try:  # a file that PIL has opened is decoded now
            return as_rgb(image)
        except MemoryError:
            raise
        except Exception:  # Pillow's decoders raise about any kind on a damaged file
            return None
    if image is not None and image.ndim == 2:
        return np.repeat(image[..., None], 3, axis=2)
    return image


def _check_skeleton_count(tracklet: TrackletInput, n: int) -> None:
    given = tracklet.skeletons if tracklet.keys is None else tracklet.keys
    if given is not None and len(given) != n:
        what = "skeletons" if tracklet.keys is None else "skeleton keys"
        raise UserError(
            f"it has {n} frames and {len(given)} {what}: give one a frame, NaN where there is none"
        )


def _joints(tracklet: TrackletInput, used: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Joints [T,V,3] and which frames have some [T], as a store gives them."""
    if tracklet.skeletons is None:
        return np.zeros((len(used), NUM_JOINTS, 3), np.float32), np.zeros(len(used), bool)
    if isinstance(tracklet.skeletons, SkeletonStore):
        return tracklet.skeletons.read(
            [cast(Sequence[str], tracklet.keys)[index] for index in used]
        )
    joints = as_joints(tracklet.skeletons)[list(used)]
    present = are_there(joints)
    joints[~present] = 0
    return joints, present
