"""A very small HITSZ-VCM: solid-colored frames, so that a frame can be told by its color."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

TRAIN_IDS, TEST_IDS = (1, 2, 3), (4, 5)
SIZE = (16, 8)  # height, width


def color(pid: int, modality: int, frame: int) -> tuple[int, int, int]:
    """Of frame 1, 2, ... of a tracklet."""
    return (10 * frame, 40 * pid, 100 * modality)


def write_vcm(
    folder: Path,
    *,
    flat: bool = False,
    merged: bool = False,
    images: bool = True,
    lengths: tuple[int, ...] = (12, 13),
) -> Path:
    """Write HITSZ-VCM's files; an identity has a tracklet of each length in each modality."""
    info = folder if flat else folder / "info"
    info.mkdir(parents=True)
    query = []
    for split, ids in (("train", TRAIN_IDS), ("test", TEST_IDS)):
        names, lines = [], []
        for pid in ids:
            for modality in (2, 1):  # visible first: 1-based and 0-based then tell apart
                for camera, length in enumerate(lengths, start=1):
                    lines.append(
                        f"{modality} {len(names) + 1} {len(names) + length} {pid:04d} {camera}"
                    )
                    names += [
                        f"{pid:04d}M{modality}D{camera}T1F{frame}.jpg"
                        for frame in range(1, length + 1)
                    ]
                    if split == "test" and modality == 1:
                        query.append(len(lines))
                    if images:
                        root = folder if merged else folder / split.capitalize()
                        target = (
                            root / f"{pid:04d}" / ("ir" if modality == 1 else "rgb") / f"D{camera}"
                        )
                        target.mkdir(parents=True)
                        for frame in range(1, length + 1):
                            image = np.full((*SIZE, 3), color(pid, modality, frame), np.uint8)
                            Image.fromarray(image).save(
                                target / f"{frame}.jpg", quality=95, subsampling=0
                            )
        names.append("0999M1D1T1F1.jpg")  # belongs to no tracklet, as in the real set
        (info / f"{split}_name.txt").write_text("\n".join(names) + "\n")
        (info / f"track_{split}_info.txt").write_text("\n".join(lines) + "\n")
    (info / "query_IDX.txt").write_text("".join(f"{line} " for line in query))
    return folder


@pytest.fixture(scope="session")
def vcm_root(tmp_path_factory) -> Path:
    """A folder that holds ``HITSZ-VCM``; shared by all tests, not to be written into."""
    root = tmp_path_factory.mktemp("datasets")
    write_vcm(root / "HITSZ-VCM")
    return root


@pytest.fixture
def make_vcm(tmp_path):
    """Write a HITSZ-VCM of one's own; returns the folder that holds it."""

    def make(**options) -> Path:
        write_vcm(tmp_path / "HITSZ-VCM", **options)
        return tmp_path

    return make
