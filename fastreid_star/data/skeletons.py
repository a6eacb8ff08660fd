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

import json
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fastreid_star.coco import NUM_JOINTS
from fastreid_star.data.io import read_json, reason, shorten
from fastreid_star.data.skeletons_hdf5 import SUFFIXES, Hdf5File
from fastreid_star.errors import UserError

ARRAY_FILE, INDEX_FILE = "skeletons.npy", "index.json"
VERSION = 1
BLOCK = 4096  # skeletons handled at a time, 0.8 MB
MAX_VALUE = 1e6  # larger values are errors: no image is as large
_AGAIN = "make the store again"


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
        if path.lower().endswith(SUFFIXES):
            return Hdf5Store(path)
        raise UserError(
            f"skeleton store {path} is neither a folder with {ARRAY_FILE} nor an .h5 or .hdf5 file"
        )

    @abstractmethod
    def read(self, keys: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """The skeletons of some frames.

        Args:
            keys: n keys such as ``0001/ir/D4/1``.

        Returns:
            joints, float32 [n,V,3], zeros for a frame without skeleton; present, bool [n]. The
            arrays are copies.
        """

    @abstractmethod
    def raw(self, keys: Sequence[str]) -> np.ndarray:
        """The stored values of some frames, float32 [n,V,3], including those that are not finite.

        Raises:
            UserError: a key is not in the store.
        """

    @abstractmethod
    def keys(self) -> list[str]:
        """All keys in the order of the rows, including frames without a valid skeleton."""

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
        index, array = _load_index(path), _load_array(path)
        keys = index["keys"]
        if len(keys) != len(array):
            raise UserError(
                f"skeleton store {path}: {INDEX_FILE} lists {len(keys)} frames, {ARRAY_FILE} has "
                f"{len(array)}: {_AGAIN}"
            )
        self.meta: dict = index.get("meta", {})
        self._rows = {key: row for row, key in enumerate(keys)}
        if len(self._rows) != len(keys):
            raise UserError(f"skeleton store {path}: {INDEX_FILE} lists a frame twice: {_AGAIN}")
        self._array = array
        # Values are checked once, 0.1 s for HITSZ-VCM's 463,000 frames, and not at every read.
        starts = range(0, len(array), BLOCK)
        valid = np.concatenate([is_valid(array[start : start + BLOCK]) for start in starts])
        self._valid_rows = (
            self._rows if valid.all() else {k: row for k, row in self._rows.items() if valid[row]}
        )

    def read(self, keys: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        rows: list[Any] = list(map(self._valid_rows.get, keys))
        if None not in rows:  # a copy; "clip" saves numpy a check of the rows
            return self._array.take(rows, axis=0, mode="clip"), np.ones(len(rows), bool)
        present = np.array([row is not None for row in rows], bool)
        joints = self._array[[row or 0 for row in rows]]
        joints[~present] = 0
        return joints, present

    def raw(self, keys: Sequence[str]) -> np.ndarray:
        try:
            return self._array[np.array([self._rows[key] for key in keys], dtype=np.intp)]
        except KeyError as error:
            raise UserError(f"skeleton store {self.path} has no frame {error.args[0]}") from None

    def keys(self) -> list[str]:
        return list(self._rows)

    def __contains__(self, key: str) -> bool:
        return key in self._rows


class Hdf5Store(SkeletonStore):
    """The authors' HDF5 file, opened by each process at its first read."""

    def __init__(self, path: str):
        super().__init__(path)
        self._file = Hdf5File(path)

    @property
    def meta(self) -> dict:  # type: ignore[override] # read when it is needed
        return self._file.meta

    def read(self, keys: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        found = [self._file.values(key) for key in keys]
        joints = np.zeros((len(keys), NUM_JOINTS, 3), np.float32)
        for row, values in zip(joints, found, strict=True):
            row[:] = np.nan if values is None else values
        present = is_valid(joints)
        joints[~present] = 0
        return joints, present

    def raw(self, keys: Sequence[str]) -> np.ndarray:
        joints = np.empty((len(keys), NUM_JOINTS, 3), np.float32)
        for row, key in zip(joints, keys, strict=True):
            values = self._file.values(key)
            if values is None:
                raise UserError(f"skeleton store {self.path} has no frame {key}")
            row[:] = values
        return joints

    def keys(self) -> list[str]:
        return self._file.keys()

    def __contains__(self, key: str) -> bool:
        return self._file.values(key) is not None

    def close(self) -> None:
        self._file.close()


def is_valid(joints: np.ndarray) -> np.ndarray:
    """Whether each of the frames has a skeleton: joints [n,V,3] to bool [n]."""
    return np.all(np.abs(joints) <= MAX_VALUE, axis=(1, 2))


def as_joints(values: Any) -> np.ndarray:
    """Joints of any real type as float32; values beyond float32 become infinite.

    Raises:
        UserError: they are not an array of numbers [n,V,3].
    """
    try:
        array = np.asarray(values)
    except ValueError:  # rows of different lengths
        array = np.empty(0)
    if array.dtype.kind not in "fiu" or array.ndim != 3 or array.shape[1:] != (NUM_JOINTS, 3):
        raise UserError(
            f"skeletons must be numbers of the shape (frames, {NUM_JOINTS}, 3), but are "
            f"{array.dtype} of the shape {array.shape}"
        )
    with np.errstate(over="ignore"):
        return array.astype(np.float32, copy=False)


def write_skeleton_store(
    folder: str | os.PathLike,
    keys: Sequence[str],
    joints: np.ndarray | Iterator[np.ndarray],
    meta: Mapping | None = None,
) -> None:
    """Write a flat store. It is written beside `folder` and then renamed, so it is never partial.

    Args:
        folder: an older store there is replaced; a folder with other files is not.
        keys: N different frame keys.
        joints: [N,V,3], or an iterator over blocks [n,V,3]; stored as float32. A frame with NaN
            has no skeleton.
        meta: description of the origin of the skeletons, JSON values.

    Raises:
        UserError: no skeletons, sizes that disagree, or a `folder` that holds other files.
    """
    folder, keys = os.path.realpath(folder), list(keys)  # a link keeps pointing to its folder
    blocks = checked_blocks(folder, keys, joints)
    if holds_something_else(folder):
        raise UserError(f"{folder} holds other files than a skeleton store: choose another folder")
    new, old = f"{folder}.tmp{os.getpid()}", f"{folder}.old{os.getpid()}"
    os.makedirs(new)
    shape = (len(keys), NUM_JOINTS, 3)
    try:
        with open(os.path.join(new, ARRAY_FILE), "wb") as file:  # as np.save, block by block
            header = {"descr": np.dtype(np.float32).str, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for block in blocks:
                file.write(np.ascontiguousarray(block).data)
            file.flush()
            os.fsync(file.fileno())
        with open(os.path.join(new, INDEX_FILE), "w", encoding="utf-8") as text:
            index = {"version": VERSION, "shape": shape, "meta": dict(meta or {}), "keys": keys}
            json.dump(index, text, separators=(",", ":"))
            text.flush()
            os.fsync(text.fileno())
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


def checked_blocks(
    path: str, keys: Sequence[str], joints: np.ndarray | Iterator[np.ndarray]
) -> Iterator[np.ndarray]:
    """Float32 blocks [n,V,3] of the N skeletons to write; their number is checked at the end."""
    if not keys:
        raise UserError(f"no skeletons to write into {path}")
    check_keys(path, keys)
    if not isinstance(joints, Iterator):
        joints = iter([as_joints(joints)])
    return _counted(path, len(keys), joints)


def _counted(path: str, count: int, blocks: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    done = 0
    for block in map(as_joints, blocks):
        done += len(block)
        yield block
    if done != count:
        raise UserError(f"skeletons for {path}: {count} keys but {done} skeletons")


def check_keys(path: str | os.PathLike, keys: Sequence[str]) -> None:
    """Check the frame keys of a store.

    Raises:
        UserError: a key appears twice, is not text or is not a relative path without ``..``.
    """
    for key in keys:
        if not isinstance(key, str) or not {"", ".", ".."}.isdisjoint(key.split("/")):
            raise UserError(f"{path}: {shorten(key)} is not a key such as 0001/ir/D4/1")
    if len(set(keys)) != len(keys):
        raise UserError(f"{path}: a frame is listed twice")


def _load_index(path: str) -> dict:
    file_path = os.path.join(path, INDEX_FILE)
    index = read_json(file_path)
    keys, meta = (index.get("keys"), index.get("meta", {})) if isinstance(index, dict) else (0, 0)
    if not (isinstance(keys, list) and isinstance(meta, dict) and index.get("version") == VERSION):
        raise UserError(f"{file_path} is not an index of version {VERSION}: {_AGAIN}")
    check_keys(file_path, keys)
    return index


def _load_array(path: str) -> np.ndarray:
    file_path = os.path.join(path, ARRAY_FILE)
    try:
        array = np.load(file_path, mmap_mode="r", allow_pickle=False)  # runs no code of the file
    except (OSError, ValueError, EOFError, SyntaxError, TypeError) as error:
        raise UserError(f"{file_path} cannot be read ({reason(error)}): {_AGAIN}") from error
    shape = getattr(array, "shape", None)
    good = shape is not None and len(shape) == 3 and shape[1:] == (NUM_JOINTS, 3) and shape[0]
    if not good or array.dtype != np.float32:
        raise UserError(
            f"{file_path} has the shape {shape}, expected float32 [N,{NUM_JOINTS},3]: {_AGAIN}"
        )
    return np.asarray(array)  # a plain view: indexing np.memmap itself is slower
