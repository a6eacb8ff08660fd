"""HITSZ-VCM: five text files that list the frames and tracklets, and folders of JPEG crops."""

from __future__ import annotations

import itertools
import logging
import os
import re
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

from fastreid.data.datasets import DATASET_REGISTRY

from fastreid_star.data.datasets.base import VideoDataset, check_images, find_folder
from fastreid_star.data.io import read_lines, shorten, whole_number
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
_NAME = re.compile(r"(\d{1,9})M([12])D(\d{1,9})T\d+F(\d+\.\w+)", re.ASCII)
_SAME_COPY = "both files must come from the same copy of the dataset"


def _counts(tracklets: int, frames: int, identities: int, long: int, **more: int) -> dict[str, int]:
    return {
        "tracklets": tracklets,
        "frames": frames,
        "identities": identities,
        "long": long,
        **more,
    }


logger = logging.getLogger(__name__)


@DATASET_REGISTRY.register()
class HITSZVCM(VideoDataset):
    """HITSZ-VCM, video visible-infrared person re-identification.

    Reference:
        Lin et al. Learning Modal-Invariant and Temporal-Memory for Video-based Visible-Infrared
        Person Re-Identification. CVPR 2022.

    License:
        Given by its authors on request, for research; it must not be passed on.

    Dataset statistics:
        - identities: 500 (train) + 427 (test).
        - tracklets: 11,061 (train: 4,919 infrared, 6,142 visible) + 10,802 (test: 5,159 infrared,
          5,643 visible).
        - frames: 232,481 (train) + 230,739 (test), 1 to 48 per tracklet, mostly 24.
        - tracklets of at least 12 frames, as in the published protocol: 9,751 + 9,683.
        - cameras: 12.

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
        "train infrared": _counts(4919, 102096, 500, 4291),
        "train visible": _counts(6142, 130385, 500, 5460),
        "train": _counts(11061, 232481, 500, 9751, cameras=6),
        "test infrared": _counts(5159, 109391, 427, 4584),
        "test visible": _counts(5643, 121348, 427, 5099),
        "test": _counts(10802, 230739, 427, 9683, cameras=12),
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
        info = _info_folder(folder)
        parts = {}
        for split in ("train", "test"):
            lines = _read_track_info(os.path.join(info, f"track_{split}_info.txt"))
            frames = _read_frames(os.path.join(info, f"{split}_name.txt"), lines)
            images = _image_folder(folder, split.capitalize(), frames[0][0])
            parts[split] = [
                Tracklet(line.pid, line.camera, line.modality, images, names)
                for line, names in zip(lines, frames, strict=True)
            ]
        test = parts["test"]
        query = _read_query(os.path.join(info, "query_IDX.txt"), test)
        self.compare_with_published(parts)
        if check_frames:
            for split, tracklets in parts.items():
                check_images(split, tracklets)
        infrared = [test[position] for position in query]
        visible = [tracklet for tracklet in test if tracklet.modality == Modality.VISIBLE]
        super().__init__(
            parts["train"], infrared, visible, folder=folder, min_frames=min_frames, **kwargs
        )


class _Line(NamedTuple):
    """One line of a track info file; first and last are 1-based and inclusive."""

    modality: Modality
    first: int
    last: int
    pid: int
    camera: int


def _info_folder(folder: str) -> str:
    """``info/`` or the folder itself: the one with all five files."""
    missing = {}
    for candidate in (os.path.join(folder, "info"), folder):
        names = [f for f in INFO_FILES if not os.path.isfile(os.path.join(candidate, f))]
        if not names:
            return candidate
        missing[candidate] = names
    nearest = min(missing, key=lambda candidate: len(missing[candidate]))
    raise UserError(
        f"{nearest} lacks {', '.join(missing[nearest])}: copy all five info files of the dataset "
        f"into {os.path.join(folder, 'info')} or {folder}"
    )


def _image_folder(folder: str, split: str, frame: str) -> str:
    """``Train``/``Test``, or the dataset's folder itself if the identities are directly in it."""
    candidates = (os.path.join(folder, split), folder)
    pid = frame.split("/")[0]
    return next((c for c in candidates if os.path.isdir(os.path.join(c, pid))), candidates[0])


def _read_track_info(path: str) -> list[_Line]:
    lines = []
    for number, text in enumerate(read_lines(path), start=1):
        fields = text.split()
        numbers = [n for n in map(whole_number, fields) if n is not None]
        if not len(fields) == len(numbers) == 5:
            raise UserError(
                f"{path} line {number}: expected five integers (modality first last pid camera), "
                f"found {shorten(text)}"
            )
        modality, first, last, pid, camera = numbers
        if modality not in (1, 2):
            raise UserError(
                f"{path} line {number}: modality {modality}, expected 1 (infrared) or 2 (visible)"
            )
        if last < first:
            raise UserError(
                f"{path} line {number}: the last frame, {last}, is before the first, {first}"
            )
        lines.append(_Line(Modality(modality), first, last, pid, camera))
    if not lines:
        raise UserError(f"{path} lists no tracklet: copy the dataset's own file")
    return lines


def _read_frames(path: str, lines: Sequence[_Line]) -> list[tuple[str, ...]]:
    """The relative paths of each tracklet's frames; each name is compared with its line."""
    names = read_lines(path)
    for number, line in enumerate(lines, start=1):
        if line.first < 1 or line.last > len(names):
            raise UserError(
                f"{path} has {len(names)} names, but tracklet {number} spans {line.first} to "
                f"{line.last}: indices are 1-based and inclusive, and {_SAME_COPY}"
            )
    spans = sorted((line.first, line.last, number) for number, line in enumerate(lines, start=1))
    for (_, last, one), (first, _, other) in itertools.pairwise(spans):
        if first <= last:
            raise UserError(
                f"tracklets {one} and {other} share lines of {path}: each frame belongs to one "
                "tracklet"
            )
    frames = []
    for number, line in enumerate(lines, start=1):
        paths, known, folder = [], [""], ""
        for row in range(line.first - 1, line.last):
            found = _NAME.fullmatch(names[row])
            if found is None:
                raise UserError(
                    f"{path} line {row + 1}: {shorten(names[row])} is not a frame name like "
                    "0001M2D3T1F1.jpg"
                )
            *key, frame = found.groups()
            if key != known:  # once per tracklet, as its names are alike
                if tuple(map(int, key)) != (line.pid, line.modality, line.camera):
                    raise UserError(
                        f"{path} line {row + 1}: {names[row]} does not belong to identity "
                        f"{line.pid}, modality {line.modality:d}, camera {line.camera} of tracklet "
                        f"{number}: indices are 1-based, and {_SAME_COPY}"
                    )
                known, folder = key, f"{key[0]}/{line.modality.folder}/D{key[2]}/"
            paths.append(folder + frame)
        frames.append(tuple(paths))
    count, distinct = sum(map(len, frames)), len(set().union(*frames))
    if distinct != count:
        logger.warning("%s lists %d of its %d frames twice", path, count - distinct, count)
    return frames


def _read_query(path: str, test: Sequence[Tracklet]) -> list[int]:
    """The 0-based positions of the query tracklets, all of them infrared."""
    listed = []
    for field in " ".join(read_lines(path)).split():
        number = whole_number(field)
        if number is None:
            raise UserError(
                f"{path}: expected line numbers, counted from 1, found {shorten(field)}"
            )
        if number == 0:
            raise UserError(f"{path}: index 0 looks 0-based: count lines from 1, shift all by one")
        if number > len(test):
            raise UserError(
                f"{path}: index {number}, but track_test_info.txt has {len(test)} lines"
            )
        listed.append(number - 1)
    if not listed:
        raise UserError(
            f"{path} is empty: it lists the infrared lines of track_test_info.txt, counted from 1"
        )
    if len(set(listed)) < len(listed):
        raise UserError(f"{path} lists an index twice: copy the dataset's own file")
    visible = [position for position in listed if test[position].modality == Modality.VISIBLE]
    if visible:
        raise UserError(
            f"{path}: {len(visible)} of {len(listed)} indices, first {visible[0] + 1}, are visible "
            "tracklets, but queries are infrared: they look 0-based: count lines from 1"
        )
    unlisted = sum(t.modality == Modality.INFRARED for t in test) - len(listed)
    if unlisted:
        logger.warning("%s leaves out %d infrared test tracklets: not used", path, unlisted)
    return listed
