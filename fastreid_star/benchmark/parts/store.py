"""Skeletons of clips: the flat store against its own array, and against the authors' HDF5 layout."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import h5py
import numpy as np

from fastreid_star.benchmark.figures import Figure
from fastreid_star.benchmark.options import Options
from fastreid_star.benchmark.timing import in_turns
from fastreid_star.coco import NUM_JOINTS
from fastreid_star.data.skeleton_conversion import write_hdf5_store
from fastreid_star.data.skeletons import ARRAY_FILE, SkeletonStore, write_skeleton_store

TRACKLET, CLIP = 24, 12  # frames
ROUNDS = 15  # at least: they are short, and a machine's clock changes within seconds


def figures(options: Options) -> Iterator[Figure]:
    """Skeletons of 12-frame clips: the flat store against the bare array, and against the authors' HDF5 layout."""
    yield from compare(
        options,
        frames=120_000,
        hdf5_frames=2_400 if options.quick else 120_000,
        clips=2_000 if options.quick else 10_000,
    )


def compare(options: Options, *, frames: int, hdf5_frames: int, clips: int) -> Iterator[Figure]:
    """Read random clips from stores of `frames` and, in HDF5, of the first `hdf5_frames` of them, in one process.

    Each round reads `clips` from the flat store and a fiftieth of them from HDF5, others than the round before, or the
    library would remember where they are. Everything has been read before, so it lies in memory.

    Raises:
        RuntimeError: the stores give different skeletons.
    """
    rng = np.random.default_rng(0)
    keys, joints = make(frames, rng)
    folder = options.folder / "store"
    write_skeleton_store(folder / "flat", keys, joints)
    write_hdf5_store(folder / "skeletons.h5", keys[:hdf5_frames], joints[:hdf5_frames])
    flat, hdf5 = SkeletonStore.open(folder / "flat"), SkeletonStore.open(folder / "skeletons.h5")
    array = np.asarray(np.load(folder / "flat" / ARRAY_FILE, mmap_mode="r"))
    rows = draw_clips(frames, clips, rng)
    few = draw_clips(hdf5_frames, clips, rng)
    wanted, few_wanted = (
        [[keys[row] for row in clip] for clip in chosen] for chosen in (rows, few)
    )
    for store, chosen, names in ((flat, rows, wanted), (hdf5, few, few_wanted)):
        for clip, clip_keys in zip(chosen, names, strict=True):
            found, present = store.read(clip_keys)
            if not (present.all() and np.array_equal(found, joints[clip])):
                raise RuntimeError(f"{store.path} gives other skeletons than were stored")
    size = max(1, clips // 50)
    chunks = itertools.cycle(
        [few_wanted[start : start + size] for start in range(0, size * (clips // size), size)]
    )
    with h5py.File(hdf5.path) as file:
        sides = {
            "flat": lambda: [flat.read(clip) for clip in wanted],
            "array": lambda: [array[clip] for clip in rows],
            "hdf5": lambda: [np.stack([file[key][()] for key in clip]) for clip in next(chunks)],
        }
        times = in_turns(sides, repeats=max(ROUNDS, options.rounds), title=options.title("store"))
    hdf5.close()
    flat_rate, array_rate, hdf5_rate = (
        count / times[name].best
        for name, count in (("flat", clips), ("array", clips), ("hdf5", size))
    )
    yield Figure.against(
        "store_clips_per_s",
        flat_rate,
        "clips/s",
        array_rate,
        f"indexing the memory-mapped array by known rows; {frames:,} frames; {times['flat']}",
    )
    yield Figure.against(
        "store_clips_per_s_over_hdf5",
        flat_rate,
        "clips/s",
        hdf5_rate,
        f"the authors' HDF5 layout, one dataset a frame, read by h5py as they are; {hdf5_frames:,} frames",
    )


def make(frames: int, rng: np.random.Generator) -> tuple[list[str], np.ndarray]:
    """Keys as HITSZ-VCM's, tracklet by tracklet, and joints float32 ``[frames, V, 3]``."""
    keys = []
    for frame in range(frames):
        tracklet, position = divmod(frame, TRACKLET)
        pid, camera = 1 + tracklet // 12, 1 + tracklet % 12
        keys.append(f"{pid:04d}/{'ir' if camera % 2 else 'rgb'}/D{camera}/{1 + position}")
    return keys, rng.random((frames, NUM_JOINTS, 3), np.float32)


def draw_clips(frames: int, clips: int, rng: np.random.Generator) -> np.ndarray:
    """Rows of random clips ``[clips, 12]``: a frame of each of 12 segments of a tracklet."""
    first = TRACKLET * rng.integers(frames // TRACKLET, size=(clips, 1))
    step = TRACKLET // CLIP
    return first + step * np.arange(CLIP) + rng.integers(step, size=(clips, CLIP))
