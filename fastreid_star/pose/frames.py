"""The crops of an extraction: all frames of a dataset, or all images below a folder."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import Dataset

from fastreid_star.data.build import is_video_dataset
from fastreid_star.data.check import open_dataset
from fastreid_star.data.folders import IMAGE_SUFFIXES, image_folders, natural_key
from fastreid_star.data.io import PAUSES, BrokenImage, LostImage, read_frame
from fastreid_star.errors import UserError

KEPT = "repeat the command; finished parts are kept"


@dataclass(frozen=True)
class Frames:
    """Crops in a fixed order.

    Args:
        root: the folder that contains all of them.
        keys: the name of each in the skeleton store, such as ``0001/ir/D4/1``.
        paths: the file of each, relative to `root`.
        groups: the tracklet of each; empty: each folder of the keys is one.
    """

    root: str
    keys: Sequence[str]
    paths: Sequence[str]
    groups: Sequence[int] = ()

    def __len__(self) -> int:
        return len(self.keys)

    def path(self, index: int) -> str:
        """The file of one crop."""
        return os.path.join(self.root, self.paths[index])

    def tracklets(self) -> list[list[int]]:
        """The indices of the crops of each tracklet, in their order."""
        rows: dict[Any, list[int]] = {}
        groups: Sequence[Any] = self.groups or [key.rpartition("/")[0] for key in self.keys]
        for row, group in enumerate(groups):
            rows.setdefault(group, []).append(row)
        return list(rows.values())

    def digest(self) -> str:
        """SHA-256 of the keys in their order."""
        names = (key.encode("utf-8", "surrogateescape") + b"\0" for key in self.keys)
        return hashlib.sha256(b"".join(names)).hexdigest()


class Crop(NamedTuple):
    """A crop prepared for the network, or the problem with its file."""

    prepared: Any
    problem: str = ""


class Crops(Dataset):
    """Reads frames and prepares them, in the worker processes of a loader."""

    def __init__(self, frames: Frames, prepare: Callable[[np.ndarray], Any]):
        self.frames, self.prepare = frames, prepare

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> Crop:
        path = self.frames.path(index)
        try:
            image = read_patiently(path)
        except BrokenImage as error:
            # the same text on each machine: without the folder of the crops
            return Crop(None, str(error).replace(path, self.frames.paths[index]))
        return Crop(self.prepare(image))


def read_patiently(path: str) -> np.ndarray:
    """An image; if the disk fails, it is tried again after the pauses of PAUSES.

    Raises:
        BrokenImage: the file is not a readable image.
        UserError: the disk failed each time.
    """
    for pause in PAUSES:
        try:
            return read_frame(path)
        except LostImage:
            time.sleep(pause)
    try:
        return read_frame(path)
    except LostImage as error:
        raise UserError(
            f"{error}: check the disk and the rights of the file, and {KEPT}"
        ) from error


def frames_of_dataset(name: str, root: str) -> Frames:
    """Each frame of each tracklet of a dataset: training and test, short tracklets too.

    Args:
        name: as registered, such as HITSZVCM or BUPTCampus.
        root: as DATASETS.ROOT; empty: $FASTREID_DATASETS or ./datasets.

    Raises:
        UserError: the dataset is unknown, cannot be opened, or is one of images.
    """
    if not is_video_dataset(name):
        raise UserError(f"{name} is a dataset of images: give the folder of its crops by --images")
    dataset = open_dataset(name, root, check_frames=True)
    files = []
    groups: dict[str, int] = {}
    for number, tracklet in enumerate((*dataset.train, *dataset.query, *dataset.gallery)):
        folder = os.path.relpath(tracklet.root, dataset.folder)
        for index, frame in enumerate(tracklet.frames):
            files.append((tracklet.key(index), os.path.normpath(os.path.join(folder, frame))))
            groups.setdefault(tracklet.key(index), number)
    return replace(_frames(dataset.folder, files), groups=list(groups.values()))


def frames_of_folder(folder: str | os.PathLike) -> Frames:
    """All images below a folder in natural order: 2.jpg before 10.jpg.

    Hidden files and folders are skipped; links to folders are followed.

    Raises:
        UserError: the folder does not exist or contains no image, or two images differ in their
            suffix only.
    """
    if not os.path.isdir(folder):
        raise UserError(f"--images {folder}: there is no such folder")
    found = [
        (inside / name).as_posix()
        for inside, names in image_folders(Path(folder))
        for name in names
    ]
    if not found:
        raise UserError(f"--images {folder}: no image found ({', '.join(IMAGE_SUFFIXES)})")
    found.sort(key=natural_key)
    return _frames(folder, ((name.rpartition(".")[0], name) for name in found))


def _frames(folder: str | os.PathLike, files: Iterable[tuple[str, str]]) -> Frames:
    """Frames of (key, path) pairs; a pair may appear twice, a key with two paths may not."""
    paths: dict[str, str] = {}
    for key, path in files:
        if paths.setdefault(key, path) != path:
            raise UserError(f"{paths[key]} and {path} have the same key {key}: rename one of them")
    return Frames(os.fspath(folder), list(paths), list(paths.values()))
