"""BUPTCampus: a JSON file of frames, text files that list the tracklets, folders of JPEG crops."""

from __future__ import annotations

import os
import re
from typing import Any, ClassVar

from fastreid.config import CfgNode
from fastreid.data.datasets import DATASET_REGISTRY

from fastreid_star.data.datasets.base import (
    ListedTracklet,
    VideoDataset,
    check_images,
    find_folder,
    published_counts,
    require_files,
)
from fastreid_star.data.io import read_json, read_lines
from fastreid_star.errors import UserError
from fastreid_star.structures import Modality, Tracklet

FRAMES, PATHS = "DATA", "data_paths.json"
TRAIN, AUXILIARY, QUERY, GALLERY = "train.txt", "train_auxiliary.txt", "query.txt", "gallery.txt"
CAMERAS = {"LS3": 0, "G25": 1, "CQ1": 2, "W4": 3, "TSG1": 4, "TSG2": 5}

TESTS = ("all", "authors")
BATCH = 64  # of the authors' test program

# The modalities as the dataset writes them. A training line stands for two tracklets.
_FOLDERS = {Modality.VISIBLE: "RGB", Modality.INFRARED: "IR"}
_PAIR = {"RGB/IR": [Modality.VISIBLE, Modality.INFRARED]}
_SINGLE = {folder: [modality] for modality, folder in _FOLDERS.items()}


@DATASET_REGISTRY.register()
class BUPTCampus(VideoDataset):
    """BUPTCampus, video visible-infrared person re-identification.

    Reference:
        Du et al. Video-based Visible-Infrared Person Re-Identification with Auxiliary Samples.
        IEEE Transactions on Information Forensics and Security 19, 2024.

    URL: `<https://github.com/dyhBUPT/BUPTCampus>`_

    License:
        For academic use; it must not be passed on.

    Dataset statistics: see `published`; besides, 930 auxiliary pairs of 930 identities. The visible
    and the infrared tracklet of a training pair are aligned frame by frame. Each camera films in
    both modalities.

    Three protocols are in use, whose numbers are not comparable. All take tracklets of any length
    (DATASETS.MIN_FRAMES 1):

    - ``all``: all tracklets; no gallery entry is left out (TEST.CAMERA_FILTER False).
    - ``camera``: all tracklets; entries with the query's identity and camera are left out
      (TEST.CAMERA_FILTER True), as in the program of M3-ReID.
    - ``authors``: as ``all``, without the last 28 visible queries and the last 54 visible gallery
      entries (DATASETS.BUPT_TEST authors): the sampler of the dataset's program drops incomplete
      batches of 64.

    Layout::

        data_paths.json           {pid: {IR or RGB: {camera: {track: [frame, ...]}}}}
        train.txt                 lines "pid RGB/IR camera track": two tracklets each
        query.txt, gallery.txt    lines "pid IR camera track" or "pid RGB camera track"
        train_auxiliary.txt       as train.txt, optional
        DATA/1746/IR/TSG2/1746_IR_TSG2_1_8535.jpg

    A frame in ``data_paths.json`` is a path relative to ``DATA``, as published, or to the dataset's
    folder, or a bare file name. A skeleton key is ``1746/IR/TSG2/1746_IR_TSG2_1_8535``.

    ``train_auxiliary.txt`` has further identities under one camera each. Two keys use it:
    ``DATASETS.AUXILIARY ("BUPTCampusAuxiliary",)``, as the authors do, and
    DATASETS.BUPT_AUXILIARY, as training identities like the others. ``DATA/pid/FakeIR`` is not
    read.

    Args:
        root: the folder that holds ``BUPTCampus``, or that folder itself.
        min_frames: shorter tracklets are left out, in the test set too.
        check_frames: check that images of some tracklets exist.
        auxiliary: DATASETS.BUPT_AUXILIARY, train on the pairs of ``train_auxiliary.txt`` too.
        test: DATASETS.BUPT_TEST, ``all`` test tracklets or those of the ``authors``' program.

    Raises:
        UserError: something is missing, malformed or contradictory; the message names file and
            line.
    """

    dataset_dir = "BUPTCampus"
    dataset_name = "bupt_campus"
    train_lists: tuple[str, ...] = (TRAIN,)
    published: ClassVar = {
        "train infrared": published_counts(3574, 398069, 1074),
        "train visible": published_counts(3574, 398069, 1074),
        "query infrared": published_counts(536, 53417, 536),
        "query visible": published_counts(540, 48521, 540),
        "gallery infrared": published_counts(2422, 298771, 1076),
        "gallery visible": published_counts(2422, 298771, 1076),
    }

    def __init__(
        self,
        root: str = "datasets",
        *,
        min_frames: int = 1,
        check_frames: bool = True,
        auxiliary: bool = False,
        test: str = "all",
        **kwargs,
    ):
        if test not in TESTS:
            raise UserError(f"DATASETS.BUPT_TEST is {test!r}: choose one of {', '.join(TESTS)}")
        folder = find_folder(root, self.dataset_dir, (PATHS, TRAIN, QUERY, GALLERY))
        trained = dict.fromkeys((*self.train_lists, *([AUXILIARY] if auxiliary else [])))
        names = [*trained, QUERY, GALLERY]
        require_files(folder, [PATHS, *names])
        paths = read_json(os.path.join(folder, PATHS))
        lists = {name.removesuffix(".txt"): _read_list(folder, name, paths) for name in names}
        self.compare_with_published(lists)
        if check_frames:
            for name, tracklets in lists.items():
                check_images(name, tracklets)
        train = [tracklet for name in trained for tracklet in lists[name.removesuffix(".txt")]]
        tested = [lists["query"], lists["gallery"]]
        if test == "authors":
            tested = [_whole_batches(tracklets) for tracklets in tested]
        super().__init__(train, *tested, folder=folder, min_frames=min_frames, **kwargs)

    @staticmethod
    def arguments(cfg: CfgNode) -> dict[str, Any]:
        return {"auxiliary": cfg.DATASETS.BUPT_AUXILIARY, "test": cfg.DATASETS.BUPT_TEST}

    @staticmethod
    def protocol_name(cfg: CfgNode) -> str:
        test, camera = cfg.DATASETS.BUPT_TEST, cfg.TEST.CAMERA_FILTER
        if test == "all" and camera:
            return "camera"
        return f"{test} with the camera filter (not in use)" if camera else test


@DATASET_REGISTRY.register()
class BUPTCampusAuxiliary(BUPTCampus):
    """:class:`BUPTCampus` with the pairs of ``train_auxiliary.txt`` as its training set."""

    train_lists = (AUXILIARY,)


def _whole_batches(tracklets: list[Tracklet]) -> list[Tracklet]:
    """The tracklets without the last incomplete batch of visible ones."""
    visible = [t for t in tracklets if t.modality == Modality.VISIBLE]
    if len(visible) < BATCH:
        raise UserError(
            f"DATASETS.BUPT_TEST authors drops the last incomplete batch of {BATCH} visible "
            f"tracklets, but a test list has only {len(visible)}: set it to all"
        )
    dropped = set(visible[len(visible) - len(visible) % BATCH :])
    return [tracklet for tracklet in tracklets if tracklet not in dropped]


def _read_list(folder: str, name: str, paths: Any) -> list[Tracklet]:
    """The tracklets of one list, in its order; of a pair the visible one first."""
    root, path = os.path.join(folder, FRAMES), os.path.join(folder, name)
    role = {QUERY: "query", GALLERY: "gallery"}.get(name)
    modalities = _SINGLE if role else _PAIR
    pattern = re.compile(rf"(\d+)\s+({'|'.join(modalities)})\s+({'|'.join(CAMERAS)})\s+(\S+)")
    tracklets: list[Tracklet] = []
    for number, text in enumerate(read_lines(path), start=1):
        found = pattern.fullmatch(text)
        if found is None:
            raise UserError(
                f"{path} line {number}: expected an identity, {' or '.join(modalities)}, a camera "
                f"({', '.join(CAMERAS)}) and a track, found {text!r}"
            )
        pid, kind, camera, track = found.groups()
        for modality in modalities[kind]:
            keys = (pid, _FOLDERS[modality], camera, track)
            frames = _frames(paths, keys)
            if not frames:
                raise UserError(
                    f"{path} line {number}: {PATHS} lists no frames of tracklet {'/'.join(keys)}: "
                    "both files must come from the same copy of the dataset"
                )
            fields = (int(pid), CAMERAS[camera], modality, root, frames)
            tracklets.append(ListedTracklet(*fields, role) if role else Tracklet(*fields))
    if not tracklets:
        raise UserError(f"{path} lists no tracklet: copy the dataset's own file")
    return tracklets


def _frames(paths: Any, keys: tuple[str, ...]) -> tuple[str, ...]:
    """The frames of one tracklet, relative to ``DATA``; none if `paths` does not list it.

    Args:
        paths: the content of ``data_paths.json``.
        keys: pid, modality, camera and track.
    """
    for key in keys:
        paths = paths.get(key) if isinstance(paths, dict) else None
    folder = "/".join(keys[:3])
    return tuple(f"{folder}/{os.path.basename(str(path))}" for path in paths or ())
