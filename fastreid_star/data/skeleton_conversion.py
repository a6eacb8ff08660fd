"""Conversion between flat skeleton stores and HDF5 files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fastreid_star.data.io import progress_bar, reason
from fastreid_star.data.skeletons import (
    BLOCK,
    Hdf5Store,
    SkeletonStore,
    checked_blocks,
    is_valid,
    write_skeleton_store,
)
from fastreid_star.data.skeletons_hdf5 import SUFFIXES, Hdf5File, write_file
from fastreid_star.errors import UserError


@dataclass(frozen=True, slots=True)
class Conversion:
    """The result of :func:`convert_skeletons`.

    Args:
        frames: number of skeletons.
        not_finite: number of those that are invalid and so stand for a frame without skeleton.
    """

    frames: int
    not_finite: int


def convert_skeletons(
    source: str | os.PathLike, target: str | os.PathLike, *, progress: bool = False
) -> Conversion:
    """Convert an HDF5 file to a flat store, or a flat store to an HDF5 file.

    All values (as float32), `meta` and the order of the frames are kept, so a flat store converted
    to HDF5 and back is identical. Memory holds the keys and one block of skeletons.

    Args:
        source: a folder, or a file that ends in ``.h5`` or ``.hdf5``.
        target: a path of the other format; an older store there is replaced, other files are not.
        progress: show a progress bar.

    Raises:
        UserError: `source` is not a valid store, or `target` has the same format or is not
            writable.
    """
    source, target = os.path.abspath(source), os.path.abspath(target)
    store = SkeletonStore.open(source)
    to_hdf5 = target.lower().endswith(SUFFIXES)
    if to_hdf5 == isinstance(store, Hdf5Store):
        raise UserError(
            f"{source} and {target} have the same format: one must be a folder, the other a file "
            f"that ends in {' or '.join(SUFFIXES)}"
        )
    keys = store.keys()
    not_finite = 0

    def blocks() -> Iterator[np.ndarray]:
        nonlocal not_finite
        for start in range(0, len(keys), BLOCK):
            block = store.raw(keys[start : start + BLOCK])
            not_finite += int((~is_valid(block)).sum())
            yield block
            bar.update(len(block))

    write = write_hdf5_store if to_hdf5 else write_skeleton_store
    with progress_bar("converting", len(keys), shown=progress) as bar:
        try:
            write(target, keys, blocks(), store.meta)
        except OSError as error:
            why = error.strerror or reason(error)  # h5py's errors have no strerror
            raise UserError(f"{target} cannot be written: {why}") from error
    store.close()
    return Conversion(len(keys), not_finite)


def write_hdf5_store(
    path: str | os.PathLike,
    keys: Sequence[str],
    joints: np.ndarray | Iterator[np.ndarray],
    meta: Mapping | None = None,
) -> None:
    """Write the authors' HDF5 format; arguments as for :func:`write_skeleton_store`.

    Raises:
        UserError: no skeletons, sizes that disagree, or another file at `path`.
    """
    path, keys = os.path.abspath(path), list(keys)
    if os.path.exists(path):
        try:
            Hdf5File(path)
        except UserError as error:
            raise UserError(f"{path} is not a file of skeletons: choose another name") from error
    write_file(path, keys, checked_blocks(path, keys, joints), dict(meta or {}))
