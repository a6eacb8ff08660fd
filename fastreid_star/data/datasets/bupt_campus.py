"""BUPTCampus: a JSON file of frames, text files that list the tracklets, folders of JPEG crops."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from fastreid.config import CfgNode
from fastreid.data.datasets import DATASET_REGISTRY

from fastreid_star.data.datasets.base import (
    ListedTracklet,
    VideoDataset,
    check_images,
    find_folder,
)
from fastreid_star.data.io import read_json, read_lines, shorten, whole_number
from fastreid_star.errors import UserError
from fastreid_star.structures import Modality, Tracklet

FRAMES, PATHS = "DATA", "data_paths.json"
TRAIN, AUXILIARY, QUERY, GALLERY = "train.txt", "train_auxiliary.txt", "query.txt", "gallery.txt"
CAMERAS = {"LS3": 0, "G25": 1, "CQ1": 2, "W4": 3, "TSG1": 4, "TSG2": 5}

# The modalities as the dataset writes them. A training line stands for two tracklets.
_FOLDERS = {Modality.VISIBLE: "RGB", Modality.INFRARED: "IR"}
_PAIR: dict[str, tuple[Modality, ...]] = {"RGB/IR": (Modality.VISIBLE, Modality.INFRARED)}
_SINGLE: dict[str, tuple[Modality, ...]] = {
    folder: (modality,) for modality, folder in _FOLDERS.items()
}


def _counts(tracklets: int, frames: int, identities: int) -> dict[str, int]:
    return {"tracklets": tracklets, "frames": frames, "identities": identities}


@dataclass(frozen=True, slots=True)
class BUPTCampusOptions:
    """Options of BUPTCampus.

    Args:
        auxiliary: DATASETS.BUPT_AUXILIARY, train on the pairs of ``train_auxiliary.txt`` too.
    """

    auxiliary: bool = False


@DATASET_REGISTRY.register()
class BUPTCampus(VideoDataset):
    """BUPTCampus, video visible-infrared person re-identification.

    Reference:
        Du et al. Video-based Visible-Infrared Person Re-Identification with Auxiliary Samples.
        IEEE Transactions on Information Forensics and Security 19, 2024.

    URL: `<https://github.com/dyhBUPT/BUPTCampus>`_

    License:
        For academic use; it must not be passed on.

    Dataset statistics:
        - identities: 1,074 (train) + 1,076 (test) + 930 (auxiliary).
        - train: 3,574 pairs of a visible and an infrared tracklet, aligned frame by frame; 796,138
          frames.
        - query: 1,076 tracklets, one per identity: 536 infrared, 540 visible; 101,938 frames.
        - gallery: 4,844 tracklets: 2,422 infrared, 2,422 visible; 597,542 frames.
        - auxiliary: 930 pairs, one per identity; 209,150 frames.
        - cameras: LS3, G25, CQ1, W4, TSG1 and TSG2, here 0 to 5; each films in both modalities.

    Protocol of the published numbers: all tracklets (DATASETS.MIN_FRAMES 1); no gallery entry is
    left out (TEST.CAMERA_FILTER False). The dataset's own program drops its last incomplete batch
    of 64, 28 visible queries and 54 visible gallery entries; here all count.

    Layout::

        data_paths.json           {pid: {IR or RGB: {camera: {track: [frame, ...]}}}}
        train.txt                 lines "pid RGB/IR camera track": two tracklets each
        query.txt, gallery.txt    lines "pid IR camera track" or "pid RGB camera track"
        train_auxiliary.txt       as train.txt, optional
        DATA/1746/IR/TSG2/1746_IR_TSG2_1_8535.jpg

    A frame in ``data_paths.json`` is a path relative to ``DATA``, as published, or to the dataset's
    folder, or a bare file name. A skeleton key is ``1746/IR/TSG2/1746_IR_TSG2_1_8535``.

    The auxiliary pairs become ordinary training identities; the authors' separate triplet loss of
    falling weight for them is not implemented. ``DATA/pid/FakeIR`` is not read.

    Args:
        root: the folder that holds ``BUPTCampus``, or that folder itself.
        min_frames: shorter tracklets are left out, in the test set too.
        check_frames: check that images of some tracklets exist.
        options: None: the defaults.

    Raises:
        UserError: something is missing, malformed or contradictory; the message names file and
            line.
    """

    dataset_dir = "BUPTCampus"
    dataset_name = "bupt_campus"
    published: ClassVar = {
        "train infrared": _counts(3574, 398069, 1074),
        "train visible": _counts(3574, 398069, 1074),
        "query infrared": _counts(536, 53417, 536),
        "query visible": _counts(540, 48521, 540),
        "gallery infrared": _counts(2422, 298771, 1076),
        "gallery visible": _counts(2422, 298771, 1076),
    }

    def __init__(
        self,
        root: str = "datasets",
        *,
        min_frames: int = 1,
        check_frames: bool = True,
        options: BUPTCampusOptions | None = None,
        **kwargs,
    ):
        folder = find_folder(root, self.dataset_dir, (PATHS, TRAIN, QUERY, GALLERY))
        auxiliary = options is not None and options.auxiliary
        names = [TRAIN, QUERY, GALLERY, *([AUXILIARY] if auxiliary else [])]
        files = (PATHS, *names)
        missing = [f for f in files if not os.path.isfile(os.path.join(folder, f))]
        if missing:
            raise UserError(
                f"{folder} lacks {', '.join(missing)}: copy all lists of the dataset into it"
            )
        paths = read_json(os.path.join(folder, PATHS))
        if not isinstance(paths, dict):
            raise UserError(f"{folder}/{PATHS} is not a JSON object: copy the dataset's own file")
        lists = {name.removesuffix(".txt"): _read_list(folder, name, paths) for name in names}
        self.compare_with_published(lists)
        if check_frames:
            for name, tracklets in lists.items():
                check_images(name, tracklets)
        train = [*lists["train"], *lists.get("train_auxiliary", [])]
        test = lists["query"], lists["gallery"]
        super().__init__(train, *test, folder=folder, min_frames=min_frames, **kwargs)

    @staticmethod
    def options_from_config(cfg: CfgNode) -> BUPTCampusOptions:
        """The options in a config; the loaders pass them as `options`."""
        return BUPTCampusOptions(auxiliary=cfg.DATASETS.BUPT_AUXILIARY)


class _Line(NamedTuple):
    """One line of a list: its place, and its four fields as they are written."""

    where: str
    pid: str
    modality: str
    camera: str
    track: str


def _read_list(folder: str, name: str, paths: dict) -> list[Tracklet]:
    """The tracklets of one list, in its order; of a pair the visible one first."""
    root = os.path.join(folder, FRAMES)
    role = {QUERY: "query", GALLERY: "gallery"}.get(name)
    modalities = _SINGLE if role else _PAIR
    tracklets: list[Tracklet] = []
    for line in _lines(os.path.join(folder, name), modalities):
        for modality in modalities[line.modality]:
            frames = _frames(paths, line, _FOLDERS[modality])
            fields = (int(line.pid), CAMERAS[line.camera], modality, root, frames)
            tracklets.append(ListedTracklet(*fields, role) if role else Tracklet(*fields))
    if not tracklets:
        raise UserError(f"{folder}/{name} lists no tracklet: copy the dataset's own file")
    return tracklets


def _lines(path: str, modalities: dict[str, tuple[Modality, ...]]) -> Iterator[_Line]:
    for number, text in enumerate(read_lines(path), start=1):
        fields, where = text.split(), f"{path} line {number}"
        if not fields:
            continue
        if len(fields) != 4 or whole_number(fields[0]) is None:
            raise UserError(
                f"{where}: expected the number of an identity, modality, camera and track, found "
                f"{shorten(text)}"
            )
        line = _Line(where, *fields)
        if line.modality not in modalities:
            raise UserError(
                f"{where}: modality {line.modality}, expected {' or '.join(modalities)}"
            )
        if line.camera not in CAMERAS:
            raise UserError(
                f"{where}: unknown camera {line.camera}, expected one of {', '.join(CAMERAS)}"
            )
        yield line


def _frames(paths: dict, line: _Line, modality: str) -> tuple[str, ...]:
    """The frames of one tracklet, relative to ``DATA``."""
    keys = (line.pid, modality, line.camera, line.track)
    found: Any = paths
    for key in keys:
        found = found.get(key) if isinstance(found, dict) else None
    if not (isinstance(found, list) and found):
        raise UserError(
            f"{line.where}: {PATHS} lists no frames of tracklet {'/'.join(keys)}: both files must "
            "come from the same copy of the dataset"
        )
    folder = f"{line.pid}/{modality}/{line.camera}/"
    frames = []
    for entry in found:
        name = str(entry).removeprefix(f"{FRAMES}/").removeprefix(folder)
        if "/" in name or "." not in name.strip("."):
            raise UserError(
                f"{PATHS}: {shorten(entry)} is not a frame of tracklet {'/'.join(keys)} "
                f"({line.where}): expected {folder}NAME.jpg, {FRAMES}/{folder}NAME.jpg or NAME.jpg"
            )
        frames.append(folder + name)
    return tuple(frames)
