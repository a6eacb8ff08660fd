"""A user's own tracklet: images in memory, image files or a video, with or without skeletons.

n frames of the tracklet, T of a clip, V = 17 COCO joints.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from PIL import Image

from fastreid_star.coco import NUM_JOINTS
from fastreid_star.data.clips import read_clip, segment_indices
from fastreid_star.data.io import as_rgb, evenly_spaced, read_video
from fastreid_star.data.skeletons import SkeletonStore, as_joints, is_valid
from fastreid_star.data.transforms import Clip
from fastreid_star.errors import UserError
from fastreid_star.structures import Modality, Tracklet

logger = logging.getLogger(__name__)

MODALITIES = {
    "rgb": Modality.VISIBLE,
    "visible": Modality.VISIBLE,
    "ir": Modality.INFRARED,
    "infrared": Modality.INFRARED,
}
_PIL_MODES = ("RGB", "RGBA", "L", "LA", "P", "1", "CMYK")


@dataclass(frozen=True, eq=False)
class TrackletInput:
    """One person filmed by one camera. It is checked when it is used.

    Args:
        frames: in temporal order: images, uint8 RGB [H,W,3] or gray [H,W], or PIL images, None for
            a broken one; or a list of image files; or the path of a video.
        modality: ``visible``, ``infrared`` or a :class:`~fastreid_star.structures.Modality`.
        skeletons: [n,V,3]: x and y in pixels of each frame, with the center of the first pixel at
            (0, 0), and a score; NaN for a frame without skeleton. Or a store, see `keys`. None: no
            skeletons.
        keys: with a store: n keys, one per frame.
        name: for messages, galleries and tables.
        video_frames: use this many frames, evenly spaced over the video; n is then this number.
            None: all frames.
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
        return not self.is_video and all(isinstance(f, str | os.PathLike) for f in self.images)

    @property
    def images(self) -> Sequence[Any]:
        """The images, or their files, of a tracklet that is not a video."""
        return cast(Sequence, self.frames)


def as_modality(value: Modality | str | int) -> Modality:
    """``visible``, ``rgb``, ``infrared``, ``ir``, a :class:`Modality` or its number.

    Raises:
        UserError: any other value.
    """
    try:
        return MODALITIES[value.lower()] if isinstance(value, str) else Modality(value)
    except (KeyError, ValueError):
        raise UserError(f"unknown modality {value!r}: give visible or infrared") from None


def check_input(tracklet: TrackletInput) -> None:
    """Check a tracklet without reading a frame.

    Raises:
        UserError: no frames, frames of a wrong type, an unknown modality, or skeletons that do not
            match the frames.
    """
    as_modality(tracklet.modality)
    if tracklet.video_frames is not None and not (tracklet.is_video and tracklet.video_frames >= 1):
        raise UserError(
            f"video_frames is {tracklet.video_frames}: give a positive number, and a video"
        )
    if isinstance(tracklet.skeletons, SkeletonStore) != (tracklet.keys is not None):
        raise UserError("skeletons from a store need keys, one per frame, and keys need a store")
    if tracklet.keys is None and tracklet.skeletons is not None:
        as_joints(tracklet.skeletons)
    if tracklet.is_video:
        return
    if len(tracklet.images) == 0:
        raise UserError("it has no frames")
    if not tracklet.is_files:
        for index, frame in enumerate(tracklet.images):
            _check_image(frame, index)
    _check_skeleton_count(tracklet, len(tracklet.images))


def read_test_clip(tracklet: TrackletInput, length: int) -> tuple[Clip, int]:
    """The T frames of a tracklet that a test uses, with their joints, before any transform.

    The frames are those of :func:`~fastreid_star.data.clips.segment_indices`; a broken one is
    replaced by its nearest good neighbor, with the neighbor's joints.

    Args:
        tracklet: one that passes :func:`check_input`.
        length: T.

    Returns:
        the clip; the number of frames that were replaced.

    Raises:
        UserError: no frame can be read, or a video does not have one frame per skeleton.
    """
    if tracklet.is_video:
        frames, used, replaced = _from_video(tracklet, length)
    elif tracklet.is_files:
        files = tuple(os.fspath(frame) for frame in tracklet.images)
        listed = Tracklet(0, 0, as_modality(tracklet.modality), "", files)
        frames, used, replaced = read_clip(listed, segment_indices(len(files), length).tolist())
    else:
        wanted = segment_indices(len(tracklet.images), length).tolist()
        frames, used, replaced = _from_memory(tracklet.images, wanted)
    return Clip(frames, *_joints(tracklet, used)), replaced  # type: ignore[arg-type] # see Clip


def _from_video(tracklet: TrackletInput, length: int) -> tuple[list[np.ndarray], list[int], int]:
    path = cast(str, tracklet.frames)

    def chosen(n: int) -> np.ndarray:
        """The frames of the video that belong to the tracklet."""
        count = tracklet.video_frames
        return np.arange(n) if count is None else evenly_spaced(n, count)

    def choose(n: int) -> list[int]:
        return chosen(n)[segment_indices(len(chosen(n)), length)].tolist()

    frames, used, n = read_video(path, choose)
    height, width = frames[0].shape[:2]
    if width > height:
        logger.warning(
            "video %s has frames of %d x %d pixels, wider than tall: a tracklet shows one person "
            "in a tight crop, not a whole scene",
            *(path, width, height),
        )
    _check_skeleton_count(tracklet, len(chosen(n)))
    # A replacement may be a frame that was not chosen: the nearest chosen one gives the joints.
    positions = [int(np.abs(chosen(n) - index).argmin()) for index in used]
    return frames, positions, sum(a != b for a, b in zip(used, choose(n), strict=True))


def _from_memory(images: Sequence, wanted: list[int]) -> tuple[list[np.ndarray], list[int], int]:
    decoded: dict[int, Any] = {}  # None: broken

    def good(index: int) -> bool:
        if index not in decoded:
            decoded[index] = _as_rgb(images[index])
        return decoded[index] is not None

    used: list[int] = []
    for index in wanted:
        nearest = sorted(range(len(images)), key=lambda other: (abs(other - index), other))
        used += [next(filter(good, nearest), -1)]
    if -1 in used:
        raise UserError(f"none of its {len(images)} images can be read")
    return [decoded[i] for i in used], used, sum(a != b for a, b in zip(wanted, used, strict=True))


def _check_image(image: Any, index: int) -> None:
    if image is None or (isinstance(image, Image.Image) and image.mode in _PIL_MODES):
        return
    if isinstance(image, Image.Image):
        raise UserError(f"frame {index} is a PIL image of mode {image.mode}: give the file's path")
    if not isinstance(image, np.ndarray):
        raise UserError(
            f"frame {index} is a {type(image).__name__}: give only arrays and PIL images, only "
            "paths, or one video"
        )
    if image.dtype != np.uint8 or not image.size or image.shape[2:] not in ((), (3,)):
        raise UserError(
            f"frame {index} is {image.dtype} of the shape {image.shape}: expected uint8 (H, W, 3)"
        )


def _as_rgb(image: np.ndarray | Image.Image | None) -> np.ndarray | None:
    """uint8 [H,W,3]; None for a broken image."""
    if isinstance(image, Image.Image):
        try:  # PIL decodes an opened file only now
            return as_rgb(image)
        except MemoryError:
            raise
        except Exception:  # Pillow's decoders raise many types on a damaged file
            return None
    if image is not None and image.ndim == 2:
        return np.repeat(image[..., None], 3, axis=2)
    return image


def _check_skeleton_count(tracklet: TrackletInput, n: int) -> None:
    given = tracklet.skeletons if tracklet.keys is None else tracklet.keys
    if given is not None and len(given) != n:
        what = "skeletons" if tracklet.keys is None else "skeleton keys"
        raise UserError(
            f"it has {n} frames and {len(given)} {what}: give one per frame, NaN without skeleton"
        )


def _joints(tracklet: TrackletInput, used: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Joints [T,V,3] and the frames that have a skeleton [T], as a store returns them."""
    if tracklet.skeletons is None:
        return np.zeros((len(used), NUM_JOINTS, 3), np.float32), np.zeros(len(used), bool)
    if isinstance(tracklet.skeletons, SkeletonStore):
        keys = cast(Sequence[str], tracklet.keys)
        return tracklet.skeletons.read([keys[index] for index in used])
    joints = as_joints(tracklet.skeletons)[list(used)]
    present = is_valid(joints)
    joints[~present] = 0
    return joints, present
