"""The skeletons of a dataset's frames, read by key.

N stored frames, n frames of one request, V = 17 COCO joints. A joint is (x, y, score): pixels of the crop, with
the center of the first pixel at (0, 0), and whatever score the pose estimator gave.

Two forms are read. The flat one is a folder with ``skeletons.npy`` (float32 [N,V,3], memory-mapped) and
``index.json``; it reads 12-frame clips some hundred times faster than the other, which is the HDF5 file of the
paper's authors: one dataset a frame, ``0001/ir/D4/1`` -> (V, 3). ``tools/convert_skeletons.py`` makes one of the other.

A skeleton with a value that is not finite, or beyond a million either way, be it one of 51, stands for a frame without
one: in both forms, and wherever joints are given. Any other value is taken as it is, a negative one or a score above 1
too: estimators' scores have no common scale, and tools/check_dataset.py tells joints that cannot be of their frame.
"""

from __future__ import annotations

import json
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import IO, Any

import numpy as np

from fastreid_star.coco import NUM_JOINTS
from fastreid_star.data.contents import read_json, reason, shown
from fastreid_star.errors import UserError

ARRAY_FILE, INDEX_FILE = "skeletons.npy", "index.json"
VERSION = 1
BLOCK = 4096  # skeletons handled at a time, 0.8 MB
LARGEST = 1e6  # of any value: no image is as large, and a network takes squares of it in float32


class SkeletonStore(ABC):
    """Skeletons by key. Cheap to pickle (only the path travels) and safe to read after a fork.

    Attributes:
        path: of the folder or file.
        meta: what the file says about where the skeletons come from, as JSON would say it; may be empty.
    """

    meta: dict

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
                f"skeleton store {path} does not exist: make one with tools/extract_skeletons.py, or set "
                "DATASETS.SKELETONS '' to go without"
            )
        if os.path.isdir(path):
            return FlatStore(path)
        if path.lower().endswith((".h5", ".hdf5")):
            from fastreid_star.data.skeletons_hdf5 import Hdf5Store  # which needs this module

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
            joints, float32 [n,V,3], zeros where there is none; present, bool [n], see :func:`are_there`. Both arrays
            are the caller's own.
        """

    @abstractmethod
    def raw(self, keys: Sequence[str]) -> np.ndarray:
        """The skeletons of some frames as they are stored, float32 [n,V,3], values that are not finite among them.

        Raises:
            UserError: a key is not there.
        """

    @abstractmethod
    def keys(self, progress: Callable[[int], object] | None = None) -> list[str]:
        """Every key, those that stand for a missing frame too, in the order of the rows of the flat store.

        Args:
            progress: called with the number of keys found since it was last called.
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
            raise UserError(
                f"skeleton store {path}: {INDEX_FILE} names a frame twice, make the store again"
            )
        self._array = array
        # The array is looked through once, 0.1 s for HITSZ-VCM's, so that no read has to look at its values again.
        there = np.concatenate(
            [are_there(array[start : start + BLOCK]) for start in range(0, len(array), BLOCK)]
        )
        self._there = (
            self._rows
            if there.all()
            else {key: row for key, row in self._rows.items() if there[row]}
        )

    def read(self, keys: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        rows: list[Any] = list(map(self._there.get, keys))
        if None not in rows:
            # a copy; "clip" spares numpy a look at rows that are there
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

    def keys(self, progress: Callable[[int], object] | None = None) -> list[str]:
        if progress is not None:
            progress(len(self._rows))
        return list(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, key: str) -> bool:
        return key in self._rows


def write_skeleton_store(
    folder: str | os.PathLike,
    keys: Sequence[str],
    joints: np.ndarray | Iterator[np.ndarray],
    meta: Mapping | None = None,
) -> None:
    """Write a flat store, whole or not at all: it is built beside `folder` and renamed into place.

    Args:
        folder: where to; an older store there is replaced, a folder with other things in it is not.
        keys: N different frame keys.
        joints: [N,V,3], stored as float32, or an iterator over blocks [n,V,3] of it, which are written as they come.
            Values that are not finite, such as NaN, mark a missing frame.
        meta: anything JSON can say about where the skeletons come from.

    Raises:
        UserError: nothing to write, sizes that disagree, or a `folder` that holds other files.
    """
    folder, keys = (
        os.path.realpath(folder),
        list(keys),
    )  # a link stays, and is not renamed instead of its folder
    blocks = check_skeletons(folder, keys, joints)
    if holds_something_else(folder):
        raise UserError(
            f"{folder} holds something else than a skeleton store: choose another folder"
        )
    new, old = f"{folder}.tmp{os.getpid()}", f"{folder}.old{os.getpid()}"
    os.makedirs(new)
    try:
        shape = (len(keys), NUM_JOINTS, 3)
        with open(os.path.join(new, ARRAY_FILE), "wb") as file:  # as np.save does, block by block
            header = {
                "descr": np.lib.format.dtype_to_descr(np.dtype(np.float32)),
                "fortran_order": False,
                "shape": shape,
            }
            np.lib.format.write_array_header_1_0(file, header)
            for block in blocks:
                file.write(np.ascontiguousarray(block).data)
            _to_disk(file)
        with open(os.path.join(new, INDEX_FILE), "w", encoding="utf-8") as file:
            index = {
                "version": VERSION,
                "shape": list(shape),
                "meta": dict(meta or {}),
                "keys": keys,
            }
            json.dump(index, file, separators=(",", ":"))
            _to_disk(file)
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


def holds_something_else(folder: str | os.PathLike) -> bool:
    """Whether a path is there that :func:`write_skeleton_store` would refuse to replace."""
    if not os.path.exists(folder):
        return False
    return not os.path.isdir(folder) or not set(os.listdir(folder)) <= {ARRAY_FILE, INDEX_FILE}


def check_keys(where: str | os.PathLike, keys: Sequence[str]) -> None:
    """Refuse keys that are no path below a folder: absolute ones, those with ``..`` in them, and what is no text.

    A key is a name and never opened, yet whoever joins it to a folder is to stay in there. What else a file name may
    hold on this system, such as a backslash, is no separator here and does no harm.

    Args:
        where: the keys are from, for the message.
        keys: of a store.

    Raises:
        UserError: one of them is such.
    """
    try:
        text = "\0".join(keys)
    except TypeError:
        wrong = next(key for key in keys if not isinstance(key, str))
        raise UserError(
            f"{where} names a frame {shown(wrong)}: keys are texts such as 0001/ir/D4/1"
        ) from None
    parts = f"\0{text}\0".replace("/", "\0")
    if text.count("\0") == len(keys) - 1 and not any(f"\0{part}\0" in parts for part in _NO_PARTS):
        return
    for key in keys:
        if "\0" in key or not _NO_PARTS.isdisjoint(key.split("/")):
            raise UserError(
                f"{where} names a frame {shown(key)}: it cannot be a name, use such as 0001/ir/D4/1"
            )


_NO_PARTS = frozenset(("", ".", ".."))


def are_there(joints: np.ndarray) -> np.ndarray:
    """Which frames have a skeleton: bool [n] of joints [n,V,3], all of whose values are numbers up to a million."""
    return np.all(np.abs(joints) <= LARGEST, axis=(1, 2))


def as_joints(values: Any) -> np.ndarray:
    """Joints of any real type as float32; what is beyond float32 becomes infinite, and so a missing frame.

    Raises:
        UserError: they are no array of numbers.
    """
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            array = np.asarray(values)
            if array.dtype.kind not in "fiu":
                raise TypeError(f"{array.dtype} of the shape {array.shape}")
            return np.asarray(array, np.float32)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"skeletons must be numbers in an array [n,{NUM_JOINTS},3]: {reason(error)}"
        ) from error


def _to_disk(file: IO) -> None:
    """Before the renaming: whoever sees the store may delete what it was made of, and then lose the power."""
    file.flush()
    os.fsync(file.fileno())


def check_skeletons(
    path: str | os.PathLike, keys: Sequence[str], joints: np.ndarray | Iterator[np.ndarray]
) -> Iterator[np.ndarray]:
    """What any store asks of keys and joints before it is written.

    Args:
        path: of the store, for the message.
        keys: N keys.
        joints: [N,V,3] or an iterator over blocks of it.

    Returns:
        float32 blocks [n,V,3], N skeletons together.

    Raises:
        UserError: nothing to write, a key twice or no name (:func:`check_keys`), or no numbers or sizes that disagree;
            those of blocks while they are iterated over.
    """
    if not keys:
        raise UserError(f"no skeletons to write into {path}")
    check_keys(f"the skeletons for {path}", keys)
    whole = None if isinstance(joints, Iterator) else as_joints(joints)
    if whole is not None and whole.shape != (len(keys), NUM_JOINTS, 3):
        raise UserError(
            f"{len(keys)} skeletons must have the shape ({len(keys)}, {NUM_JOINTS}, 3), not {whole.shape}"
        )
    if len(set(keys)) != len(keys):
        raise UserError(f"skeletons for {path}: a frame is named twice")
    return _checked_blocks(path, len(keys), joints) if whole is None else iter([whole])


def _checked_blocks(
    path: str | os.PathLike, count: int, blocks: Iterable[np.ndarray]
) -> Iterator[np.ndarray]:
    done = 0
    for block in blocks:
        block = as_joints(block)
        done += len(block)
        if block.shape[1:] != (NUM_JOINTS, 3) or done > count:
            raise UserError(
                f"skeletons for {path}: a block of the shape {block.shape} after {done - len(block)} of {count}, "
                f"expected [n, {NUM_JOINTS}, 3]"
            )
        yield block
    if done != count:
        raise UserError(f"skeletons for {path}: {count} keys but {done} skeletons")


def _load_index(path: str) -> dict:
    file_path = os.path.join(path, INDEX_FILE)
    if not os.path.exists(file_path):
        raise UserError(f"skeleton store {path} has no {INDEX_FILE}: make the store again")
    index = read_json(file_path)
    if (
        not isinstance(index, dict)
        or index.get("version") != VERSION
        or not isinstance(index.get("keys"), list)
    ):
        raise UserError(f"{file_path} is not an index of version {VERSION}: make the store again")
    if not isinstance(index.get("meta", {}), dict):
        raise UserError(f"{file_path}: its meta is no table: make the store again")
    check_keys(file_path, index["keys"])
    return index


def _load_array(path: str) -> np.ndarray:
    file_path = os.path.join(path, ARRAY_FILE)
    if not os.path.exists(file_path):
        raise UserError(f"skeleton store {path} has no {ARRAY_FILE}: make the store again")
    if not os.path.isfile(file_path):  # numpy would wait for a pipe for ever
        raise UserError(f"{file_path} cannot be read: it is not a file: make the store again")
    try:
        array = np.load(file_path, mmap_mode="r", allow_pickle=False)  # no code in the file is run
    except MemoryError:
        raise
    except Exception as error:  # numpy raises about any kind on a damaged header
        raise UserError(
            f"{file_path} cannot be read ({reason(error)}): make the store again"
        ) from error
    if not isinstance(array, np.ndarray):  # an archive of several
        array.close()
        raise UserError(
            f"{file_path} holds an archive of arrays, expected float32 [N,{NUM_JOINTS},3]"
        )
    if (
        array.dtype != np.float32
        or array.ndim != 3
        or array.shape[1:] != (NUM_JOINTS, 3)
        or not len(array)
    ):
        raise UserError(
            f"{file_path} holds {array.dtype} of the shape {array.shape}, expected float32 [N,{NUM_JOINTS},3]"
        )
    return np.asarray(
        array
    )  # a plain view: indexing a np.memmap itself costs a subclass call every time
