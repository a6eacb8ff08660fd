"""Writes the five text files of HITSZ-VCM at the size of the real dataset, with made-up content."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from fastreid_star.data.datasets.synthetic import Track, write_info_files
from fastreid_star.structures import Modality

# The real dataset by split and modality: tracklets, their frames, tracklets of at least 12 frames;
# then by split: tracklets of exactly 24 frames, and names that belong to no tracklet.
TRUE_COUNTS = {
    "train": {Modality.VISIBLE: (6142, 130385, 5460), Modality.INFRARED: (4919, 102096, 4291)},
    "test": {Modality.VISIBLE: (5643, 121348, 5099), Modality.INFRARED: (5159, 109391, 4584)},
}
TRUE_EXACTLY_24 = {"train": 8223, "test": 8379}
TRUE_LOOSE_NAMES = {"train": 15, "test": 24}
TRUE_CAMERAS = {"train": 6, "test": 12}
# Which 8 of 503 to 937 are unused is not known here: these are made up.
TRUE_PIDS = {
    "train": sorted({*range(1, 503)} - {399, 404}),
    "test": sorted({*range(503, 938)} - {*range(540, 937, 50)}),
}


def write_info_files_at_true_size(root: str | os.PathLike) -> None:
    """Write ``<root>/info`` with the five text files at HITSZ-VCM's real size, without frames.

    The counts of every split and modality are those of the real dataset; which tracklet has which
    length and camera is made up, and always the same.
    """
    rng = np.random.default_rng(0)
    splits = {split: _tracks_at_true_size(split, rng) for split in TRUE_COUNTS}
    write_info_files(Path(root) / "info", splits["train"], splits["test"])
    for split, count in TRUE_LOOSE_NAMES.items():  # names that belong to no tracklet
        with open(Path(root) / "info" / f"{split}_name.txt", "a", encoding="ascii") as file:
            name = f"{TRUE_PIDS[split][-1]:04d}M1D1T999F"
            file.writelines(f"{name}{100000 + n}.jpg\n" for n in range(count))


def _tracks_at_true_size(split: str, rng: np.random.Generator) -> list[Track]:
    pids, cameras = TRUE_PIDS[split], TRUE_CAMERAS[split]
    tracklets = sum(count for count, _, _ in TRUE_COUNTS[split].values())
    # visible and infrared cameras of an identity differ, as in the real dataset
    seen_by = {pid: rng.permutation(cameras) + 1 for pid in pids}
    tracks, left = [], TRUE_EXACTLY_24[split]
    for modality, (count, frames, long) in TRUE_COUNTS[split].items():
        exactly_24 = (
            round(TRUE_EXACTLY_24[split] * count / tracklets)
            if modality is Modality.VISIBLE
            else left
        )
        left -= exactly_24
        lengths = _lengths(count, frames, long, exactly_24, rng)
        share = 1 + rng.multinomial(count - len(pids), np.full(len(pids), 1 / len(pids)))
        owners = np.repeat(pids, share)
        half = slice(0, cameras // 2) if modality is Modality.VISIBLE else slice(cameras // 2, None)
        chosen = rng.integers(cameras // 2, size=count)
        tracks += [
            Track(int(pid), modality, int(seen_by[pid][half][camera]), int(length))
            for pid, camera, length in zip(owners, chosen, lengths, strict=True)
        ]
    # visible before infrared within an identity, as in the real files
    return sorted(tracks, key=lambda track: track.pid)


def _lengths(
    count: int, frames: int, long: int, exactly_24: int, rng: np.random.Generator
) -> np.ndarray:
    """`count` lengths from 1 to 48 with the given sum, number of long ones and of 24s."""
    short = rng.integers(1, 12, count - long)
    short[:11] = np.arange(1, 12)
    longest = np.arange(25, 49)
    middle = rng.integers(12, 24, long - exactly_24 - len(longest))
    fixed = np.concatenate([np.full(exactly_24, 24), short, longest])
    while missing := frames - int(fixed.sum() + middle.sum()):
        step = 1 if missing > 0 else -1
        movable = np.flatnonzero((middle + step >= 12) & (middle + step < 24))
        middle[rng.permutation(movable)[: abs(missing)]] += step
    return rng.permutation(np.concatenate([fixed, middle]))
