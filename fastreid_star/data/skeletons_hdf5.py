"""The HDF5 file of the paper's authors: read, written, and turned into the flat store and back.

One dataset a frame, ``0001/ir/D4/1`` -> (17, 3), and nothing else. N stored frames, n frames of one request, V = 17
COCO joints; see :mod:`fastreid_star.data.skeletons` for what a skeleton is.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np

from fastreid_star.coco import NUM_JOINTS
from fastreid_star.data.contents import reason
from fastreid_star.data.progress import progress_bar
from fastreid_star.data.skeletons import (
    BLOCK,
    SkeletonStore,
    are_there,
    as_joints,
    check_keys,
    check_skeletons,
    write_skeleton_store,
)
from fastreid_star.errors import UserError

SUFFIXES = (".h5", ".hdf5")
MOST_CHUNK = 1 << 20  # values; a skeleton has 51, and HDF5 decompresses a block of them whole
_NO_PARTS = (b"", b".", b"..")

# Attributes in a file of ours: of the file, what the flat store calls meta, as JSON; of a dataset, its row in the flat
# store, since the file itself sorts its names.
META_ATTRIBUTE, ROW_ATTRIBUTE = "meta", "flat_row"


class Hdf5Store(SkeletonStore):
    """The authors' HDF5 file, opened at the first read of each process: a handle must not cross a fork."""

    def __init__(self, path: str):
        super().__init__(path)
        self._file: Any = None
        self._owner: int | None = None  # the process that opened it
        self._length: int | None = None
        self._groups: set[bytes] = set()
        if not os.path.isfile(path):  # HDF5 would wait for a pipe for ever
            raise UserError(f"skeleton store {path} is not a readable HDF5 file: it is no file")
        try:
            with h5py.File(path, "r") as file:
                name = h5py.h5o.visit(file.id, _name_of_dataset, info=True)
                shape = None if name is None else h5py.h5d.open(file.id, name).shape
        except Exception as error:  # h5py raises about any kind on a damaged file
            raise UserError(
                f"skeleton store {path} is not a readable HDF5 file: {reason(error)}"
            ) from error
        if shape != (NUM_JOINTS, 3):
            found = "no dataset" if shape is None else f"a dataset of the shape {shape}"
            raise UserError(
                f"skeleton store {path} holds {found}, expected one of ({NUM_JOINTS}, 3) for each frame"
            )

    def _open(self):
        if self._owner != os.getpid():
            self._file, self._owner = h5py.File(self.path, "r"), os.getpid()
        return self._file

    @property
    def meta(self) -> dict:  # type: ignore[override] # read when it is asked for
        """What :func:`write_hdf5_store` was given, and the file's other attributes."""
        with self._damage_explained("its attributes"):
            attributes = {name: _plain(value) for name, value in self._open().attrs.items()}
        try:
            ours = json.loads(attributes[META_ATTRIBUTE])
        except (
            KeyError,
            TypeError,
            ValueError,
            RecursionError,
        ):  # the authors', or an attribute of somebody else's
            return attributes
        if not isinstance(ours, dict):
            return attributes
        del attributes[META_ATTRIBUTE]
        return {**attributes, **ours}

    def read(self, keys: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        joints = np.zeros((len(keys), NUM_JOINTS, 3), np.float32)
        present = np.zeros(len(keys), bool)
        for position, key in enumerate(keys):
            values = self._values(key)
            if values is not None and are_there(values[None])[0]:
                joints[position], present[position] = values, True
        return joints, present

    def raw(self, keys: Sequence[str]) -> np.ndarray:
        joints = np.empty((len(keys), NUM_JOINTS, 3), np.float32)
        for position, key in enumerate(keys):
            values = self._values(key)
            if values is None:
                raise UserError(f"skeleton store {self.path} has no frame {key}")
            joints[position] = values
        return joints

    def _values(self, key: str) -> np.ndarray | None:
        with self._damage_explained(key):
            dataset = self._dataset(key)
            if dataset is None:
                return None
            if dataset.shape != (NUM_JOINTS, 3):
                raise UserError(
                    f"skeleton store {self.path}: {key} has the shape {dataset.shape}, expected ({NUM_JOINTS}, 3)"
                )
            self._check_storage(dataset, key)
            values = np.empty(dataset.shape, dataset.dtype)
            dataset.read(h5py.h5s.ALL, h5py.h5s.ALL, values)
            return as_joints(values)

    def _dataset(self, key: str) -> h5py.h5d.DatasetID | None:
        """The dataset of a key; None where there is none."""
        try:
            name, file = key.encode(errors="surrogateescape"), self._open().id
        except UnicodeEncodeError:  # no file has such a name
            return None
        folder, _, _ = name.rpartition(b"/")
        if not name or not self._is_here(folder) or not self._is_here(name, group=False):
            return None
        found = h5py.h5o.open(file, name)
        return found if isinstance(found, h5py.h5d.DatasetID) else None

    def _is_here(self, name: bytes, *, group: bool = True) -> bool:
        """Whether a name is there, each group on the way to it included; groups are asked for once.

        Raises:
            UserError: it is a link, or lies behind one: one may lead to any file.
        """
        if not name or name in self._groups:
            return True
        folder, _, last = name.rpartition(b"/")
        if last in _NO_PARTS or b"\0" in name or not self._is_here(folder):
            return False
        file = self._open().id
        if not file.links.exists(name):
            return False
        if file.links.get_info(name).type != h5py.h5l.TYPE_HARD:
            raise UserError(
                f"skeleton store {self.path}: {name.decode(errors='replace')} is a link, perhaps to another file: none "
                "is followed, copy what it leads to into the file"
            )
        if group:
            if h5py.h5o.get_info(file, name).type != h5py.h5o.TYPE_GROUP:
                return False
            self._groups.add(name)
        return True

    def _check_storage(self, dataset: h5py.h5d.DatasetID, key: str) -> None:
        """Values may lie in another file, or in blocks of any size that are read whole."""
        if dataset.dtype.kind not in "fiu":
            raise UserError(
                f"skeleton store {self.path}: {key} holds {dataset.dtype}, expected numbers"
            )
        plan = dataset.get_create_plist()
        layout = plan.get_layout()
        if layout == h5py.h5d.VIRTUAL or plan.get_external_count():
            raise UserError(
                f"skeleton store {self.path}: the values of {key} lie in another file, which is not read"
            )
        if layout == h5py.h5d.CHUNKED and math.prod(plan.get_chunk()) > MOST_CHUNK:
            raise UserError(
                f"skeleton store {self.path}: {key} is stored in blocks of {plan.get_chunk()} values"
            )

    @contextlib.contextmanager
    def _damage_explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except (UserError, MemoryError):
            raise
        except Exception as error:  # h5py raises about any kind on a damaged file
            raise UserError(
                f"skeleton store {self.path}: {what} cannot be read ({reason(error)}): the file is damaged, or its "
                "disk: restore it"
            ) from error

    def close(self) -> None:
        if self._owner == os.getpid():
            self._file.close()
        self._file, self._owner = None, None
        self._groups.clear()

    def keys(self, progress: Callable[[int], object] | None = None) -> list[str]:
        """Every key, in the order of the flat store that a file of ours was made from, else sorted as HDF5 sorts names.

        Walks the file: 6 seconds for HITSZ-VCM's 463,000 frames, and 20 more where it knows their order.

        Args:
            progress: called with the number of keys found since it was last called.
        """
        names = self._walk(progress)
        with self._damage_explained("the order of its frames"):
            if META_ATTRIBUTE not in self._open().attrs:
                return names
            return [names[position] for position in np.argsort(self._rows(names), kind="stable")]

    def _walk(self, progress: Callable[[int], object] | None = None) -> list[str]:
        names: list[str] = []

        def visit(name: bytes, info) -> None:
            if info.type == h5py.h5o.TYPE_DATASET:
                names.append(name.decode(errors="surrogateescape"))
                if progress is not None:
                    progress(1)

        # the low-level visitor tells a dataset from a group without opening it
        with self._damage_explained("its list of frames"):
            h5py.h5o.visit(self._open().id, visit, info=True)
        check_keys(self.path, names)
        return names

    def _rows(self, names: Sequence[str]) -> np.ndarray:
        """The row of each frame; those that were added later, and have none, come last."""
        file, name = self._open().id, ROW_ATTRIBUTE.encode()
        rows = np.full(len(names), np.iinfo(np.int64).max)
        value = np.empty((), np.int64)
        for position, key in enumerate(names):
            dataset = h5py.h5o.open(
                file, key.encode(errors="surrogateescape")
            )  # twice as fast as file[key].attrs
            if h5py.h5a.exists(dataset, name):
                attribute = h5py.h5a.open(dataset, name)
                if (
                    attribute.shape != () or attribute.dtype.kind not in "iu"
                ):  # read() writes beyond a smaller array
                    raise TypeError(f"{ROW_ATTRIBUTE} of {key} is no whole number")
                attribute.read(value)
                rows[position] = value
        return rows

    def __len__(self) -> int:
        if self._length is None:
            self._length = len(self._walk())
        return self._length

    def __contains__(self, key: str) -> bool:
        with self._damage_explained(key):
            return self._dataset(key) is not None


def write_hdf5_store(
    path: str | os.PathLike,
    keys: Sequence[str],
    joints: np.ndarray | Iterator[np.ndarray],
    meta: Mapping | None = None,
) -> None:
    """Write the authors' form, whole or not at all: it is built beside `path` and renamed into place.

    Args:
        path: where to; an older store there is replaced, another file is not.
        keys: N different frame keys.
        joints: [N,V,3], stored as float32 bit for bit, or an iterator over blocks [n,V,3] of it.
        meta: anything JSON can say about where the skeletons come from: the file's attribute ``meta``.

    Raises:
        UserError: nothing to write, sizes that disagree, keys that HDF5 cannot tell apart, or something else at
            `path`.
    """
    path, keys = os.path.abspath(path), list(keys)
    if not path.lower().endswith(SUFFIXES):
        raise UserError(
            f"{path}: the name of an HDF5 file of skeletons ends in {' or '.join(SUFFIXES)}"
        )
    blocks = check_skeletons(path, keys, joints)
    _check_names(keys)
    text = json.dumps(dict(meta or {}))
    if os.path.exists(path):
        try:
            Hdf5Store(path)
        except UserError as error:
            raise UserError(
                f"{path} holds something else than skeletons: choose another name"
            ) from error
    os.makedirs(os.path.dirname(path), exist_ok=True)
    new, row = f"{path}.{os.getpid()}.tmp", 0
    try:
        with h5py.File(new, "w") as file:
            file.attrs[META_ATTRIBUTE] = text
            for block in blocks:
                for values in block:
                    file.create_dataset(keys[row], data=values).attrs[ROW_ATTRIBUTE] = np.int64(row)
                    row += 1
        os.replace(new, path)
    finally:
        if os.path.exists(new):
            os.remove(new)


@dataclass(frozen=True, slots=True)
class Conversion:
    """What was converted.

    Args:
        frames: how many skeletons.
        not_finite: how many of them hold a value that is not finite or too large, and so stand for a missing frame.
    """

    frames: int
    not_finite: int


def convert_skeletons(
    source: str | os.PathLike, target: str | os.PathLike, *, progress: bool = False
) -> Conversion:
    """Turn the authors' HDF5 file into a flat store, or a flat store into such a file.

    Every value is carried over bit for bit as float32, those of missing frames too, with `meta` and the order of the
    frames: a flat store that went to HDF5 and back is equal in every bit. What a file of the authors' holds in float64
    is rounded to float32. Blocks of skeletons pass through, so memory holds the keys and little else.

    Args:
        source: a folder, or a file that ends in ``.h5`` or ``.hdf5``.
        target: the other of the two; an older store there is replaced, anything else is not.
        progress: show how long it takes.

    Raises:
        UserError: `source` is no sound store, both have the same form, or `target` cannot be written.
    """
    source, target = os.path.abspath(source), os.path.abspath(target)
    store = SkeletonStore.open(source)
    to_hdf5 = target.lower().endswith(SUFFIXES)
    if to_hdf5 == isinstance(store, Hdf5Store):
        form = "an HDF5 file" if to_hdf5 else "a folder"
        raise UserError(
            f"{source} and {target} are both {form}: one of them must be a folder, the other an .h5 file"
        )
    with progress_bar("looking for frames", None, shown=progress) as bar:
        keys = store.keys(bar.update)
    not_finite = 0

    def blocks() -> Iterator[np.ndarray]:
        nonlocal not_finite
        for start in range(0, len(keys), BLOCK):
            block = store.raw(keys[start : start + BLOCK])
            not_finite += int((~are_there(block)).sum())
            yield block
            bar.update(len(block))

    write = write_hdf5_store if to_hdf5 else write_skeleton_store
    with progress_bar("converting", len(keys), shown=progress) as bar:
        try:
            write(target, keys, blocks(), store.meta)
        except OSError as error:  # h5py's have no strerror
            why = error.strerror or reason(error)
            raise UserError(
                f"{target} cannot be written, or {source} no longer be read: {why}"
            ) from error
    store.close()
    return Conversion(len(keys), not_finite)


def _check_names(keys: Sequence[str]) -> None:
    """HDF5 takes a key for a path: two keys must not be one path, nor one a folder on the way to another."""
    folders = set()
    for key in keys:
        is_text = key.isascii() or key == key.encode(errors="replace").decode()
        if not is_text:
            raise UserError(
                f"skeleton key {key!r} cannot be a name in an HDF5 file: use names like 0001/ir/D4/1"
            )
        folder = key
        while (folder := folder.rpartition("/")[0]) and folder not in folders:
            folders.add(folder)
    both = next((key for key in keys if key in folders), None)
    if both is not None:
        raise UserError(
            f"skeleton key {both!r} is the folder of other keys too: HDF5 cannot hold both"
        )


def _plain(value):
    """An HDF5 attribute as JSON can say it."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def _name_of_dataset(name: bytes, info) -> bytes | None:
    """Ends a visit at the first dataset. A visit sees each object once, and follows no link to another file."""
    return name if info.type == h5py.h5o.TYPE_DATASET else None
