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

from fastreid_star.data.io import MACHINE_LIMIT, BrokenImage, read_image
from fastreid_star.data.skeleton_stats import SkeletonStats, measure, what_is_wrong
from fastreid_star.data.skeletons import SkeletonStore
from fastreid_star.data.workers import one_thread, ready_to_fork, why_lost
from fastreid_star.errors import UserError
from fastreid_star.structures import Tracklet

BATCH = 16  # tracklets per message of a worker
COUNTS_STEP = 4  # of the histogram of 16 bits


class Kind(Enum):
    """Kinds of problems with a frame or a skeleton; the values are their names in reports."""

    MISSING_FRAME = "missing frame"
    BROKEN_FRAME = "broken frame"
    NO_SKELETON = "frame without skeleton"
    MISPLACED = "skeleton off its frame"
    UNUSED = "skeleton of a frame in no tracklet"

    @property
    def is_fault(self) -> bool:
        """False for a skeleton that no tracklet uses: this needs no repair."""
        return self is not Kind.UNUSED


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
        checked: number of frames.
        sizes: number of decoded frames by (height, width).
        counts: histogram of the counts of frames of 16 bits, in steps of COUNTS_STEP; empty: there
            are no such frames.
        skeletons: sums over its skeletons.
        problems: with its frames, then with its skeletons.
    """

    checked: int
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    counts: Counter[int] = field(default_factory=Counter)
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
        reason = why_lost(error)
        if reason is None:
            raise
        raise UserError(f"{reason.partition(':')[0]}: use fewer --workers") from error


def histogram(counts: np.ndarray) -> Counter[int]:
    """How often counts of 16 bits lie in each step of COUNTS_STEP, by the step's lowest count."""
    steps, numbers = np.unique(counts // COUNTS_STEP * COUNTS_STEP, return_counts=True)
    return Counter(dict(zip(steps.tolist(), numbers.tolist(), strict=True)))


def percentiles(counts: Counter[int], shares: Sequence[float]) -> list[int]:
    """The counts below which these shares of a histogram lie, to COUNTS_STEP."""
    steps = sorted(counts)
    total = np.cumsum([counts[step] for step in steps])
    return [steps[place] for place in np.searchsorted(total / total[-1], shares)]


class _Frames(Dataset):
    """Item i is the :class:`Found` of tracklet i."""

    def __init__(self, work, store: SkeletonStore | None, decode: bool, every: int):
        self.work, self.store, self.decode, self.every = work, store, decode, every
        self.starts = np.cumsum([0, *(len(tracklet) for _, tracklet in work)])

    def __len__(self) -> int:
        return len(self.work)

    def __getitem__(self, index: int) -> Found:
        subset, tracklet = self.work[index]
        indices = range(int(-self.starts[index] % self.every), len(tracklet), self.every)
        found = Found(len(indices))
        sizes = np.zeros((len(indices), 2), int)  # zeros: not known
        for place, i in enumerate(indices):
            try:
                if self.decode:
                    image = read_image(tracklet.path(i))
                    sizes[place] = image.shape[:2]
                    if image.ndim == 2:
                        found.counts.update(histogram(image))
                elif not os.path.getsize(tracklet.path(i)):
                    raise BrokenImage("the file is empty")
            except OSError as error:
                if error.errno in MACHINE_LIMIT:
                    raise
                here = os.path.exists(tracklet.path(i))
                kind = Kind.BROKEN_FRAME if here else Kind.MISSING_FRAME
                reason = (error.strerror or str(error)).removeprefix(f"{tracklet.path(i)}: ")
                name = tracklet.frames[i]
                found.problems.append(Problem(kind, subset, name, tracklet.root, reason))
        found.sizes.update(map(tuple, sizes[sizes.all(axis=1)].tolist()))
        if self.store is not None:
            keys = [tracklet.key(i) for i in indices]
            _check_skeletons(subset, keys, sizes, self.store, found)
        return found


def _check_skeletons(
    subset: str, keys: list[str], sizes: np.ndarray, store: SkeletonStore, found: Found
) -> None:
    joints, present = store.read(keys)
    found.skeletons = measure(len(keys), joints[present], sizes[present])
    for key, one, there, size in zip(keys, joints, present, sizes, strict=True):
        kind, reason = Kind.MISPLACED, ""
        if not there:
            kind = Kind.NO_SKELETON
            reason = "not finite or too large" if key in store else "not in the store"
        elif size.all():
            reason = what_is_wrong(one[:, :2].astype(np.float64), size)
        if reason:
            found.problems.append(Problem(kind, subset, key, "", reason))


def unused_skeletons(keys: Sequence[str], tracklets: Sequence[Tracklet]) -> list[Problem]:
    """Skeletons that no tracklet uses."""
    used = {tracklet.key(index) for tracklet in tracklets for index in range(len(tracklet))}
    return [
        Problem(Kind.UNUSED, "", key, "", "no tracklet uses it") for key in keys if key not in used
    ]
