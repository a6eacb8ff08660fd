"""HITSZ-VCM: five text files that list the frames and tracklets, and folders of JPEG crops."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import ClassVar

from fastreid.data.datasets import DATASET_REGISTRY

from fastreid_star.data.datasets.base import (
    VideoDataset,
    check_images,
    find_folder,
    published_counts,
    require_files,
)
from fastreid_star.data.io import read_lines
from fastreid_star.errors import UserError
from fastreid_star.structures import Modality, Tracklet

INFO_FILES = (
    "train_name.txt",
    "track_train_info.txt",
    "test_name.txt",
    "track_test_info.txt",
    "query_IDX.txt",
)

# pid, modality, camera, tracklet, frame
_NAME = re.compile(r"(\d+)M([12])D(\d+)T\d+F(\d+\.\w+)")
# modality, first and last line (from 1, inclusive), pid, camera
_TRACKLET = re.compile(r"([12])\s+(\d+)\s+(\d+)\s+(\d+)\s+(\d+)")
_SAME_COPY = "lines count from 1, and both files must come from the same copy of the dataset"


@DATASET_REGISTRY.register()
class HITSZVCM(VideoDataset):
    """HITSZ-VCM, video visible-infrared person re-identification.

    Reference:
        Lin et al. Learning Modal-Invariant and Temporal-Memory for Video-based Visible-Infrared
        Person Re-Identification. CVPR 2022.

    License:
        Given by its authors on request, for research; it must not be passed on.

    Dataset statistics: see `published`. A tracklet has 1 to 48 frames, mostly 24.

    The five text files are in ``info/`` or directly in the folder, the identities in ``Train/`` and
    ``Test/`` or directly in the folder; every combination loads. Names that belong to no tracklet
    are ignored. The constructor opens no image.

    Args:
        root: the folder that holds ``HITSZ-VCM``, or that folder itself.
        min_frames: shorter tracklets are left out, in the test set too.
        check_frames: check that images of some tracklets exist.

    Raises:
        UserError: something is missing, malformed or contradictory; the message names file and
            line.
    """

    dataset_dir = "HITSZ-VCM"
    dataset_name = "hitsz_vcm"
    published: ClassVar = {
        "train infrared": published_counts(4919, 102096, 500, long=4291),
        "train visible": published_counts(6142, 130385, 500, long=5460),
        "train": published_counts(11061, 232481, 500, long=9751, cameras=6),
        "test infrared": published_counts(5159, 109391, 427, long=4584),
        "test visible": published_counts(5643, 121348, 427, long=5099),
        "test": published_counts(10802, 230739, 427, long=9683, cameras=12),
    }

    def __init__(
        self,
        root: str = "datasets",
        *,
        min_frames: int = 12,
        check_frames: bool = True,
        **kwargs,
    ):
        files = [os.path.join(sub, name) for sub in ("info", "") for name in INFO_FILES]
        folder = find_folder(root, self.dataset_dir, files)
        info = os.path.join(folder, "info")
        info = info if os.path.isdir(info) else folder
        require_files(info, INFO_FILES)
        parts = {
            split: _read_split(
                os.path.join(info, f"track_{split}_info.txt"),
                os.path.join(info, f"{split}_name.txt"),
                (os.path.join(folder, split.capitalize()), folder),
            )
            for split in ("train", "test")
        }
        infrared = _read_query(os.path.join(info, "query_IDX.txt"), parts["test"])
        visible = [t for t in parts["test"] if t.modality == Modality.VISIBLE]
        self.compare_with_published(parts)
        if check_frames:
            for split, tracklets in parts.items():
                check_images(split, tracklets)
        super().__init__(
            parts["train"], infrared, visible, folder=folder, min_frames=min_frames, **kwargs
        )


def _read_split(track_file: str, name_file: str, roots: Sequence[str]) -> list[Tracklet]:
    """The tracklets of a split.

    Args:
        track_file: each line is a tracklet.
        name_file: the frames, one a line.
        roots: folders that may hold the folders of the identities.
    """
    lines, names = read_lines(track_file), read_lines(name_file)
    tracklets, root = [], ""
    for number, line in enumerate(lines, start=1):
        found = _TRACKLET.fullmatch(line)
        if found is None:
            raise UserError(
                f"{track_file} line {number}: expected five numbers, modality (1 infrared, 2 "
                f"visible) first last pid camera, found {line!r}"
            )
        modality, first, last, pid, camera = map(int, found.groups())
        if not 1 <= first <= last <= len(names):
            raise UserError(
                f"{track_file} line {number}: lines {first} to {last} of {name_file}, which has "
                f"{len(names)}: {_SAME_COPY}"
            )
        key = (pid, modality, camera)
        frames = tuple(_frame(name_file, row, names, key) for row in range(first, last + 1))
        folder = frames[0].split("/")[0]
        root = root or next((r for r in roots if os.path.isdir(os.path.join(r, folder))), roots[0])
        tracklets.append(Tracklet(pid, camera, Modality(modality), root, frames))
    if not tracklets:
        raise UserError(f"{track_file} lists no tracklet: copy the dataset's own file")
    return tracklets


def _frame(path: str, row: int, names: Sequence[str], key: tuple[int, int, int]) -> str:
    """The image of a line of a name file, ``0001/ir/D4/1.jpg``.

    Args:
        row: the line, counted from 1.
        key: pid, modality and camera of the tracklet, which the name must repeat.
    """
    found = _NAME.fullmatch(names[row - 1])
    if found is None:
        raise UserError(
            f"{path} line {row}: {names[row - 1]!r} is not a frame name like 0001M2D3T1F1.jpg"
        )
    pid, modality, camera, frame = found.groups()
    if (int(pid), int(modality), int(camera)) != key:
        raise UserError(
            f"{path} line {row}: {names[row - 1]} does not belong to its tracklet of identity "
            f"{key[0]}, modality {key[1]}, camera {key[2]}: {_SAME_COPY}"
        )
    return f"{pid}/{Modality(key[1]).folder}/D{camera}/{frame}"


def _read_query(path: str, test: Sequence[Tracklet]) -> list[Tracklet]:
    """The query tracklets, all of them infrared, in the order of the file."""
    listed = " ".join(read_lines(path)).split()
    if not listed:
        raise UserError(f"{path} is empty: copy the dataset's own file")
    query = []
    for text in listed:
        number = int(text) if text.isdecimal() else 0
        if not 1 <= number <= len(test) or test[number - 1].modality != Modality.INFRARED:
            raise UserError(
                f"{path}: {text!r} is not the number of an infrared tracklet in "
                f"track_test_info.txt, counted from 1 to {len(test)}"
            )
        query.append(test[number - 1])
    return query
