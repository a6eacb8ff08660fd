"""The crops of an extraction: all frames of a dataset, or all images below a folder."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from fastreid_star.data.build import is_video_dataset
from fastreid_star.data.check import open_dataset
from fastreid_star.data.folders import IMAGE_SUFFIXES, natural_key
from fastreid_star.data.io import PAUSES, BrokenImage, LostImage, read_frame
from fastreid_star.errors import UserError


@dataclass(frozen=True)
class Frames:
    """Crops in a fixed order.

    Args:
        root: the folder that contains all of them.
        keys: the name of each in the skeleton store, such as ``0001/ir/D4/1``.
        paths: the file of each, relative to `root`.
    """

    root: str
    keys: Sequence[str]
    paths: Sequence[str]

    def __len__(self) -> int:
        return len(self.keys)

    def path(self, index: int) -> str:
        """The file of one crop."""
        return os.path.join(self.root, self.paths[index])

    def digest(self) -> str:
        """SHA-256 of the keys in their order."""
        names = (key.encode("utf-8", "surrogateescape") + b"\0" for key in self.keys)
        return hashlib.sha256(b"".join(names)).hexdigest()


@dataclass(frozen=True)
class Crop:
    """A crop prepared for the network, or why it is not; `lost` if the disk is the reason."""

    prepared: Any
    size: tuple[int, int]
    problem: str = ""
    lost: bool = False


class Crops(Dataset):
    """Reads frames and prepares them, in the worker processes of a loader."""

    def __init__(self, frames: Frames, prepare: Callable[[np.ndarray], Any]):
        self.frames, self.prepare = frames, prepare

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> Crop:
        path = self.frames.path(index)
        for pause in (*PAUSES, None):
            try:
                image = read_frame(path)
            except LostImage as error:
                if pause is None:
                    return Crop(None, (0, 0), str(error), lost=True)
                time.sleep(pause)
            except BrokenImage as error:
                # the same text on each machine: without the folder of the crops
                return Crop(None, (0, 0), str(error).replace(path, self.frames.paths[index]))
            else:
                height, width = image.shape[:2]
                return Crop(self.prepare(image), (width, height))
        raise AssertionError


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
    files: dict[str, str] = {}
    for tracklet in (*dataset.train, *dataset.query, *dataset.gallery):
        folder = os.path.normpath(os.path.relpath(tracklet.root, dataset.folder))
        for index, frame in enumerate(tracklet.frames):
            _add(files, tracklet.key(index), os.path.normpath(os.path.join(folder, frame)))
    return Frames(dataset.folder, list(files), list(files.values()))


def frames_of_folder(folder: str | os.PathLike) -> Frames:
    """All images below a folder in natural order: 2.jpg before 10.jpg. Hidden ones are skipped.

    Raises:
        UserError: the folder does not exist or contains no image, or two images differ in their
            suffix only.
    """
    folder = os.fspath(folder)
    if not os.path.isdir(folder):
        raise UserError(f"--images {folder}: there is no such folder")
    found = []
    for place, below, names in os.walk(folder, onerror=_refuse):
        below[:] = [name for name in below if not name.startswith(".")]
        inside = os.path.relpath(place, folder)
        inside = "" if inside == os.curdir else inside.replace(os.sep, "/") + "/"
        shown = [name for name in names if not name.startswith(".")]
        found += [inside + name for name in shown if name.lower().endswith(IMAGE_SUFFIXES)]
    files: dict[str, str] = {}
    for name in sorted(found, key=natural_key):
        _add(files, name.rpartition(".")[0], name)
    if not files:
        raise UserError(f"--images {folder}: no image found ({', '.join(IMAGE_SUFFIXES)})")
    return Frames(folder, list(files), list(files.values()))


def _add(files: dict[str, str], key: str, path: str) -> None:
    if files.setdefault(key, path) != path:
        raise UserError(f"{files[key]} and {path} have the same key {key}: rename one of them")


def _refuse(error: OSError) -> None:
    raise UserError(f"--images: {error.filename} cannot be listed: {error.strerror}")
