"""A user's own tracklet: images in memory, image files or a video, with or without skeletons.

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
from fastreid_star.data.clips import frame_indices, read_clip
from fastreid_star.data.io import as_array, read_video, reason
from fastreid_star.data.skeletons import SkeletonStore, as_joints, is_valid
from fastreid_star.data.transforms import Clip
from fastreid_star.errors import UserError
from fastreid_star.structures import Modality, Tracklet

MODALITIES = {
    "rgb": Modality.VISIBLE,
    "visible": Modality.VISIBLE,
    "vis": Modality.VISIBLE,
    "color": Modality.VISIBLE,
    "colour": Modality.VISIBLE,
    "可见光": Modality.VISIBLE,
    "ir": Modality.INFRARED,
    "infrared": Modality.INFRARED,
    "thermal": Modality.INFRARED,
    "nir": Modality.INFRARED,
    "tir": Modality.INFRARED,
    "lwir": Modality.INFRARED,
    "红外": Modality.INFRARED,
}


@dataclass(frozen=True, eq=False)
class TrackletInput:
    """One person filmed by one camera. It is checked when it is used.

    Args:
        frames: in temporal order: images, uint8 RGB [H,W,3], uint8 or uint16 gray [H,W], or PIL
            images; or a list of image files; or the path of a video.
        modality: ``visible``, ``infrared`` or a :class:`~fastreid_star.structures.Modality`.
        skeletons: [n,V,3]: x and y in pixels of each frame, with the center of the first pixel at
            (0, 0), and a score; NaN for a frame without skeleton. Or a store, see `keys`. None: no
            skeletons.
        keys: with a store: n keys, one per frame.
        name: for messages, galleries and tables.
    """

    frames: Sequence[np.ndarray | Image.Image] | Sequence[str | os.PathLike] | str | os.PathLike
    modality: Modality | str
    skeletons: np.ndarray | SkeletonStore | None = None
    keys: Sequence[str] | None = None
    name: str = ""

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


def read_test_clip(
    tracklet: TrackletInput, length: int, sampling: str = "segments"
) -> tuple[Clip, int]:
    """The T frames of a tracklet that a test uses, with their joints, before any transform.

    The frames are those of :func:`~fastreid_star.data.clips.frame_indices`; a broken image file
    is replaced by its nearest good neighbor, with the neighbor's joints.

    Args:
        tracklet: one that passes :func:`check_input`.
        length: T.
        sampling: INPUT.CLIP.SAMPLING.

    Returns:
        the clip; the number of frames that were replaced.

    Raises:
        UserError: no frame can be read, a PIL image cannot be read, or a video does not have one
            frame per skeleton.
    """
    replaced = 0

    def chosen(n: int) -> list[int]:
        return frame_indices(n, length, sampling=sampling).tolist()

    if tracklet.is_video:
        path = cast(str, tracklet.frames)
        frames, n = read_video(path, chosen)
        _check_skeleton_count(tracklet, n)
        used = chosen(n)
    else:
        used = chosen(len(tracklet.images))
        if tracklet.is_files:
            files = tuple(os.fspath(frame) for frame in tracklet.images)
            listed = Tracklet(0, 0, as_modality(tracklet.modality), "", files)
            frames, used, replaced = read_clip(listed, used)
        else:
            frames = [_as_array(tracklet.images[index], index) for index in used]
    return Clip(frames, *_joints(tracklet, used)), replaced  # type: ignore[arg-type] # see Clip


def _check_image(image: Any, index: int) -> None:
    if isinstance(image, Image.Image):
        return
    if not isinstance(image, np.ndarray):
        raise UserError(
            f"frame {index} is a {type(image).__name__}: give only arrays and PIL images, only "
            "paths, or one video"
        )
    colors = image.shape[2:] in ((), (3,)) and image.ndim > 1
    counts = image.dtype == np.uint16 and image.ndim == 2
    if not image.size or not (counts or (image.dtype == np.uint8 and colors)):
        raise UserError(
            f"frame {index} is {image.dtype} of the shape {image.shape}: expected uint8 (H, W, 3)"
        )


def _as_array(image: np.ndarray | Image.Image, index: int) -> np.ndarray:
    """The frame `index` as uint8 [H,W,3], or counts of 16 bits [H,W]."""
    if isinstance(image, Image.Image):
        try:
            return as_array(image)
        except Exception as error:  # Pillow's decoders raise many types on a damaged file
            raise UserError(f"frame {index} cannot be read: {reason(error)}") from error
    gray = image.ndim == 2 and image.dtype == np.uint8
    return np.repeat(image[..., None], 3, axis=2) if gray else image


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
