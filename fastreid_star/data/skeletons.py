"""Stores of skeletons, read by frame key.

Shapes: N stored frames, n frames of one request, V = 17 COCO joints. A joint is (x, y, score):
pixels of the crop, with the center of the first pixel at (0, 0), and the pose estimator's score.

There are two formats. A flat store is a folder with ``skeletons.npy`` (float32 [N,V,3],
memory-mapped) and ``index.json``. It reads clips about a hundred times faster than the HDF5 file of
STAR's authors, which has one dataset per frame, ``0001/ir/D4/1`` -> (V, 3).

A frame has no skeleton if one of its 51 values is not finite or larger than a million. All other
values are used as they are: pose estimators' scores have no common scale.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import h5py
import numpy as np

from fastreid_star.coco import NUM_JOINTS
from fastreid_star.data.io import read_json, reason
from fastreid_star.errors import UserError
from fastreid_star.files import write_whole

ARRAY_FILE, INDEX_FILE = "skeletons.npy", "index.json"
HDF5_SUFFIXES = (".h5", ".hdf5")
META_ATTRIBUTE = "meta"  # of our HDF5 files: `meta` as JSON
VERSION = 1
SHAPE = (NUM_JOINTS, 3)
MAX_VALUE = 1e6  # larger values are errors: no image is as large


class SkeletonStore(ABC):
    """Skeletons by key. Only the path is pickled, and reading after a fork is safe.

    Attributes:
        path: of the folder or file.
        meta: description of the origin of the skeletons, JSON values; may be empty.
    """

    meta: dict

    def __init__(self, path: str):
        self.path = path

    @staticmethod
    def open(path: str | os.PathLike) -> SkeletonStore:
        """Open a flat store (a folder) or an HDF5 file (``.h5``, ``.hdf5``).

        Raises:
            UserError: `path` does not exist or is not a valid store.
        """
        path = os.fspath(path)
        if not os.path.exists(path):
            raise UserError(
                f"skeleton store {path} does not exist: extract skeletons first, or set "
                "DATASETS.SKELETONS '' to train without"
            )
        if os.path.isdir(path):
            return FlatStore(path)
        if path.lower().endswith(HDF5_SUFFIXES):
            return Hdf5Store(path)
        raise UserError(
            f"skeleton store {path} is neither a folder with {ARRAY_FILE} nor an .h5 or .hdf5 file"
        )

    def read(self, keys: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """The skeletons of some frames.

        Args:
            keys: n keys such as ``0001/ir/D4/1``.

        Returns:
            joints, float32 [n,V,3], zeros for a frame without skeleton; present, bool [n]. The
            arrays are copies.
        """
        joints = self.raw(keys)
        present = is_valid(joints)
        joints[~present] = 0
        return joints, present

    @abstractmethod
    def raw(self, keys: Sequence[str]) -> np.ndarray:
        """The stored values of some frames, float32 [n,V,3].

        NaN for a frame that is not in the store, or whose values have another shape.
        """

    @abstractmethod
    def keys(self) -> list[str]:
        """All keys, including those of frames without a valid skeleton."""

    def __len__(self) -> int:
        return len(self.keys())

    @abstractmethod
    def __contains__(self, key: str) -> bool: ...

    def close(self) -> None:
        """Close the file; the next read opens it again."""
        return

    def __reduce__(self):
        return type(self), (self.path,)


class FlatStore(SkeletonStore):
    """``skeletons.npy`` and ``index.json``, as :func:`write_skeleton_store` writes them."""

    def __init__(self, path: str):
        super().__init__(path)
        index = read_json(os.path.join(path, INDEX_FILE))
        try:
            # no code in the file is run; a plain view, since indexing np.memmap itself is slower
            array = np.load(os.path.join(path, ARRAY_FILE), mmap_mode="r", allow_pickle=False)
            self._array = np.asarray(array)
        except (OSError, ValueError, EOFError) as error:
            raise UserError(
                f"skeleton store {path}: {ARRAY_FILE} cannot be read ({reason(error)}): make the "
                "store again"
            ) from error
        index = index if isinstance(index, dict) else {}
        version, keys = index.get("version"), index.get("keys")
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
            keys = []
        self._rows = {key: row for row, key in enumerate(keys)}
        expected = (len(self._rows), *SHAPE)
        found = (version, str(self._array.dtype), self._array.shape)
        if not self._rows or found != (VERSION, "float32", expected):
            raise UserError(
                f"skeleton store {path}: {INDEX_FILE} has version {version} and lists "
                f"{len(self._rows)} frames, and {ARRAY_FILE} holds {self._array.dtype} of the "
                f"shape {self._array.shape}; expected are version {VERSION} and float32 of the "
                f"shape {expected}: make the store again"
            )
        self.meta = index.get("meta", {})

    def raw(self, keys: Sequence[str]) -> np.ndarray:
        rows = np.array([self._rows.get(key, -1) for key in keys], np.intp)
        joints = self._array[rows]
        joints[rows < 0] = np.nan
        return joints

    def keys(self) -> list[str]:
        return list(self._rows)

    def __contains__(self, key: str) -> bool:
        return key in self._rows


class Hdf5Store(SkeletonStore):
    """The authors' HDF5 file. Each process opens it at its first read, after any fork."""

    def __init__(self, path: str):
        super().__init__(path)
        self._file: Any = None
        self._owner: int | None = None  # the process that opened it
        with self._opened() as file:
            self.meta = _parsed_meta(file.attrs.get(META_ATTRIBUTE))
            shape = file.visititems(lambda _, item: getattr(item, "shape", None))
        self.close()
        if shape != SHAPE:
            found = "no dataset" if shape is None else f"a dataset of the shape {shape}"
            raise UserError(f"skeleton store {path} holds {found}, expected {SHAPE} for each frame")

    def raw(self, keys: Sequence[str]) -> np.ndarray:
        joints = np.full((len(keys), *SHAPE), np.nan, np.float32)
        with self._opened() as file, np.errstate(over="ignore"):  # beyond float32 is infinite
            for row, key in zip(joints, keys, strict=True):
                dataset = file.get(key)
                if isinstance(dataset, h5py.Dataset) and dataset.shape == SHAPE:
                    row[:] = dataset[()]
        return joints

    def keys(self) -> list[str]:
        """All keys, sorted. It takes 6 seconds for HITSZ-VCM's 463,000 frames."""
        names: list[str] = []

        def visit(name: bytes, info) -> None:
            if info.type == h5py.h5o.TYPE_DATASET:
                names.append(name.decode())

        with self._opened() as file:
            h5py.h5o.visit(file.id, visit, info=True)  # faster than visititems
        return names

    def __contains__(self, key: str) -> bool:
        with self._opened() as file:
            return isinstance(file.get(key), h5py.Dataset)

    def close(self) -> None:
        if self._owner == os.getpid():
            self._file.close()
        self._file, self._owner = None, None

    @contextlib.contextmanager
    def _opened(self) -> Iterator[Any]:
        """The file; an error of h5py becomes a :class:`UserError`."""
        try:
            if self._owner != os.getpid():
                self._file, self._owner = h5py.File(self.path, "r"), os.getpid()
            yield self._file
        except Exception as error:  # h5py raises many types on a damaged file
            raise UserError(
                f"skeleton store {self.path} cannot be read ({reason(error)}): it is damaged or "
                "not an HDF5 file"
            ) from error


def _parsed_meta(text: Any) -> dict:
    """`meta` of an HDF5 file; empty if another program has written an attribute of this name."""
    try:
        meta = json.loads(text)
    except (TypeError, ValueError):
        return {}
    return meta if isinstance(meta, dict) else {}


def is_valid(joints: np.ndarray) -> np.ndarray:
    """Whether each of the frames has a skeleton: joints [n,V,3] to bool [n]."""
    return np.all(np.abs(joints) <= MAX_VALUE, axis=(1, 2))


def as_joints(values: Any) -> np.ndarray:
    """Joints of any real type as float32; values beyond float32 become infinite.

    Raises:
        UserError: they are not an array of numbers [n,V,3].
    """
    try:
        with np.errstate(over="ignore"):
            array = np.asarray(values, np.float32)
    # text, None, rows of different lengths, or a tensor with a gradient
    except (ValueError, TypeError, RuntimeError) as error:
        raise UserError(
            f"skeletons must be numbers of the shape (frames, {NUM_JOINTS}, 3): {reason(error)}"
        ) from error
    if array.shape[1:] != SHAPE:
        raise UserError(
            f"skeletons must be numbers of the shape (frames, {NUM_JOINTS}, 3), but have the shape "
            f"{array.shape}"
        )
    return array


def checked_joints(path: str, keys: Sequence[str], joints: Any) -> np.ndarray:
    """The joints of a store to be written, float32 [N,V,3].

    Raises:
        UserError: there are none, a key appears twice, or the sizes disagree.
    """
    joints = as_joints(joints)
    if not keys or len(set(keys)) != len(keys) or len(keys) != len(joints):
        raise UserError(
            f"skeletons for {path}: {len(keys)} keys, {len(set(keys))} of them different, and "
            f"{len(joints)} skeletons: give one of each for every frame"
        )
    return joints


def write_skeleton_store(
    folder: str | os.PathLike,
    keys: Sequence[str],
    joints: np.ndarray,
    meta: Mapping | None = None,
) -> None:
    """Write a flat store. It is written beside `folder` and then renamed, so it is never partial.

    Args:
        folder: an older store there is replaced; a folder with other files is not.
        keys: N different frame keys.
        joints: [N,V,3], stored as float32. A frame with NaN has no skeleton.
        meta: description of the origin of the skeletons, JSON values.

    Raises:
        UserError: no skeletons, sizes that disagree, or a `folder` that holds other files.
    """
    folder, keys = os.path.realpath(folder), list(keys)  # a link keeps pointing to its folder
    joints = np.ascontiguousarray(checked_joints(folder, keys, joints))
    if holds_something_else(folder):
        raise UserError(f"{folder} holds other files than a skeleton store: choose another folder")
    index = {"version": VERSION, "shape": joints.shape, "meta": dict(meta or {}), "keys": keys}
    text = json.dumps(index, separators=(",", ":"))
    new, old = f"{folder}.tmp{os.getpid()}", f"{folder}.old{os.getpid()}"
    try:
        os.makedirs(new)
        write_whole(os.path.join(new, ARRAY_FILE), lambda file: np.save(file, joints))
        write_whole(os.path.join(new, INDEX_FILE), lambda file: file.write(text.encode()))
        if os.path.exists(folder):
            os.rename(folder, old)
        os.rename(new, folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)
        if os.path.exists(old) and not os.path.exists(folder):  # the second rename failed
            os.rename(old, folder)
        shutil.rmtree(old, ignore_errors=True)


def holds_something_else(folder: str | os.PathLike) -> bool:
    """Whether `folder` exists and :func:`write_skeleton_store` would refuse to replace it."""
    if not os.path.exists(folder):
        return False
    return not os.path.isdir(folder) or not set(os.listdir(folder)) <= {ARRAY_FILE, INDEX_FILE}
