"""BUPTCampus: a JSON file that lists the frames, text files that list the tracklets, and folders of JPEG crops."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from fastreid.config import CfgNode
from fastreid.data.datasets import DATASET_REGISTRY

from fastreid_star.data.contents import read_json, read_lines, shown, whole_number
from fastreid_star.data.datasets.base import ListedTracklet, VideoDataset
from fastreid_star.errors import UserError
from fastreid_star.structures import Modality, Tracklet

FRAMES, PATHS = "DATA", "data_paths.json"
TRAIN, AUXILIARY, QUERY, GALLERY = "train.txt", "train_auxiliary.txt", "query.txt", "gallery.txt"
CAMERAS = {"LS3": 0, "G25": 1, "CQ1": 2, "W4": 3, "TSG1": 4, "TSG2": 5}

# The modalities as the dataset writes them. A training line stands for two tracklets.
_FOLDERS = {Modality.VISIBLE: "RGB", Modality.INFRARED: "IR"}
_PAIR = {"RGB/IR": (Modality.VISIBLE, Modality.INFRARED)}
_SINGLE = {folder: (modality,) for modality, folder in _FOLDERS.items()}

# A file name and nothing else: no separator, no drive, no "..".
_NAME = re.compile(r"\w[\w.-]*\.\w+", re.ASCII)

# Tracklets, frames in them, identities.
PUBLISHED = {
    (TRAIN, Modality.INFRARED): (3574, 398069, 1074),
    (TRAIN, Modality.VISIBLE): (3574, 398069, 1074),
    (AUXILIARY, Modality.INFRARED): (930, 104575, 930),
    (AUXILIARY, Modality.VISIBLE): (930, 104575, 930),
    (QUERY, Modality.INFRARED): (536, 53417, 536),
    (QUERY, Modality.VISIBLE): (540, 48521, 540),
    (GALLERY, Modality.INFRARED): (2422, 298771, 1076),
    (GALLERY, Modality.VISIBLE): (2422, 298771, 1076),
}
_COUNTED = ("tracklets", "frames", "identities")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BUPTCampusOptions:
    """What can be chosen about BUPTCampus.

    Args:
        auxiliary: DATASETS.BUPT_AUXILIARY, train on the pairs of ``train_auxiliary.txt`` too.
    """

    auxiliary: bool = False


@DATASET_REGISTRY.register()
class BUPTCampus(VideoDataset):
    """BUPTCampus, video visible-infrared person re-identification.

    Reference:
        Du et al. Video-based Visible-Infrared Person Re-Identification with Auxiliary Samples. IEEE Transactions on
        Information Forensics and Security 19, 2024.

    URL: `<https://github.com/dyhBUPT/BUPTCampus>`_

    Licence:
        For academic use; it must not be passed on.

    Dataset statistics:
        - identities: 1,074 (train) + 1,076 (test) + 930 (auxiliary).
        - train: 3,574 pairs of a visible and an infrared tracklet, aligned frame by frame; 796,138 frames.
        - query: 1,076 tracklets, one an identity: 536 infrared, 540 visible; 101,938 frames.
        - gallery: 4,844 tracklets: 2,422 infrared, 2,422 visible; 597,542 frames.
        - auxiliary: 930 pairs, one an identity; 209,150 frames.
        - cameras: LS3, G25, CQ1, W4, TSG1 and TSG2, here 0 to 5 in this order; each films in both modalities.

    Protocol of the published numbers: all tracklets, however short (DATASETS.MIN_FRAMES 1); I2V looks for the infrared
    queries among the visible gallery entries, V2I for the visible ones among the infrared; no gallery entry is left
    out (TEST.CAMERA_FILTER False). The dataset's own program loses what does not fill its last batch of 64, 28 visible
    queries and 54 visible gallery entries, so its numbers are of the rest; here, as in later programs, all count.

    Layout::

        data_paths.json    {pid: {IR or RGB: {camera: {track: [frame, ...]}}}}, all of them strings
        train.txt          lines "pid RGB/IR camera track": two tracklets each
        query.txt, gallery.txt    lines "pid IR camera track" or "pid RGB camera track"
        train_auxiliary.txt       as train.txt; read where it is asked for
        DATA/1746/IR/TSG2/1746_IR_TSG2_1_8535.jpg

    A frame in ``data_paths.json`` is a path relative to ``DATA``, as published, or to the dataset's folder (with
    ``DATA/`` in front), or a bare file name; it lies in ``DATA/pid/modality/camera``, and any other path is refused.
    Frames keep the order of their list. Their names are relative to ``DATA``, so a skeleton's key is
    ``1746/IR/TSG2/1746_IR_TSG2_1_8535``. No image is opened here.

    The auxiliary pairs are training identities like the others when they are asked for. Their two tracklets are the
    same seconds before the same camera, so they teach little across cameras; the authors give them a triplet loss of
    their own with a falling weight, which this is not. ``DATA/pid/FakeIR`` holds visible frames that a network has
    turned infrared. They replace the visible ones, in the test too, and add no tracklets: they are not read.

    Args:
        root: the folder that holds ``BUPTCampus``, or that folder itself.
        min_frames: shorter tracklets are left out, in the test set too.
        check_frames: see that the folders of the first, the last and some other tracklets exist.
        options: None: the defaults.

    Raises:
        UserError: something is missing, malformed or contradicts itself; the message names the file and line.
    """

    dataset_dir = "BUPTCampus"
    dataset_name = "bupt_campus"

    def __init__(
        self,
        root: str = "datasets",
        *,
        min_frames: int = 1,
        check_frames: bool = True,
        options: BUPTCampusOptions | None = None,
        **kwargs,
    ):
        folder = _dataset_folder(os.fspath(root), self.dataset_dir)
        auxiliary = options is not None and options.auxiliary
        train = (TRAIN, AUXILIARY) if auxiliary else (TRAIN,)
        names = (*train, QUERY, GALLERY)
        _check_files(folder, names)
        paths = _read_paths(os.path.join(folder, PATHS))
        tracklets = {name: _read_tracklets(folder, name, paths) for name in names}
        _compare_with_published(tracklets)
        if check_frames:
            _check_folders(folder, tracklets)

        kept = {
            name: [t for t in listed if len(t) >= min_frames] for name, listed in tracklets.items()
        }
        for name, listed in kept.items():
            if not listed:
                raise UserError(
                    f"{os.path.join(folder, name)}: no tracklet has {min_frames} frames or more: lower "
                    "DATASETS.MIN_FRAMES"
                )
        dropped = {
            (split, modality): sum(
                len(t) < min_frames and t.modality == modality for n in files for t in tracklets[n]
            )
            for split, files in (("train", train), ("query", (QUERY,)), ("gallery", (GALLERY,)))
            for modality in Modality
        }
        super().__init__(
            [tracklet for name in train for tracklet in kept[name]],
            kept[QUERY],
            kept[GALLERY],
            folder=folder,
            min_frames=min_frames,
            dropped=dropped,
            **kwargs,
        )

    @staticmethod
    def options_from_config(cfg: CfgNode) -> BUPTCampusOptions:
        """What a config asks for; the loaders pass it as `options`."""
        return BUPTCampusOptions(auxiliary=cfg.DATASETS.BUPT_AUXILIARY)

    def show_test(self) -> None:
        """Log a table of the queries and one of the gallery."""
        self._show("query", self.query)
        self._show("gallery", self.gallery)


class _Line(NamedTuple):
    """One line of a list: where it stands, and its four fields as they are written."""

    where: str
    pid: str
    modality: str
    camera: str
    track: str


def _dataset_folder(root: str, name: str) -> str:
    folder = os.path.join(root, name)
    if os.path.isdir(folder):
        return folder
    if any(os.path.exists(os.path.join(root, file)) for file in (PATHS, TRAIN, QUERY, GALLERY)):
        return root
    raise UserError(
        f"no {name} in {root}: neither {folder} nor the files {PATHS}, {TRAIN}, {QUERY}, {GALLERY} are there; "
        "set DATASETS.ROOT or FASTREID_DATASETS to the folder that holds it"
    )


def _check_files(folder: str, lists: Iterable[str]) -> None:
    missing = [name for name in (PATHS, *lists) if not os.path.isfile(os.path.join(folder, name))]
    if missing:
        raise UserError(
            f"{folder} lacks {', '.join(missing)}: copy all lists of the dataset into it"
        )


def _read_paths(path: str) -> dict:
    paths = read_json(path)
    if not isinstance(paths, dict):
        raise UserError(f"{path} is not a table of identities: copy the dataset's own file")
    return paths


def _read_tracklets(folder: str, name: str, paths: dict) -> list[Tracklet]:
    """The tracklets of one list, in its order; of a pair the visible one first."""
    root = os.path.join(folder, FRAMES)
    role = {QUERY: "query", GALLERY: "gallery"}.get(name)
    modalities = _SINGLE if role else _PAIR
    tracklets = []
    for line in _read_list(os.path.join(folder, name), modalities):
        for modality in modalities[line.modality]:
            frames = _frames(paths, line, _FOLDERS[modality], os.path.join(folder, PATHS))
            fields = (int(line.pid), CAMERAS[line.camera], modality, root, frames)
            tracklets.append(ListedTracklet(*fields, role) if role else Tracklet(*fields))
    if not tracklets:
        raise UserError(
            f"{os.path.join(folder, name)} lists no tracklet: copy the dataset's own file"
        )
    return tracklets


def _read_list(path: str, modalities: Iterable[str]) -> list[_Line]:
    """The lines of a list; empty ones are passed over."""
    lines = []
    for number, text in enumerate(read_lines(path), start=1):
        fields, where = text.split(), f"{path} line {number}"
        if not fields:
            continue
        if len(fields) != 4 or not text.isascii() or whole_number(fields[0]) is None:
            raise UserError(
                f"{where}: expected an identity's number, modality, camera and track, found {shown(text)}"
            )
        line = _Line(where, *fields)
        if line.modality not in modalities:
            raise UserError(
                f"{where}: modality {line.modality}, expected {' or '.join(modalities)}"
            )
        if line.camera not in CAMERAS:
            raise UserError(f"{where}: there is no camera {line.camera}, only {', '.join(CAMERAS)}")
        lines.append(line)
    if len(lines) > len({line[1:] for line in lines}):
        _warn_of_repetitions(path, lines)
    return lines


def _warn_of_repetitions(path: str, lines: Sequence[_Line]) -> None:
    seen: dict[tuple[str, ...], str] = {}
    again = [line for line in lines if seen.setdefault(line[1:], line.where) != line.where]
    logger.warning(
        "%s has %d lines twice, the first of them %s: they count twice",
        path,
        len(again),
        again[0].where,
    )


def _frames(paths: dict, line: _Line, modality: str, source: str) -> tuple[str, ...]:
    """The frames of one tracklet, relative to ``DATA``; `source` is the file that `paths` are from."""
    keys = (line.pid, modality, line.camera, line.track)
    found: Any = paths
    for key in keys:
        found = found.get(key) if isinstance(found, dict) else None
    if not (isinstance(found, list) and found):
        raise UserError(
            f"{line.where}: {source} lists no frames of tracklet {'/'.join(keys)}: both files must come from the same "
            "copy of the dataset"
        )
    folder = f"{line.pid}/{modality}/{line.camera}/"
    prefixes = (folder, f"{FRAMES}/{folder}", "")
    frames = []
    for entry in found:
        name = entry if isinstance(entry, str) else ""
        name = name.removeprefix(next(prefix for prefix in prefixes if name.startswith(prefix)))
        if not _NAME.fullmatch(name):
            raise UserError(
                f"{source}: {shown(entry)} is not a frame of tracklet {'/'.join(keys)} ({line.where}): expected "
                f"{folder}NAME.jpg, relative to {FRAMES} or with {FRAMES}/ in front, or NAME.jpg alone"
            )
        frames.append(folder + name)
    return tuple(frames)


def _check_folders(folder: str, tracklets: Mapping[str, Sequence[Tracklet]]) -> None:
    for name, listed in tracklets.items():
        for i in range(8):
            place = os.path.dirname(listed[i * (len(listed) - 1) // 7].path(0))
            if not os.path.isdir(place):
                raise UserError(
                    f"{place} is missing, though {name} lists a tracklet in it: unpack all images into "
                    f"{os.path.join(folder, FRAMES)}"
                )


def _compare_with_published(tracklets: Mapping[str, Sequence[Tracklet]]) -> None:
    """Only where the number of tracklets says that this is the real set, or most of it."""
    differences = []
    for name, listed in tracklets.items():
        if len(listed) < 0.9 * sum(PUBLISHED[name, modality][0] for modality in Modality):
            return
        for modality in Modality:
            chosen = [t for t in listed if t.modality == modality]
            counts = (len(chosen), sum(map(len, chosen)), len({t.pid for t in chosen}))
            for what, count, right in zip(_COUNTED, counts, PUBLISHED[name, modality], strict=True):
                if count != right:
                    differences.append(
                        f"{name} {modality.name.lower()} {what} {count} instead of {right}"
                    )
    if differences:
        logger.warning(
            "BUPTCampus: counts differ from the published ones: %s", "; ".join(differences)
        )
    else:
        logger.info("BUPTCampus: counts equal the published ones")
