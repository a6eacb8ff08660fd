"""From a tracklet to a clip of T frames: choice of frames, pixels, joints.

T frames of a clip, V = 17 joints.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset, default_collate

from fastreid_star.coco import NUM_JOINTS
from fastreid_star.data.io import PAUSES, BrokenImage, LostImage, explain_missing, read_image
from fastreid_star.data.silhouettes import read_shape
from fastreid_star.data.skeletons import SkeletonStore
from fastreid_star.data.transforms import Clip, Transform
from fastreid_star.errors import UserError
from fastreid_star.structures import Tracklet

logger = logging.getLogger(__name__)

# Streams of random numbers: the seed of a request has three numbers, the sampler's own streams end
# in 1 and 2, and the choice of another tracklet's skeletons ends in 3.
_OTHER_SKELETONS = 3

SAMPLINGS = ("segments", "random")

_warned: set[str] = set()  # broken files that this process has logged


class ClipRequest(NamedTuple):
    """A training sample: a tracklet, the seed of everything random about it, and which view it is.

    With the seed in the request, a sample does not depend on the worker or process that loads it.
    """

    index: int  # type: ignore[assignment] # a field hides tuple.index
    seed: tuple[int, ...]
    view: int = 0  # 1: the second view of a clip of the batch


def segment_indices(n: int, length: int, rng: np.random.Generator | None = None) -> np.ndarray:
    """The positions of the frames of a clip.

    The tracklet is padded with its last frame to T equal segments of ceil(n/T) frames.

    Args:
        n: frames of the tracklet, at least 1.
        length: T.
        rng: chooses a frame of each segment (training); None: the first of each (testing).

    Returns:
        int64 [T], in ascending order, each below n.
    """
    if n < 1 or length < 1:
        raise ValueError(f"cannot take {length} frames from a tracklet of {n}")
    size = -(-n // length)
    offsets = 0 if rng is None else rng.integers(size, size=length)
    return np.minimum(np.arange(length) * size + offsets, n - 1)


def frame_indices(
    n: int, length: int, rng: np.random.Generator | None = None, *, sampling: str = "segments"
) -> np.ndarray:
    """The positions of the frames of a clip, by INPUT.CLIP.SAMPLING.

    Args:
        n, length, rng: as for :func:`segment_indices`, which is ``segments``.
        sampling: ``random`` takes T random frames in their order, each at most once if there are T,
            and in testing the frames floor(i n / T).

    Returns:
        int64 [T], in ascending order, each below n.

    Raises:
        UserError: another `sampling`.
    """
    if sampling not in SAMPLINGS:
        raise UserError(
            f"INPUT.CLIP.SAMPLING is {sampling!r}: choose one of {', '.join(SAMPLINGS)}"
        )
    if sampling == "segments":
        return segment_indices(n, length, rng)
    if rng is None:
        return np.arange(length) * n // length
    return np.sort(rng.choice(n, length, replace=n < length))


def half_of(n: int, part: int) -> tuple[int, int]:
    """Where a part of n frames begins and ends: 0 all frames, 1 the first half, 2 the second.

    A single frame is both halves.
    """
    return (0, n) if part == 0 else (0, max(1, n // 2)) if part == 1 else (n // 2, n)


def clip_tensors(clip: Clip) -> dict[str, torch.Tensor]:
    """The tensors of a transformed clip, see :class:`ClipDataset`."""
    shapes = {}
    if clip.shapes is not None:
        shapes["shapes"] = torch.from_numpy(np.ascontiguousarray(clip.shapes))
    return {
        **shapes,
        "images": torch.from_numpy(np.ascontiguousarray(clip.frames.transpose(0, 3, 1, 2))),
        "skeletons": torch.from_numpy(np.ascontiguousarray(clip.joints, dtype=np.float32)),
        "has_skeleton": torch.from_numpy(np.array(clip.present)),
        "crop_sizes": torch.from_numpy(np.array(clip.sizes, np.float32)),
    }


class ClipDataset(Dataset):
    """Tracklets as clips of T frames with their joints.

    The index is the position of a tracklet (testing: the first frame of each segment) or a
    :class:`ClipRequest` (training: random frames and transforms). An item is a dict:

    - images: uint8 [T,3,H,W], RGB
    - skeletons: float32 [T,V,3], x and y in pixels of `images`, zeros without skeleton
    - has_skeleton: bool [T]
    - crop_sizes: float32 [T,2], height and width of each frame before it was resized
    - shapes: uint8 [T,H,W], body shapes of `images`, if there is a store of them
    - targets: the label in training (`pid_to_label`), the identity in testing
    - camids, modality: as in the tracklet
    - view, in training: 1 for the second view of a clip, else 0
    - index: the tracklet's position in `tracklets`, or the index of its half
    - replaced: number of broken frames that were replaced by a neighbor

    Args:
        tracklets: what the positions refer to.
        length: T.
        transform: from the decoded frames to images of one size.
        store: skeletons of all tracklets, or a store for each `root`; None: no skeletons.
        pid_to_label: classes of the identities, 0 .. C-1, or negative numbers: no classes.
        skeletons_of: ``(position, rng) -> position`` of the tracklet whose skeletons are used,
            drawn for each request in training, fixed in testing; None: the clip's own.
        sampling: see :func:`frame_indices`.
        shapes: folders of body shapes by `root`, see :mod:`fastreid_star.data.silhouettes`; None:
            the clips have none.
        halves: N further indexes are the first halves of the N tracklets, and N more the second.
    """

    def __init__(
        self,
        tracklets: Sequence[Tracklet],
        *,
        length: int,
        transform: Transform,
        store: SkeletonStore | Mapping[str, SkeletonStore] | None = None,
        pid_to_label: Mapping[int, int] | None = None,
        skeletons_of: Callable[[int, np.random.Generator], int] | None = None,
        sampling: str = "segments",
        halves: bool = False,
        shapes: Mapping[str, str] | None = None,
    ):
        self.tracklets = tracklets
        self.length = length
        self.transform = transform
        self.store = store
        self.pid_to_label = pid_to_label
        self.skeletons_of = skeletons_of
        self.sampling = sampling
        self.halves = halves
        self.shapes = shapes

    @property
    def num_classes(self) -> int:
        """C, the number of identities; those with a negative label are no classes."""
        if not self.pid_to_label:
            return len({tracklet.pid for tracklet in self.tracklets})
        return sum(label >= 0 for label in self.pid_to_label.values())

    def __len__(self) -> int:
        return len(self.tracklets) * (3 if self.halves else 1)

    def __getitem__(self, item: int | ClipRequest) -> dict:
        part = 0
        if isinstance(item, ClipRequest):
            index, rng = item.index, np.random.default_rng(item.seed)
            segment_rng, other_seed = rng, (*item.seed, _OTHER_SKELETONS)
        else:
            rng, segment_rng = np.random.default_rng(0), None
            part, index = divmod(range(len(self))[int(item)], len(self.tracklets))
            other_seed = (index, 0, 0, _OTHER_SKELETONS)
        tracklet = self.tracklets[index]
        start, stop = half_of(len(tracklet), part)
        wanted = start + frame_indices(
            stop - start, self.length, segment_rng, sampling=self.sampling
        )
        # The joints are those of the frame that is shown, also if it replaces a broken one.
        frames, used, replaced = read_clip(tracklet, wanted.tolist())
        source = tracklet
        if self.skeletons_of is not None:
            source = self.tracklets[self.skeletons_of(index, np.random.default_rng(other_seed))]
        joints, present = self._skeletons(source, used)
        shapes: Any = None
        if self.shapes is not None:
            folder = self.shapes[tracklet.root]
            shapes = [read_shape(folder, tracklet.key(index)) for index in used]
        clip = Clip(frames, joints, present, shapes=shapes)  # type: ignore[arg-type] # see Clip
        return {
            **clip_tensors(self.transform(clip, rng)),
            "targets": self.pid_to_label[tracklet.pid] if self.pid_to_label else tracklet.pid,
            "camids": tracklet.camid,
            "modality": int(tracklet.modality),
            **({"view": item.view} if isinstance(item, ClipRequest) else {}),
            "index": index + part * len(self.tracklets),
            "replaced": replaced,
        }

    def _skeletons(
        self, tracklet: Tracklet, indices: Sequence[int]
    ) -> tuple[np.ndarray, np.ndarray]:
        store = self.store.get(tracklet.root) if isinstance(self.store, Mapping) else self.store
        if store is None:
            return np.zeros((len(indices), NUM_JOINTS, 3), np.float32), np.zeros(len(indices), bool)
        return store.read([tracklet.key(min(index, len(tracklet) - 1)) for index in indices])


class OtherTracklets:
    """Draws a tracklet of another identity in the same modality, as a control for the skeletons.

    Args:
        tracklets: what the positions refer to.

    Raises:
        UserError: a modality has only one identity.
    """

    def __init__(self, tracklets: Sequence[Tracklet]):
        self._pids = np.array([tracklet.pid for tracklet in tracklets])
        self._modalities = np.array([int(tracklet.modality) for tracklet in tracklets])
        self._same_modality = {
            modality: np.flatnonzero(self._modalities == modality)
            for modality in set(self._modalities.tolist())
        }
        if any(len(set(self._pids[positions])) < 2 for positions in self._same_modality.values()):
            raise UserError(
                "skeletons of other tracklets need at least two identities in each modality"
            )

    def __call__(self, index: int, rng: np.random.Generator) -> int:
        candidates = self._same_modality[int(self._modalities[index])]
        return int(rng.choice(candidates[self._pids[candidates] != self._pids[index]]))


def collate_clips(batch: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    """Stack the items of a :class:`ClipDataset`: tensors [B,...], whole numbers to int64 [B].

    In a worker, `default_collate` stacks directly into shared memory. If that is full, the error is
    raised here and reaches the main process; raised later, in the thread that sends the batch, it
    would be lost, and the main process would wait for ever.
    """
    return default_collate(list(batch))


def read_clip(
    tracklet: Tracklet, indices: Sequence[int]
) -> tuple[list[np.ndarray], list[int], int]:
    """Read frames of a tracklet; a broken frame is replaced by its nearest good neighbor.

    Of two neighbors at the same distance the earlier one is taken. If no frame can be read because
    the disk fails, reading is repeated for half a minute.

    Args:
        tracklet: contains the frames.
        indices: T frame positions; repeated ones are read once.

    Returns:
        T images of sizes that may differ, uint8 [H,W,3] or counts of 16 bits [H,W]; the T positions
        that they come from; the number of frames that were replaced.

    Raises:
        UserError: no frame of the tracklet can be read.
    """
    pauses = iter(PAUSES)
    while True:
        read: dict[int, Any] = {}  # position -> image or BrokenImage
        used = [_nearest_good(tracklet, int(index), read) for index in indices]
        good = [index for index in used if index is not None]
        if len(good) == len(used):
            replaced = sum(int(index) != other for index, other in zip(indices, good, strict=True))
            return [read[index] for index in good], good, replaced
        lost = next((error for error in read.values() if isinstance(error, LostImage)), None)
        pause = None if lost is None else next(pauses, None)
        if pause is None:
            raise _unreadable(tracklet, lost or read[0])
        logger.warning("%s, like all frames of its tracklet: next attempt in %g s", lost, pause)
        time.sleep(pause)


def _unreadable(tracklet: Tracklet, error: BrokenImage) -> UserError:
    first = tracklet.path(0)
    why = str(error) if os.path.exists(first) else explain_missing(first)
    return UserError(
        f"none of the {len(tracklet)} frames of the tracklet from {first} to "
        f"{os.path.basename(tracklet.frames[-1])} can be read ({why}): check the disk and the "
        "permissions, restore the images, or remove the tracklet from the lists"
    )


def _nearest_good(tracklet: Tracklet, index: int, read: dict[int, Any]) -> int | None:
    for distance in range(len(tracklet)):
        for candidate in dict.fromkeys((index - distance, index + distance)):
            if not 0 <= candidate < len(tracklet):
                continue
            if candidate not in read:
                read[candidate] = _read_or_warn(tracklet.path(candidate))
            if not isinstance(read[candidate], BrokenImage):
                return candidate
    return None


def _read_or_warn(path: str) -> np.ndarray | BrokenImage:
    try:
        return read_image(path)
    except BrokenImage as error:
        if path not in _warned:
            _warned.add(path)
            logger.warning("Broken image, replaced by its nearest good neighbor: %s", error)
        return error
