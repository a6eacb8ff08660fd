"""Conversion between flat skeleton stores and HDF5 files."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping, Sequence

import h5py
import numpy as np

from fastreid_star.data.io import progress_bar, reason
from fastreid_star.data.skeletons import (
    HDF5_SUFFIXES,
    META_ATTRIBUTE,
    Hdf5Store,
    SkeletonStore,
    checked_joints,
    is_valid,
    write_skeleton_store,
)
from fastreid_star.errors import UserError

BLOCK = 4096  # skeletons read at a time


def convert_skeletons(
    source: str | os.PathLike, target: str | os.PathLike, *, progress: bool = False
) -> tuple[int, int]:
    """Convert an HDF5 file to a flat store, or a flat store to an HDF5 file.

    All values (as float32) and `meta` are kept.

    Args:
        source: a folder, or a file that ends in ``.h5`` or ``.hdf5``.
        target: a path of the other format; an older store there is replaced, other files are not.
        progress: show a progress bar.

    Returns:
        the number of frames; the number of those without a valid skeleton.

    Raises:
        UserError: `source` is not a valid store, or `target` has the same format or is not
            writable.
    """
    store, target = SkeletonStore.open(source), os.path.abspath(target)
    to_hdf5 = target.lower().endswith(HDF5_SUFFIXES)
    if to_hdf5 == isinstance(store, Hdf5Store):
        raise UserError(
            f"{source} and {target} have the same format: one must be a folder, the other a file "
            f"that ends in {' or '.join(HDF5_SUFFIXES)}"
        )
    keys = store.keys()
    joints = np.empty((len(keys), *store.raw([]).shape[1:]), np.float32)
    with progress_bar("reading", len(keys), shown=progress) as bar:
        for start in range(0, len(keys), BLOCK):
            block = keys[start : start + BLOCK]
            joints[start : start + len(block)] = store.raw(block)
            bar.update(len(block))
    store.close()
    write = write_hdf5_store if to_hdf5 else write_skeleton_store
    try:
        write(target, keys, joints, store.meta)
    except OSError as error:
        why = error.strerror or reason(error)  # h5py's errors have no strerror
        raise UserError(f"{target} cannot be written: {why}") from error
    return len(keys), int((~is_valid(joints)).sum())


def write_hdf5_store(
    path: str | os.PathLike, keys: Sequence[str], joints: np.ndarray, meta: Mapping | None = None
) -> None:
    """Write the authors' HDF5 format; arguments as for :func:`write_skeleton_store`.

    Raises:
        UserError: no skeletons, sizes that disagree, keys that HDF5 cannot hold together such as
            ``a`` and ``a/b``, or another file at `path`.
    """
    path = os.path.abspath(path)
    joints = checked_joints(path, keys, joints)
    if os.path.exists(path):
        try:
            Hdf5Store(path)
        except UserError as error:
            raise UserError(f"{path} is not a file of skeletons: choose another name") from error
    os.makedirs(os.path.dirname(path), exist_ok=True)
    new = f"{path}.{os.getpid()}.tmp"
    try:
        with h5py.File(new, "w") as file:
            file.attrs[META_ATTRIBUTE] = json.dumps(dict(meta or {}))
            for key, values in zip(keys, joints, strict=True):
                try:
                    file.create_dataset(key, data=values)
                except (TypeError, ValueError) as error:
                    raise UserError(
                        f"{path} cannot hold the key {key!r} beside the others "
                        f"({reason(error)}): rename this frame"
                    ) from error
        os.replace(new, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(new)
