"""Which crops there are to look at: all frames of a dataset, or all images below a folder."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from fastreid_star.data.build import is_video_dataset
from fastreid_star.data.check import open_dataset
from fastreid_star.data.folders import IMAGE_SUFFIXES, natural_key
from fastreid_star.errors import UserError
from fastreid_star.structures import Tracklet


@dataclass(frozen=True)
class Frames:
    """Crops in a fixed order.

    Args:
        root: the folder that all of them lie in.
        keys: what the skeleton store calls each, ``0001/ir/D4/1``.
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

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the keys in their order: two lists with the same digest are of the same frames."""
        digest = hashlib.sha256()
        for key in self.keys:
            digest.update(key.encode("utf-8", "surrogateescape") + b"\0")
        return digest.hexdigest()


def frames_of_dataset(name: str, root: str) -> Frames:
    """Every frame of every tracklet of a dataset, training and test, short tracklets too.

    Args:
        name: as registered, such as HITSZVCM or BUPTCampus.
        root: the folder that holds the dataset's own folder; empty: $FASTREID_DATASETS or ./datasets.

    Raises:
        UserError: no such dataset, one of images, or the dataset's own complaints.
    """
    if not is_video_dataset(name):
        raise UserError(f"{name} is a dataset of images: give --images the folder of its crops")
    dataset = open_dataset(name, root, check_frames=True)
    return frames_of_tracklets([*dataset.train, *dataset.query, *dataset.gallery], dataset.folder)


def frames_of_tracklets(tracklets: Iterable[Tracklet], root: str) -> Frames:
    """The frames of some tracklets, a frame of several of them once.

    Args:
        root: a folder that holds the roots of all of them.

    Raises:
        UserError: there is none, or two files go by one key.
    """
    files: dict[str, str] = {}
    for tracklet in tracklets:
        folder = os.path.relpath(tracklet.root, root)
        folder = "" if folder == os.curdir else folder
        for index, frame in enumerate(tracklet.frames):
            _add(files, tracklet.key(index), os.path.join(folder, frame))
    if not files:
        raise UserError(f"{root} has no tracklets")
    return Frames(root, list(files), list(files.values()))


def frames_of_folder(folder: str | os.PathLike) -> Frames:
    """All images below a folder, in natural order: 2.jpg before 10.jpg. Hidden files and folders are passed over.

    Raises:
        UserError: no such folder, no image in it, or two that differ in the suffix alone.
    """
    folder = os.fspath(folder)
    if not os.path.isdir(folder):
        raise UserError(f"--images {folder}: there is no such folder")
    found = []
    for place, below, names in os.walk(folder, onerror=_refuse):
        below[:] = [name for name in below if not name.startswith(".")]
        inside = os.path.relpath(place, folder)
        inside = "" if inside == os.curdir else inside.replace(os.sep, "/") + "/"
        found += [
            inside + name
            for name in names
            if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")
        ]
    files: dict[str, str] = {}
    for name in sorted(found, key=natural_key):
        _add(files, name.rpartition(".")[0], name)
    if not files:
        raise UserError(f"--images {folder}: no image is in there ({', '.join(IMAGE_SUFFIXES)})")
    return Frames(folder, list(files), list(files.values()))


def _add(files: dict[str, str], key: str, path: str) -> None:
    if files.setdefault(key, path) != path:
        raise UserError(
            f"{files[key]} and {path} would share the skeleton {key}: rename one of them"
        )


def _refuse(error: OSError) -> None:
    raise UserError(f"--images: {error.filename} cannot be listed: {error.strerror}")
