"""The two files of a saved gallery: ``gallery.json``, and the features that it names.

The features are written first, under a name of their own; ``gallery.json`` then makes them the gallery, in one step.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from fastreid_star.errors import UserError
from fastreid_star.files import write_whole

INDEX_FILE = "gallery.json"
VERSION = 1
_KINDS = {
    "features": str,
    "features_sha256": str,
    "names": list,
    "modality": list,
    "metadata": list,
    "fingerprint": dict,
}
_FEATURES = re.compile(r"features-[0-9a-f]{16}\.npy")


def check_gallery_folder(folder: str | os.PathLike) -> None:
    """Refuse to save a gallery over something else.

    Raises:
        UserError: there is something, and it is no gallery.
    """
    if os.path.exists(folder) and not (
        os.path.isdir(folder)
        and (not os.listdir(folder) or os.path.isfile(os.path.join(folder, INDEX_FILE)))
    ):
        raise UserError(
            f"{os.fspath(folder)} holds something else than a gallery: choose another folder"
        )


def write_gallery(
    folder: str | os.PathLike, features: np.ndarray, entries: Mapping[str, Any]
) -> None:
    """Write a gallery, whole or not at all; an older one in the folder is replaced.

    Args:
        folder: made where it is not there.
        features: float32 [N, D].
        entries: `names`, `modality`, `metadata`, lists of N, and the `fingerprint`, as JSON has them.

    Raises:
        UserError: the folder holds something else, or cannot be written.
    """
    folder = os.fspath(folder)
    check_gallery_folder(folder)
    digest = _digest(features)
    file_name = f"features-{digest[:16]}.npy"
    content = {"version": VERSION, "features": file_name, "features_sha256": digest, **entries}
    text = json.dumps(content, separators=(",", ":"))
    try:
        os.makedirs(folder, exist_ok=True)
        write_whole(
            os.path.join(folder, file_name),
            lambda file: np.save(file, features, allow_pickle=False),
        )
        # From here on it is this gallery and no longer the older one, whose features go last.
        write_whole(os.path.join(folder, INDEX_FILE), lambda file: file.write(text.encode()))
        for old in glob.glob(os.path.join(glob.escape(folder), "features-*.npy")):
            if _FEATURES.fullmatch(os.path.basename(old)) and os.path.basename(old) != file_name:
                os.remove(old)
    except OSError as error:
        raise UserError(f"gallery {folder} cannot be written: {error.strerror or error}") from error


def read_index(folder: str | os.PathLike) -> dict[str, Any]:
    """What ``gallery.json`` says: the `entries` of :func:`write_gallery`, and which features belong to them.

    Raises:
        UserError: there is no gallery, or it is damaged.
    """
    path = os.path.join(folder, INDEX_FILE)
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except FileNotFoundError:
        raise UserError(
            f"{os.fspath(folder)} is no gallery, it has no {INDEX_FILE}: make one with tools/extract_features.py"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({error}): make the gallery anew") from error
    if not isinstance(content, dict) or content.get("version") != VERSION:
        raise UserError(f"{path} is no gallery of version {VERSION}: make it anew")
    wrong = [key for key, kind in _KINDS.items() if not isinstance(content.get(key), kind)]
    if not wrong and not _FEATURES.fullmatch(content["features"]):
        wrong = ["features"]
    if wrong:
        raise UserError(f"{path} is damaged ({', '.join(wrong)}): make the gallery anew")
    return content


def read_features(folder: str | os.PathLike, content: Mapping[str, Any]) -> np.ndarray:
    """The features that belong to what :func:`read_index` gave, float32 [N, D].

    Raises:
        UserError: they are not there, or are not those.
    """
    path = os.path.join(folder, content["features"])
    try:
        features = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # of a damaged header numpy's reader can raise anything, from TypeError to TokenError
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{path} cannot be read ({reason}): make the gallery anew") from error
    sound = isinstance(features, np.ndarray) and features.dtype == np.float32 and features.ndim == 2
    if not sound or _digest(features) != content["features_sha256"]:
        raise UserError(
            f"{path} holds other features than {INDEX_FILE} beside it says: make the gallery anew"
        )
    return np.array(features)


def _digest(features: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(features).data).hexdigest()
