"""Checks every frame and skeleton of a dataset, in several processes."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum

import numpy as np
from torch.utils.data import DataLoader, Dataset

from fastreid_star.coco import NUM_JOINTS
from fastreid_star.data.io import BrokenImage, read_frame
from fastreid_star.data.skeleton_stats import SkeletonStats, measure
from fastreid_star.data.skeletons import SkeletonStore
from fastreid_star.data.workers import one_thread, ready_to_fork, why_lost
from fastreid_star.errors import UserError
from fastreid_star.structures import Modality, Tracklet

BATCH = 16  # tracklets per message of a worker


class Kind(Enum):
    """Kinds of problems with a frame or a skeleton; the values are their names in reports."""

    MISSING_FRAME = "missing frame"
    BROKEN_FRAME = "broken frame"
    NO_SKELETON = "frame without skeleton"
    NOT_FINITE = "skeleton not finite"
    MISSHAPEN = "skeleton of a wrong shape"
    MISPLACED = "skeleton off its frame"
    ORPHAN = "skeleton without frame"
    SPARE = "skeleton of a frame in no tracklet"

    @property
    def is_fault(self) -> bool:
        """False for a skeleton of an image that no tracklet uses: this needs no repair."""
        return self is not Kind.SPARE


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem with one frame or one skeleton.

    Args:
        kind: of the problem.
        subset: of the tracklet, such as ``train infrared``; empty without tracklet.
        name: file of the frame, relative to `root`, or key of the skeleton.
        root: folder of the frame; empty for a skeleton.
        reason: details.
    """

    kind: Kind
    subset: str
    name: str
    root: str
    reason: str

    @property
    def path(self) -> str:
        return os.path.join(self.root, self.name)


@dataclass(slots=True)
class Found:
    """The result for the frames of one tracklet.

    Args:
        group: modality and camera of the tracklet.
        checked: number of frames.
        sizes: number of decoded frames by (height, width).
        skeletons: sums over its skeletons.
        problems: in the order of the frames.
    """

    group: tuple[Modality, int]
    checked: int = 0
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    skeletons: SkeletonStats = field(default_factory=SkeletonStats)
    problems: list[Problem] = field(default_factory=list)


def check_frames(
    work: Sequence[tuple[str, Tracklet]],
    store: SkeletonStore | None,
    *,
    decode: bool,
    every: int,
    workers: int,
) -> Iterator[Found]:
    """Check the frames of tracklets.

    Args:
        work: tracklets, each with the name of its subset.
        store, decode, every, workers: see :func:`fastreid_star.data.check.check_dataset`.

    Yields:
        the result for each tracklet, in the order of `work`.

    Raises:
        UserError: a worker ended, for example for lack of memory.
    """
    ready_to_fork()
    loader = DataLoader(
        _Frames(work, store, decode, every),
        batch_size=BATCH,
        num_workers=workers if workers > 1 else 0,
        collate_fn=list,
        worker_init_fn=one_thread,
    )
    try:
        yield from itertools.chain.from_iterable(loader)
    except (RuntimeError, ConnectionError, EOFError) as error:
        if why_lost(error) is None:
            raise
        raise UserError(
            "a worker was killed, as when memory runs out: use fewer --workers"
        ) from error


class _Frames(Dataset):
    """The check of a tracklet's frames, each `every`-th frame counted over all tracklets."""

    def __init__(self, work, store: SkeletonStore | None, decode: bool, every: int):
        self.work, self.store, self.decode, self.every = work, store, decode, every
        self.starts = np.cumsum([0, *(len(tracklet) for _, tracklet in work)])

    def __len__(self) -> int:
        return len(self.work)

    def __getitem__(self, index: int) -> Found:
        subset, tracklet = self.work[index]
        indices = range(int(-self.starts[index] % self.every), len(tracklet), self.every)
        found = Found((tracklet.modality, tracklet.camid), len(indices))
        sizes = np.array([self._check_frame(subset, tracklet, i, found) for i in indices])
        if self.store is not None and len(indices):
            keys = [tracklet.key(i) for i in indices]
            _check_skeletons(subset, keys, sizes if self.decode else None, self.store, found)
        return found

    def _check_frame(
        self, subset: str, tracklet: Tracklet, index: int, found: Found
    ) -> tuple[int, int]:
        """The (height, width) of a frame; zeros if it is not decoded."""
        path, kind, size = tracklet.path(index), Kind.BROKEN_FRAME, (0, 0)
        try:
            reason = "" if os.stat(path).st_size else "the file is empty"
        except (FileNotFoundError, NotADirectoryError):
            kind, reason = Kind.MISSING_FRAME, "the file does not exist"
        except OSError as error:
            reason = error.strerror or str(error)
        if self.decode and not reason:
            try:
                size = read_frame(path).shape[:2]
                found.sizes[size] += 1
            except BrokenImage as error:
                reason = str(error).removeprefix(f"{path}: ")
        if reason:
            name, root = tracklet.frames[index], tracklet.root
            found.problems.append(Problem(kind, subset, name, root, reason))
        return size


def _check_skeletons(
    subset: str, keys: list[str], sizes: np.ndarray | None, store: SkeletonStore, found: Found
) -> None:
    joints, present, refused = read_one_by_one(store, keys)
    for key in itertools.compress(keys, ~present):
        if key in refused:
            kind, reason = Kind.MISSHAPEN, refused[key]
        elif key in store:
            kind, reason = Kind.NOT_FINITE, "a value is not finite or too large"
        else:
            kind, reason = Kind.NO_SKELETON, "not in the store"
        found.problems.append(Problem(kind, subset, key, "", reason))
    sizes = None if sizes is None else sizes[present]
    found.skeletons, wrong = measure(len(keys), joints[present], sizes)
    for key, reason in zip(itertools.compress(keys, present), wrong, strict=True):
        if reason:
            found.problems.append(Problem(Kind.MISPLACED, subset, key, "", reason))


def read_one_by_one(
    store: SkeletonStore, keys: Sequence[str]
) -> tuple[np.ndarray, np.ndarray, dict[str, str]]:
    """Read skeletons of a store in which single skeletons may have a wrong shape.

    Returns:
        joints and present, see :meth:`SkeletonStore.read`; the message for each unreadable key.
    """
    joints, present = np.zeros((len(keys), NUM_JOINTS, 3), np.float32), np.zeros(len(keys), bool)
    refused = {}
    try:
        joints, present = store.read(keys)
    except UserError:
        for position, key in enumerate(keys):
            try:
                joints[position : position + 1], present[position : position + 1] = store.read(
                    [key]
                )
            except UserError as error:
                refused[key] = str(error)
    return joints, present, refused


def unused_skeletons(keys: Sequence[str], tracklets: Sequence[Tracklet]) -> Iterator[Problem]:
    """Skeletons that no tracklet uses: spare if their image exists, else orphans."""
    names = {tracklet.key(index) for tracklet in tracklets for index in range(len(tracklet))}
    roots = sorted({tracklet.root for tracklet in tracklets})
    endings = sorted({t.frames[0].rpartition(".")[2] for t in tracklets})
    for key in keys:
        if key in names:
            continue
        places = (os.path.join(root, f"{key}.{ending}") for root in roots for ending in endings)
        if any(map(os.path.exists, places)):
            yield Problem(Kind.SPARE, "", key, "", "its image exists, but no tracklet uses it")
        else:
            yield Problem(Kind.ORPHAN, "", key, "", "its image does not exist")
