"""From a tracklet to a clip of T frames: which frames, their pixels, their joints."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from fastreid_star.coco import NUM_JOINTS
from fastreid_star.data.images import read_clip
from fastreid_star.data.skeletons import SkeletonStore
from fastreid_star.data.transforms import Clip, Transform
from fastreid_star.errors import UserError
from fastreid_star.structures import Tracklet


class ClipRequest(NamedTuple):
    """A training sample: which tracklet, and the seed of everything random about it.

    The seed travels with the request, so a sample does not depend on the worker or process that makes it.
    """

    index: int  # type: ignore[assignment] # a field hides tuple.index
    seed: tuple[int, ...]


def segment_indices(n: int, length: int, rng: np.random.Generator | None = None) -> np.ndarray:
    """Which frames of a tracklet make a clip.

    The tracklet is padded with its last frame to T equal segments of ceil(n/T) frames.

    Args:
        n: frames of the tracklet, at least 1.
        length: T.
        rng: a random frame of each segment (training); None: the first of each (testing).

    Returns:
        int64 [T], in ascending order, each below n.
    """
    if n < 1 or length < 1:
        raise ValueError(f"cannot take {length} frames from a tracklet of {n}")
    size = -(-n // length)
    offsets = 0 if rng is None else rng.integers(size, size=length)
    return np.minimum(np.arange(length) * size + offsets, n - 1)


def clip_tensors(clip: Clip) -> dict[str, torch.Tensor]:
    """A transformed clip as a network takes it: `images`, `skeletons` and `has_skeleton` of :class:`ClipDataset`."""
    return {
        "images": torch.from_numpy(np.ascontiguousarray(clip.frames.transpose(0, 3, 1, 2))),
        "skeletons": torch.from_numpy(np.ascontiguousarray(clip.joints, dtype=np.float32)),
        "has_skeleton": torch.from_numpy(np.array(clip.present)),
    }


# The stream of random numbers that draws whose skeletons are shown: a request's seed has three numbers, and the
# sampler's own streams end in 1 and 2.
_DONOR = 3


class ClipDataset(Dataset):
    """Tracklets as clips of T frames with their joints.

    An item is the position of a tracklet (testing: the first frame of each segment) or a :class:`ClipRequest`
    (training: random frames and transforms, all from the request's seed). It is a dict:

    - images: uint8 [T,3,H,W], RGB
    - skeletons: float32 [T,17,3], x and y in pixels of `images`, zeros where there is none
    - has_skeleton: bool [T]
    - targets: the label in training (`pid_to_label`), the identity in testing
    - camids, modality: as in the tracklet
    - index: the tracklet's position in `tracklets`
    - replaced: frames that could not be read, for which a neighbor stands in

    Args:
        tracklets: what the positions refer to.
        length: T.
        transform: from the frames as decoded to images of one size.
        store: skeletons of all tracklets, or one store for each `root` of them; None: no skeletons.
        pid_to_label: classes of the identities, 0 .. C-1.
        skeletons_of: ``(position, rng) -> position`` of the tracklet whose skeletons a clip is shown with, drawn anew
            for each request in training, always the same in testing; None: its own.
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
    ):
        self.tracklets = tracklets
        self.length = length
        self.transform = transform
        self.store = store
        self.pid_to_label = pid_to_label
        self.skeletons_of = skeletons_of

    @property
    def num_classes(self) -> int:
        """C, the number of identities."""
        return len(self.pid_to_label or {tracklet.pid for tracklet in self.tracklets})

    def __len__(self) -> int:
        return len(self.tracklets)

    def __getitem__(self, item: int | ClipRequest) -> dict:
        if isinstance(item, ClipRequest):
            index, rng = item.index, np.random.default_rng(item.seed)
            segment_rng, donor_seed = rng, (*item.seed, _DONOR)
        else:
            index, rng, segment_rng = int(item), np.random.default_rng(0), None
            donor_seed = (index, 0, 0, _DONOR)
        tracklet = self.tracklets[index]
        wanted = segment_indices(len(tracklet), self.length, segment_rng)
        # The joints are those of the frame that is shown, also where it stands in for another.
        frames, used, replaced = read_clip(tracklet, wanted.tolist())
        source = tracklet
        if self.skeletons_of is not None:
            source = self.tracklets[self.skeletons_of(index, np.random.default_rng(donor_seed))]
        joints, present = self._skeletons(source, used)
        return {
            **clip_tensors(self.transform(Clip(frames, joints, present), rng)),  # type: ignore[arg-type] # see Clip
            "targets": self.pid_to_label[tracklet.pid] if self.pid_to_label else tracklet.pid,
            "camids": tracklet.camid,
            "modality": int(tracklet.modality),
            "index": index,
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
    """Draws a tracklet of another identity and the same modality: whose skeletons say nothing of who is seen.

    Args:
        tracklets: what the positions refer to.

    Raises:
        UserError: a modality has one identity only.
    """

    def __init__(self, tracklets: Sequence[Tracklet]):
        self._pids = np.array([tracklet.pid for tracklet in tracklets])
        modalities = np.array([int(tracklet.modality) for tracklet in tracklets])
        self._same_modality = {
            modality: np.flatnonzero(modalities == modality)
            for modality in set(modalities.tolist())
        }
        self._modalities = modalities
        if any(len(set(self._pids[positions])) < 2 for positions in self._same_modality.values()):
            raise UserError(
                "skeletons of other tracklets need at least two identities in each modality"
            )

    def __call__(self, index: int, rng: np.random.Generator) -> int:
        candidates = self._same_modality[int(self._modalities[index])]
        return int(rng.choice(candidates[self._pids[candidates] != self._pids[index]]))


def collate_clips(batch: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    """Stack the items of a :class:`ClipDataset`: tensors [B,...], whole numbers to int64 [B]."""
    return {
        key: torch.stack([item[key] for item in batch])
        if isinstance(value, torch.Tensor)
        else torch.tensor([item[key] for item in batch], dtype=torch.int64)
        for key, value in batch[0].items()
    }
