"""A very small HITSZ-VCM: solid-colored frames, so that a frame can be told by its color."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
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
                    first, last = len(names) + 1, len(names) + length
                    lines.append(f"{modality} {first} {last} {pid:04d} {camera}")
                    prefix = f"{pid:04d}M{modality}D{camera}T1F"
                    names += [f"{prefix}{frame}.jpg" for frame in range(1, length + 1)]
                    if split == "test" and modality == 1:
                        query.append(len(lines))
                    if images:
                        root = folder if merged else folder / split.capitalize()
                        folder_name = "ir" if modality == 1 else "rgb"
                        target = root / f"{pid:04d}" / folder_name / f"D{camera}"
                        target.mkdir(parents=True)
                        for frame in range(1, length + 1):
                            image = Image.new("RGB", SIZE[::-1], color(pid, modality, frame))
                            image.save(target / f"{frame}.jpg", quality=95, subsampling=0)
        names.append("0999M1D1T1F1.jpg")  # belongs to no tracklet, as in the real set
        (info / f"{split}_name.txt").write_text("\n".join(names) + "\n")
        (info / f"track_{split}_info.txt").write_text("\n".join(lines) + "\n")
    (info / "query_IDX.txt").write_text("".join(f"{line} " for line in query))
    return folder


@pytest.fixture(autouse=True, scope="session")
def _torch_waits_shortly_for_failed_workers():
    """Else 5 s for each loader with an error: its workers no longer hear that they should end."""
    torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL = 0.2


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
