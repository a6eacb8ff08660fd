"""The HDF5 format of STAR's authors: one dataset of shape (17, 3) per frame, ``0001/ir/D4/1``."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import h5py
import numpy as np

from fastreid_star.coco import NUM_JOINTS
from fastreid_star.data.io import reason
from fastreid_star.errors import UserError

SUFFIXES = (".h5", ".hdf5")
SHAPE = (NUM_JOINTS, 3)

# Attributes that our files add: `meta` of the flat store as JSON, and the row of each dataset in
# the flat store, since HDF5 sorts names.
META_ATTRIBUTE, ROW_ATTRIBUTE = "meta", "flat_row"


class Hdf5File:
    """Reads the authors' file; each process opens it at its first read, after any fork.

    Raises:
        UserError: `path` is not an HDF5 file whose first dataset has the shape (17, 3).
    """

    def __init__(self, path: str):
        self.path = path
        self._file: Any = None
        self._owner: int | None = None  # the process that opened it
        with self._explained("the file"), h5py.File(path, "r") as file:
            shape = file.visititems(lambda _, item: getattr(item, "shape", None))
        if shape != SHAPE:
            found = "no dataset" if shape is None else f"a dataset of the shape {shape}"
            raise UserError(
                f"skeleton store {path} holds {found}, expected the shape {SHAPE} for each frame"
            )

    def _open(self):
        if self._owner != os.getpid():
            self._file, self._owner = h5py.File(self.path, "r"), os.getpid()
        return self._file

    def close(self) -> None:
        """Close the file in this process."""
        if self._owner == os.getpid():
            self._file.close()
        self._file, self._owner = None, None

    @property
    def meta(self) -> dict:
        """The `meta` of our files, and all other attributes of the file as text or numbers."""
        with self._explained("its attributes"):
            attributes = {name: _plain(value) for name, value in self._open().attrs.items()}
        with contextlib.suppress(KeyError, TypeError, ValueError):  # an attribute of the authors'
            ours = dict(json.loads(attributes[META_ATTRIBUTE]))
            del attributes[META_ATTRIBUTE]
            attributes.update(ours)
        return attributes

    def values(self, key: str) -> np.ndarray | None:
        """The skeleton of a frame, float32 (17, 3); None if the file has no such frame."""
        with self._explained(key):
            file = self._open()
            dataset = file.get(key) if key else None
            if not isinstance(dataset, h5py.Dataset):
                return None
            if dataset.shape != SHAPE or dataset.dtype.kind not in "fiu":
                raise UserError(
                    f"skeleton store {self.path}: {key} is {dataset.dtype} of the shape "
                    f"{dataset.shape}, expected numbers of the shape {SHAPE}"
                )
            with np.errstate(over="ignore"):
                return dataset[()].astype(np.float32)

    def keys(self) -> list[str]:
        """All keys, in the order of the flat store that the file was made from, or else sorted.

        Takes 6 seconds for HITSZ-VCM's 463,000 frames, and 20 more if the file stores an order.
        """
        names: list[str] = []

        def visit(name: bytes, info) -> None:
            if info.type == h5py.h5o.TYPE_DATASET:
                names.append(name.decode())

        with self._explained("its list of frames"):
            file = self._open()
            h5py.h5o.visit(file.id, visit, info=True)  # faster than visititems
            if META_ATTRIBUTE not in file.attrs:
                return names
            last = np.iinfo(np.int64).max  # for frames that were added later
            rows = [int(file[name].attrs.get(ROW_ATTRIBUTE, last)) for name in names]
            return [names[position] for position in np.argsort(rows, kind="stable")]

    @contextlib.contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except (UserError, MemoryError):
            raise
        except Exception as error:  # h5py raises many types on a damaged file
            raise UserError(
                f"skeleton store {self.path}: {what} cannot be read ({reason(error)}): it is "
                "damaged or not an HDF5 file"
            ) from error


def write_file(path: str, keys: Sequence[str], blocks: Iterable[np.ndarray], meta: dict) -> None:
    """Write an HDF5 file beside `path` and rename it.

    Args:
        path: ends in one of SUFFIXES.
        keys: N frame keys.
        blocks: float32 [n,17,3], N skeletons together.
        meta: JSON values.

    Raises:
        UserError: a key cannot be the name of a dataset.
    """
    folders = {key.rpartition("/")[0] for key in keys}
    folders |= {"/".join(name.split("/")[:n]) for name in set(folders) for n in range(1, 20)}
    both = next((key for key in keys if key in folders), None)
    if both is not None:
        raise UserError(
            f"skeleton key {both!r} is also a folder of other keys: HDF5 allows only one"
        )
    os.makedirs(os.path.dirname(path), exist_ok=True)
    new, row = f"{path}.{os.getpid()}.tmp", 0
    try:
        with h5py.File(new, "w") as file:
            file.attrs[META_ATTRIBUTE] = json.dumps(meta)
            for block in blocks:
                for values in block:
                    file.create_dataset(keys[row], data=values).attrs[ROW_ATTRIBUTE] = np.int64(row)
                    row += 1
        os.replace(new, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(new)


def _plain(value):
    """An HDF5 attribute as a JSON value."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return value if isinstance(value, bool | int | float | str | None) else str(value)
