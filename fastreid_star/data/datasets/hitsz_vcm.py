"""HITSZ-VCM: five text files that list the frames and tracklets, and folders of JPEG crops."""

from __future__ import annotations

import itertools
import logging
import os
import re
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from fastreid.data.datasets import DATASET_REGISTRY

from fastreid_star.data.contents import read_lines, shown, whole_number
from fastreid_star.data.datasets.base import VideoDataset
from fastreid_star.errors import UserError
from fastreid_star.structures import Modality, Tracklet

INFO_FILES = (
    "train_name.txt",
    "track_train_info.txt",
    "test_name.txt",
    "track_test_info.txt",
    "query_IDX.txt",
)

# pid, modality, camera, tracklet, frame. Anything else, a "../" among it, is refused.
_NAME = re.compile(r"(\d{1,9})M([12])D(\d{1,9})T\d+F(\d+\.\w+)", re.ASCII)

# Tracklets, frames in them, identities, tracklets of at least 12 frames.
PUBLISHED = {
    ("train", Modality.INFRARED): (4919, 102096, 500, 4291),
    ("train", Modality.VISIBLE): (6142, 130385, 500, 5460),
    ("test", Modality.INFRARED): (5159, 109391, 427, 4584),
    ("test", Modality.VISIBLE): (5643, 121348, 427, 5099),
}
_COUNTED = ("tracklets", "frames", "identities", "tracklets of at least 12 frames")

logger = logging.getLogger(__name__)


@DATASET_REGISTRY.register()
class HITSZVCM(VideoDataset):
    """HITSZ-VCM, video visible-infrared person re-identification.

    Reference:
        Lin et al. Learning Modal-Invariant and Temporal-Memory for Video-based Visible-Infrared Person
        Re-Identification. CVPR 2022.

    URL: `<https://openaccess.thecvf.com/content/CVPR2022/papers/Lin_Learning_Modal-Invariant_and_Temporal-Memory_for_Video-Based_Visible-Infrared_Person_Re-Identification_CVPR_2022_paper.pdf>`_

    Licence:
        Given by its authors on request, for research; it must not be passed on.

    Dataset statistics:
        - identities: 500 (train) + 427 (test).
        - tracklets: 11,061 (train: 4,919 infrared, 6,142 visible) + 10,802 (test: 5,159 infrared, 5,643 visible).
        - frames: 232,481 (train) + 230,739 (test), 1 to 48 a tracklet, mostly 24.
        - tracklets of at least 12 frames, the published protocol: 9,751 (train) + 9,683 (test).
        - cameras: 12.

    The five text files lie in ``info/`` or directly in the folder, the identities in ``Train/`` and ``Test/`` or
    directly in the folder; each combination loads. Names in the name files that belong to no tracklet are not
    looked at. No image is opened here.

    Args:
        root: the folder that holds ``HITSZ-VCM``, or that folder itself.
        min_frames: shorter tracklets are left out, in the test set too.
        check_frames: see that the folders of the first, the last and some other tracklets exist.

    Raises:
        UserError: something is missing, malformed or contradicts itself; the message names the file and line.
    """

    dataset_dir = "HITSZ-VCM"
    dataset_name = "hitsz_vcm"

    def __init__(
        self, root: str = "datasets", *, min_frames: int = 12, check_frames: bool = True, **kwargs
    ):
        folder = _dataset_folder(os.fspath(root), self.dataset_dir)
        info = _info_folder(folder)
        lines, frames = {}, {}
        for split in ("train", "test"):
            lines[split] = _read_track_info(os.path.join(info, f"track_{split}_info.txt"))
            frames[split] = _read_frames(os.path.join(info, f"{split}_name.txt"), lines[split])
        query = _read_query(os.path.join(info, "query_IDX.txt"), lines["test"])
        _compare_with_published(lines)

        tracklets = {}
        for split in ("train", "test"):
            images = _image_folder(folder, split.capitalize(), frames[split], check=check_frames)
            tracklets[split] = [
                Tracklet(line.pid, line.camera, line.modality, images, names)
                for line, names in zip(lines[split], frames[split], strict=True)
            ]
        train = _long_enough(tracklets["train"], min_frames, info)
        _check_both_modalities(train, min_frames, info)
        infrared = _long_enough([tracklets["test"][i] for i in query], min_frames, info)
        visible = [t for t in tracklets["test"] if t.modality == Modality.VISIBLE]
        visible = _long_enough(visible, min_frames, info)
        dropped = {
            (split, modality): sum(
                t.modality == modality and len(t) < min_frames for t in tracklets[split]
            )
            for split in tracklets
            for modality in Modality
        }
        super().__init__(
            train,
            infrared,
            visible,
            folder=folder,
            min_frames=min_frames,
            dropped=dropped,
            **kwargs,
        )


class _Line(NamedTuple):
    """One line of a track info file; first and last are 1-based and inclusive."""

    modality: Modality
    first: int
    last: int
    pid: int
    camera: int


def _dataset_folder(root: str, name: str) -> str:
    folder = os.path.join(root, name)
    if os.path.isdir(folder):
        return folder
    if os.path.isdir(root) and any(
        os.path.exists(os.path.join(root, d, f)) for d in ("", "info") for f in INFO_FILES
    ):
        return root
    raise UserError(
        f"no {name} in {root}: neither {folder} nor the files {', '.join(INFO_FILES)} are there; "
        "set DATASETS.ROOT or FASTREID_DATASETS to the folder that holds it"
    )


def _info_folder(folder: str) -> str:
    """``info/`` or the folder itself, whichever has all five files."""
    candidates = [os.path.join(folder, "info"), folder]
    missing = [
        [f for f in INFO_FILES if not os.path.isfile(os.path.join(c, f))] for c in candidates
    ]
    for candidate, names in zip(candidates, missing, strict=True):
        if not names:
            return candidate
    nearest = min(range(2), key=lambda i: len(missing[i]))
    raise UserError(
        f"{candidates[nearest]} lacks {', '.join(missing[nearest])}: copy all five info files of the dataset "
        f"into {candidates[0]} or {folder}"
    )


def _image_folder(
    folder: str, split: str, frames: Sequence[tuple[str, ...]], *, check: bool
) -> str:
    """``Train``/``Test`` or, where the identities lie there, the dataset's folder itself."""
    split_folder = os.path.join(folder, split)
    if not check:
        return split_folder if os.path.isdir(split_folder) else folder
    sample = [os.path.dirname(frames[i * (len(frames) - 1) // 7][0]) for i in range(8)]
    for candidate in (split_folder, folder):
        if os.path.isdir(os.path.join(candidate, sample[0])):
            break
    else:
        raise UserError(
            f"no frames of the {split.lower()} set: neither {os.path.join(split_folder, sample[0])} nor "
            f"{os.path.join(folder, sample[0])} exists; unpack the images into {split_folder}"
        )
    for name in sample:
        if not os.path.isdir(os.path.join(candidate, name)):
            raise UserError(
                f"{os.path.join(candidate, name)} is missing, though the info files list frames in it: "
                f"unpack all images of the {split.lower()} set"
            )
    return candidate


def _read_track_info(path: str) -> list[_Line]:
    lines = []
    for number, text in enumerate(read_lines(path), start=1):
        fields = text.split()
        numbers = [number for number in map(whole_number, fields) if number is not None]
        if not len(fields) == len(numbers) == 5:
            raise UserError(
                f"{path} line {number}: expected five integers of at most nine digits (modality first last pid "
                f"camera), found {shown(text)}"
            )
        modality, first, last, pid, camera = numbers
        if modality not in (1, 2):
            raise UserError(
                f"{path} line {number}: modality {modality}, expected 1 (infrared) or 2 (visible)"
            )
        if last < first:
            raise UserError(
                f"{path} line {number}: the last frame, {last}, comes before the first, {first}"
            )
        lines.append(_Line(Modality(modality), first, last, pid, camera))
    if not lines:
        raise UserError(f"{path} lists no tracklet: copy the dataset's own file")
    return lines


def _read_frames(path: str, lines: Sequence[_Line]) -> list[tuple[str, ...]]:
    """The frames of each tracklet as relative paths; every name is held against its tracklet's line."""
    names = read_lines(path)
    for number, line in enumerate(lines, start=1):
        if line.first < 1 or line.last > len(names):
            raise UserError(
                f"{path} has {len(names)} names, but tracklet {number} spans {line.first} to {line.last}: indices "
                "are 1-based and inclusive, and both files must come from the same copy of the dataset"
            )
    if sum(line.last - line.first + 1 for line in lines) > len(
        names
    ):  # perhaps a million times as many
        _refuse_overlaps(path, lines)
    match, frames = _NAME.fullmatch, []
    for number, line in enumerate(lines, start=1):
        paths, expected = [], (line.pid, line.modality, line.camera)
        folder_text, folder = None, ""
        for row in range(line.first - 1, line.last):
            found = match(names[row])
            if found is None:
                raise UserError(
                    f"{path} line {row + 1}: {shown(names[row])} is not a frame name like 0001M2D3T1F1.jpg"
                )
            pid, modality, camera, frame = found.groups()
            if (pid, modality, camera) != folder_text:
                folder_text = (pid, modality, camera)
                if (int(pid), int(modality), int(camera)) != expected:
                    raise UserError(
                        f"{path} line {row + 1}: {names[row]} is not of identity {line.pid}, modality "
                        f"{line.modality:d}, camera {line.camera}, as tracklet {number} says: the indices are "
                        "1-based, and both files must come from the same copy of the dataset"
                    )
                folder = f"{pid}/{line.modality.folder}/D{camera}/"
            paths.append(folder + frame)
        frames.append(tuple(paths))
    _refuse_overlaps(path, lines)
    count, distinct = sum(map(len, frames)), len(set().union(*frames))
    if distinct != count:
        logger.warning(
            "%s names %d of its %d frames twice: they are shown twice",
            path,
            count - distinct,
            count,
        )
    return frames


def _refuse_overlaps(path: str, lines: Sequence[_Line]) -> None:
    spans = sorted((line.first, line.last, number) for number, line in enumerate(lines, start=1))
    for (_, last, one), (first, _, other) in itertools.pairwise(spans):
        if first <= last:
            raise UserError(
                f"tracklets {one} and {other} share lines of {path}: each frame belongs to one tracklet"
            )


def _read_query(path: str, lines: Sequence[_Line]) -> list[int]:
    """The 0-based positions of the query tracklets, all of them infrared."""
    listed: dict[int, int] = {}
    for row, text in enumerate(
        read_lines(path, longest=1_000_000), start=1
    ):  # all of them stand in one line
        for field in text.split():
            number, where = whole_number(field), f"{path} line {row}"
            if number is None:
                raise UserError(
                    f"{where}: expected line numbers, counted from 1, found {shown(field)}"
                )
            if number == 0:
                raise UserError(
                    f"{where}: index 0 looks 0-based: count lines from 1, shift all by one"
                )
            if number > len(lines):
                raise UserError(
                    f"{where}: index {number}, but track_test_info.txt has {len(lines)} lines"
                )
            if number in listed:
                raise UserError(f"{where}: index {number} is listed twice")
            listed[number] = row
    if not listed:
        raise UserError(
            f"{path} is empty: it lists the infrared lines of track_test_info.txt, counted from 1"
        )
    visible = [number for number in listed if lines[number - 1].modality == Modality.VISIBLE]
    if visible:
        raise UserError(
            f"{path} line {listed[visible[0]]}: {len(visible)} of {len(listed)} indices, the first of them "
            f"{visible[0]}, point at visible tracklets, but the query is infrared: it looks 0-based: count lines from "
            "1, shift all by one"
        )
    unlisted = sum(line.modality == Modality.INFRARED for line in lines) - len(listed)
    if unlisted:
        logger.warning(
            "%s leaves out %d infrared tracklets of the test set: they are not used", path, unlisted
        )
    return [number - 1 for number in listed]


def _long_enough(tracklets: list[Tracklet], min_frames: int, info: str) -> list[Tracklet]:
    kept = [tracklet for tracklet in tracklets if len(tracklet) >= min_frames]
    if not kept:
        raise UserError(
            f"{info}: no tracklet has {min_frames} frames or more: lower DATASETS.MIN_FRAMES"
        )
    return kept


def _check_both_modalities(train: list[Tracklet], min_frames: int, info: str) -> None:
    seen = defaultdict(set)
    for tracklet in train:
        seen[tracklet.pid].add(tracklet.modality)
    lonely = sorted(pid for pid, modalities in seen.items() if len(modalities) == 1)
    if lonely:
        names = ", ".join(
            f"{pid} (only {next(iter(seen[pid])).name.lower()})" for pid in lonely[:5]
        )
        raise UserError(
            f"{os.path.join(info, 'track_train_info.txt')}: {len(lonely)} identities have tracklets of at least "
            f"{min_frames} frames in one modality only: {names}{' ...' if len(lonely) > 5 else ''}; "
            "lower DATASETS.MIN_FRAMES or take them out"
        )


def _compare_with_published(lines: dict[str, list[_Line]]) -> None:
    """Only where the number of tracklets says that this is the real set, or most of it."""
    if any(
        len(lines[split]) < 0.9 * published
        for split, published in (("train", 11061), ("test", 10802))
    ):
        return
    differences = []
    for (split, modality), expected in PUBLISHED.items():
        chosen = [line for line in lines[split] if line.modality == modality]
        lengths = [line.last - line.first + 1 for line in chosen]
        counts = (
            len(chosen),
            sum(lengths),
            len({line.pid for line in chosen}),
            sum(n >= 12 for n in lengths),
        )
        for what, count, right in zip(_COUNTED, counts, expected, strict=True):
            if count != right:
                differences.append(
                    f"{split} {modality.name.lower()} {what} {count} instead of {right}"
                )
    if differences:
        logger.warning(
            "HITSZ-VCM: counts differ from the published ones: %s", "; ".join(differences)
        )
    else:
        logger.info("HITSZ-VCM: counts equal the published ones")
