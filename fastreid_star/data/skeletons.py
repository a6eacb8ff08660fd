"""The skeletons of a dataset's frames, read by key.

N stored frames, n frames of one request, V = 17 COCO joints. A joint is (x, y, score): pixels of the crop, with
the centre of the first pixel at (0, 0), and whatever score the pose estimator gave.

Two forms are read. The flat one is a folder with ``skeletons.npy`` (float32 [N,V,3], memory-mapped) and
``index.json``; it reads 12-frame clips some hundred times faster than the other, which is the HDF5 file of the
paper's authors: one dataset a frame, ``0001/ir/D4/1`` -> (V, 3).
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np

from fastreid_star.coco import NUM_JOINTS
from fastreid_star.errors import UserError

ARRAY_FILE, INDEX_FILE = "skeletons.npy", "index.json"
VERSION = 1

logger = logging.getLogger(__name__)


class SkeletonStore(ABC):
    """Skeletons by key. Cheap to pickle (only the path travels) and safe to read after a fork."""

    def __init__(self, path: str):
        self.path = path

    @staticmethod
    def open(path: str | os.PathLike) -> SkeletonStore:
        """Open a flat store (a folder) or the authors' HDF5 file (``.h5``, ``.hdf5``).

        Raises:
            UserError: there is nothing at `path`, or it is not a sound store.
        """
        path = os.fspath(path)
        if not os.path.exists(path):
            raise UserError(
                f"skeleton store {path} does not exist: make one with "
                "fastreid_star.data.skeletons.write_skeleton_store, or set DATASETS.SKELETONS '' to go without"
            )
        if os.path.isdir(path):
            return FlatStore(path)
        if path.lower().endswith((".h5", ".hdf5")):
            return Hdf5Store(path)
        raise UserError(f"skeleton store {path} is neither a folder with {ARRAY_FILE} nor an .h5 or .hdf5 file")

    @abstractmethod
    def read(self, keys: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """The skeletons of some frames.

        Args:
            keys: n keys such as ``0001/ir/D4/1``.

        Returns:
            joints, float32 [n,V,3], zeros where there is none; present, bool [n]. A frame with a value that is
            not finite counts as missing. Both arrays are the caller's own.
        """

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __contains__(self, key: str) -> bool: ...

    def close(self) -> None:
        """Close what is open; the next read opens it again."""
        return

    def __reduce__(self):
        return type(self), (self.path,)


class FlatStore(SkeletonStore):
    """``skeletons.npy`` beside ``index.json``, as :func:`write_skeleton_store` leaves them."""

    def __init__(self, path: str):
        super().__init__(path)
        index, array = _load_index(path), _load_array(path)
        keys = index["keys"]
        if len(keys) != len(array) or list(array.shape) != index.get("shape", list(array.shape)):
            raise UserError(
                f"skeleton store {path}: {INDEX_FILE} lists {len(keys)} frames, {ARRAY_FILE} has the shape "
                f"{array.shape}: they belong to different runs, make the store again"
            )
        self.meta: dict = index.get("meta", {})
        self._rows = {key: row for row, key in enumerate(keys)}
        if len(self._rows) != len(keys):
            raise UserError(f"skeleton store {path}: {INDEX_FILE} names a frame twice, make the store again")
        self._array = array

    def read(self, keys: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        row_of = self._rows.get
        rows = np.array([row_of(key, -1) for key in keys], dtype=np.intp)
        present = rows >= 0
        joints = self._array[rows]  # a copy; row -1 exists and is blanked below
        # The sum of a clip tells in one step whether any value is not finite.
        if not present.all() or not math.isfinite(joints.sum()):
            present &= np.isfinite(joints).all(axis=(1, 2))
            joints[~present] = 0
        return joints, present

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, key: str) -> bool:
        return key in self._rows


class Hdf5Store(SkeletonStore):
    """The authors' HDF5 file, opened at the first read of each process: a handle must not cross a fork."""

    def __init__(self, path: str):
        super().__init__(path)
        self._file, self._owner, self._length = None, None, None
        try:
            import h5py

            with h5py.File(path, "r") as file:
                first = _first_dataset(file)
                shape = None if first is None else first.shape
        except OSError as error:
            raise UserError(f"skeleton store {path} is not a readable HDF5 file: {error}") from error
        if shape != (NUM_JOINTS, 3):
            found = "no dataset" if shape is None else f"a dataset of the shape {shape}"
            raise UserError(f"skeleton store {path} holds {found}, expected one of ({NUM_JOINTS}, 3) for each frame")

    def _open(self):
        if self._owner != os.getpid():
            import h5py

            self._file, self._owner = h5py.File(self.path, "r"), os.getpid()
        return self._file

    def read(self, keys: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        file = self._open()
        joints = np.zeros((len(keys), NUM_JOINTS, 3), np.float32)
        present = np.zeros(len(keys), bool)
        for position, key in enumerate(keys):
            dataset = file.get(key)
            if dataset is None or not hasattr(dataset, "shape"):
                continue
            if dataset.shape != (NUM_JOINTS, 3):
                raise UserError(
                    f"skeleton store {self.path}: {key} has the shape {dataset.shape}, expected ({NUM_JOINTS}, 3)"
                )
            values = dataset[()]
            if np.isfinite(values).all():
                joints[position], present[position] = values, True
        return joints, present

    def close(self) -> None:
        if self._owner == os.getpid():
            self._file.close()
        self._file, self._owner = None, None

    def keys(self) -> list[str]:
        """Every key, in the file's order. Walks the file: 15 to 30 seconds for 100,000 frames."""
        names: list[str] = []
        self._open().visititems(lambda name, item: names.append(name) if hasattr(item, "shape") else None)
        return names

    def __len__(self) -> int:
        if self._length is None:
            logger.info("Counting the frames of %s, which walks the whole file ...", self.path)
            self._length = len(self.keys())
        return self._length

    def __contains__(self, key: str) -> bool:
        return hasattr(self._open().get(key), "shape")


def write_skeleton_store(
    folder: str | os.PathLike, keys: Sequence[str], joints: np.ndarray, meta: Mapping | None = None
) -> None:
    """Write a flat store, whole or not at all: it is built beside `folder` and renamed into place.

    Args:
        folder: where to; an older store there is replaced, a folder with other things in it is not.
        keys: N different frame keys.
        joints: [N,V,3], stored as float32. Values that are not finite mark a missing frame.
        meta: anything JSON can say about where the skeletons come from.

    Raises:
        UserError: nothing to write, sizes that disagree, or a `folder` that holds other files.
    """
    folder, keys = os.path.abspath(folder), list(keys)
    joints = np.asarray(joints, np.float32)
    if not keys:
        raise UserError(f"no skeletons to write into {folder}")
    if joints.shape != (len(keys), NUM_JOINTS, 3):
        raise UserError(f"{len(keys)} skeletons must have the shape ({len(keys)}, {NUM_JOINTS}, 3), not {joints.shape}")
    if len(set(keys)) != len(keys):
        raise UserError(f"skeletons for {folder}: a frame is named twice")
    if os.path.exists(folder) and not (os.path.isdir(folder) and set(os.listdir(folder)) <= {ARRAY_FILE, INDEX_FILE}):
        raise UserError(f"{folder} holds something else than a skeleton store: choose another folder")
    new, old = f"{folder}.tmp{os.getpid()}", f"{folder}.old{os.getpid()}"
    os.makedirs(new)
    try:
        np.save(os.path.join(new, ARRAY_FILE), joints)
        with open(os.path.join(new, INDEX_FILE), "w", encoding="utf-8") as file:
            index = {"version": VERSION, "shape": list(joints.shape), "meta": dict(meta or {}), "keys": keys}
            json.dump(index, file, separators=(",", ":"))
        if os.path.exists(folder):
            os.rename(folder, old)
        os.rename(new, folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)
        if os.path.exists(old):
            if os.path.exists(folder):
                shutil.rmtree(old)
            else:  # the new store did not get there: the old one stays
                os.rename(old, folder)


def _load_index(path: str) -> dict:
    file_path = os.path.join(path, INDEX_FILE)
    try:
        with open(file_path, encoding="utf-8") as file:
            index = json.load(file)
    except FileNotFoundError:
        raise UserError(f"skeleton store {path} has no {INDEX_FILE}: make the store again") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{file_path} cannot be read ({error}): make the store again") from error
    if not isinstance(index, dict) or index.get("version") != VERSION or not isinstance(index.get("keys"), list):
        raise UserError(f"{file_path} is not an index of version {VERSION}: make the store again")
    return index


def _load_array(path: str) -> np.ndarray:
    file_path = os.path.join(path, ARRAY_FILE)
    try:
        # A plain view: indexing a np.memmap itself costs a subclass call every time.
        array = np.asarray(np.load(file_path, mmap_mode="r", allow_pickle=False))
    except FileNotFoundError:
        raise UserError(f"skeleton store {path} has no {ARRAY_FILE}: make the store again") from None
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{file_path} cannot be read ({error}): make the store again") from error
    if array.dtype != np.float32 or array.ndim != 3 or array.shape[1:] != (NUM_JOINTS, 3) or not len(array):
        raise UserError(
            f"{file_path} holds {array.dtype} of the shape {array.shape}, expected float32 [N,{NUM_JOINTS},3]"
        )
    return array


def _first_dataset(group):
    """The first dataset below an HDF5 group, without walking all of it."""
    for item in group.values():
        found = item if hasattr(item, "shape") else _first_dataset(item)
        if found is not None:
            return found
    return None
