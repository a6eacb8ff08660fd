"""Every frame decoded, every skeleton held against its frame, by several processes."""

from __future__ import annotations

import itertools
import multiprocessing
import os
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from enum import Enum

import numpy as np

from fastreid_star.coco import NUM_JOINTS
from fastreid_star.data.images import BrokenImage, read_frame
from fastreid_star.data.skeleton_stats import SkeletonStats, measure
from fastreid_star.data.skeletons import SkeletonStore
from fastreid_star.errors import UserError
from fastreid_star.structures import Modality, Tracklet

CHUNK = 512  # frames a worker gets at a time


class Kind(Enum):
    """What can be wrong with a frame or a skeleton; the value is how it is called in the report."""

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
        """A spare skeleton is of a file that the dataset has and does not use: worth knowing, nothing to mend."""
        return self is not Kind.SPARE


@dataclass(frozen=True, slots=True)
class Problem:
    """One frame or one skeleton with which something is wrong.

    Args:
        kind: what.
        subset: whose tracklet it is in; empty where it is in none.
        name: the frame's file, relative to `root`, or the skeleton's key.
        root: the folder of the frame; empty for a skeleton.
        reason: what was found.
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
    """What a worker found in some frames.

    Args:
        checked: how many it looked at.
        sizes: how many of them have which (height, width), where they were decoded.
        skeletons: by modality and camera.
        problems: in the frames' order.
    """

    checked: int = 0
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    skeletons: dict[tuple[Modality, int], SkeletonStats] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def check_frames(
    work: Sequence[tuple[str, Tracklet]],
    store: SkeletonStore | None,
    *,
    decode: bool,
    every: int,
    workers: int,
) -> Iterator[Found]:
    """Look at the frames of tracklets, with a few chunks for each worker under way at a time.

    Args:
        work: tracklets, each with the name of its subset.
        store, decode, every, workers: as for :func:`~fastreid_star.data.check.check_dataset`.

    Yields:
        what was found in each chunk of some hundred frames, in the order of `work` however many workers there are.

    Raises:
        UserError: a worker died.
    """
    chunks = _chunks(work, every)
    if workers <= 1:
        for chunk in chunks:
            yield _check_chunk(chunk, store, decode)
        return
    # spawn: a fork of a process with threads, which torch starts, may hang
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        workers, context, initializer=_start_worker, initargs=(store, decode)
    ) as pool:
        try:
            under_way = deque(
                pool.submit(_work, chunk) for chunk in itertools.islice(chunks, 4 * workers)
            )
            while under_way:
                found = under_way.popleft().result()
                under_way.extend(pool.submit(_work, chunk) for chunk in itertools.islice(chunks, 1))
                yield found
        except BrokenProcessPool:
            raise UserError(
                "a worker ended unexpectedly, for want of memory perhaps: use fewer --workers"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


@dataclass(frozen=True, slots=True)
class _Task:
    """Some frames of a tracklet: every `every`-th, from the first."""

    subset: str
    tracklet: Tracklet
    first: int
    every: int


def _chunks(work: Sequence[tuple[str, Tracklet]], every: int) -> Iterator[list[_Task]]:
    """Tasks for about CHUNK frames at a time; `every` counts on from one tracklet to the next."""
    chunk, frames, position = [], 0, 0
    for subset, tracklet in work:
        first = -position % every
        position += len(tracklet)
        if first < len(tracklet):
            chunk.append(_Task(subset, tracklet, first, every))
            frames += -(-(len(tracklet) - first) // every)
        if frames >= CHUNK:
            yield chunk
            chunk, frames = [], 0
    if chunk:
        yield chunk


_worker: tuple[SkeletonStore | None, bool]


def _start_worker(store: SkeletonStore | None, decode: bool) -> None:
    global _worker
    _worker = store, decode


def _work(chunk: list[_Task]) -> Found:
    return _check_chunk(chunk, *_worker)


def _check_chunk(chunk: list[_Task], store: SkeletonStore | None, decode: bool) -> Found:
    found = Found()
    for task in chunk:
        indices = range(task.first, len(task.tracklet), task.every)
        found.checked += len(indices)
        sizes = np.array([_check_frame(task, index, decode, found) for index in indices])
        if store is not None:
            _check_skeletons(task, indices, sizes if decode else None, store, found)
    return found


def _check_frame(task: _Task, index: int, decode: bool, found: Found) -> tuple[int, int]:
    """The (height, width) of a frame; zeros where it is not read or cannot be."""
    path, kind, size = task.tracklet.path(index), Kind.BROKEN_FRAME, (0, 0)
    try:
        reason = "" if os.stat(path).st_size else "the file is empty"
    except (FileNotFoundError, NotADirectoryError):
        kind, reason = Kind.MISSING_FRAME, "there is no such file"
    except OSError as error:
        reason = error.strerror or str(error)
    if decode and not reason:
        try:
            size = read_frame(path).shape[:2]
            found.sizes[size] += 1
        except BrokenImage as error:
            reason = str(error).removeprefix(f"{path}: ")
    if reason:
        found.problems.append(
            Problem(kind, task.subset, task.tracklet.frames[index], task.tracklet.root, reason)
        )
    return size


def _check_skeletons(
    task: _Task,
    indices: Sequence[int],
    sizes: np.ndarray | None,
    store: SkeletonStore,
    found: Found,
) -> None:
    keys = [task.tracklet.key(index) for index in indices]
    try:
        joints, present = store.read(keys)
        misshapen: dict[str, str] = {}
    except UserError:
        joints, present, misshapen = read_one_by_one(store, keys)
    for key in itertools.compress(keys, ~present):
        if key in misshapen:
            kind, reason = Kind.MISSHAPEN, misshapen[key]
        elif key in store:
            kind, reason = (
                Kind.NOT_FINITE,
                "a value is not finite or too large, so the frame counts as without a skeleton",
            )
        else:
            kind, reason = Kind.NO_SKELETON, "the store does not name it"
        found.problems.append(Problem(kind, task.subset, key, "", reason))
    stats, wrong = measure(len(keys), joints[present], None if sizes is None else sizes[present])
    for key, reason in zip(itertools.compress(keys, present), wrong, strict=True):
        if reason:
            found.problems.append(Problem(Kind.MISPLACED, task.subset, key, "", reason))
    group = task.tracklet.modality, task.tracklet.camid
    found.skeletons[group] = found.skeletons.get(group, SkeletonStats()) + stats


def read_one_by_one(
    store: SkeletonStore, keys: Sequence[str]
) -> tuple[np.ndarray, np.ndarray, dict[str, str]]:
    """Skeletons of a store some of which it refuses to read.

    Returns:
        joints and present, as :meth:`SkeletonStore.read` has them, a refused one not present; what was said of each
        refused key.
    """
    joints, present = np.zeros((len(keys), NUM_JOINTS, 3), np.float32), np.zeros(len(keys), bool)
    refused = {}
    for position, key in enumerate(keys):
        try:
            joints[position : position + 1], present[position : position + 1] = store.read([key])
        except UserError as error:
            refused[key] = str(error)
    return joints, present, refused


def unused_skeletons(keys: Sequence[str], tracklets: Sequence[Tracklet]) -> Iterator[Problem]:
    """Skeletons of no frame in any tracklet: spare where the file exists all the same, else orphans."""
    names = {tracklet.key(index) for tracklet in tracklets for index in range(len(tracklet))}
    roots = sorted({tracklet.root for tracklet in tracklets})
    endings = sorted(
        {frame.rpartition(".")[2] for tracklet in tracklets for frame in tracklet.frames[:1]}
    )
    for key in keys:
        if key in names:
            continue
        places = (os.path.join(root, f"{key}.{ending}") for root in roots for ending in endings)
        if any(map(os.path.exists, places)):
            yield Problem(Kind.SPARE, "", key, "", "its frame is there, and in no tracklet")
        else:
            yield Problem(Kind.ORPHAN, "", key, "", "there is no such frame")
