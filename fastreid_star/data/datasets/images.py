"""What the datasets of single images share: an image is a tracklet of one frame."""

from __future__ import annotations

import itertools
import os
import random
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from fastreid_star.data.io import read_lines
from fastreid_star.errors import UserError
from fastreid_star.structures import Modality, Tracklet

TRIALS = 10  # of every published protocol that draws its gallery
IMAGES = (".jpg", ".jpeg", ".png", ".bmp")


def list_images(
    root: str, folders: Iterable[tuple[str, int]], pids: Sequence[int], modality: Modality
) -> list[Tracklet]:
    """The images of identities, by identity, then by camera, then by file name.

    Args:
        root: folder of the dataset.
        folders: a folder of a camera below `root`, which holds ``0001/``, ..., and its number.
        pids: the identities. One that a camera has not seen has no folder there.
    """
    found = []
    for pid, (folder, camid) in itertools.product(sorted(pids), list(folders)):
        place = f"{folder}/{pid:04d}"
        path = os.path.join(root, place)
        names = os.listdir(path) if os.path.isdir(path) else []
        for name in sorted(n for n in names if n.lower().endswith(IMAGES)):
            found.append(Tracklet(pid, camid, modality, root, (f"{place}/{name}",)))
    return found


def read_ids(path: str) -> list[int]:
    """The identities of a text file: numbers with commas between them.

    Raises:
        UserError: the file cannot be read, or has something else in it.
    """
    words = re.split(r"[,\s]+", " ".join(read_lines(path)).strip(", "))
    if not all(word.isdecimal() for word in words):
        wrong = next(word for word in words if not word.isdecimal())
        raise UserError(f"{path}: {wrong!r} is not an identity: write numbers such as 3,12,27")
    return [int(word) for word in words]


def read_labels(path: str) -> list[tuple[str, int]]:
    """The lines ``image label`` of a text file.

    Raises:
        UserError: the file cannot be read, is empty, or a line has another form.
    """
    pairs = []
    for number, line in enumerate(read_lines(path), start=1):
        image, _, label = line.rpartition(" ")
        if not image or not label.isdecimal():
            raise UserError(
                f"{path} line {number}: expected an image and the label of its identity, found "
                f"{line!r}"
            )
        pairs.append((image.strip(), int(label)))
    if not pairs:
        raise UserError(f"{path} lists no image: copy the dataset's own file")
    return pairs


def require_images(folder: str, parts: dict[str, list[Tracklet]]) -> None:
    """Raise :class:`UserError` if a part of a dataset is empty."""
    for what, images in parts.items():
        if not images:
            raise UserError(f"{folder} has no {what}: unpack all images of the dataset into it")


def require_choice(key: str, value: Any, choices: Sequence[Any]) -> None:
    """Raise :class:`UserError` if a key of DATASETS.IMAGE_PROTOCOL has another value."""
    if value not in choices:
        names = ", ".join(map(str, choices))
        raise UserError(f"DATASETS.IMAGE_PROTOCOL.{key} is {value!r}: choose one of {names}")


def of_one_camera(images: Sequence[Tracklet], start: int) -> dict[tuple[int, int], list[int]]:
    """Identity and camera -> the positions of their images, counted from `start`, in order."""
    places: dict[tuple[int, int], list[int]] = {}
    for position, image in enumerate(images, start):
        places.setdefault((image.pid, image.camid), []).append(position)
    return places


def draw(groups: Iterable[Sequence[int]], shots: int = 1) -> list[np.ndarray]:
    """Draw from each group in ten trials, as most published programs do.

    Trial t, counted from 0, seeds Python's `random` with t and takes ``random.choice`` of each
    group in turn. The programs have no common way for several shots: here it is ``random.sample``.

    Args:
        groups: positions of the images of one identity and camera, in the order of their names;
            the groups in the order of identities, then of cameras.
        shots: images of each group; of a smaller group all.

    Returns:
        the drawn positions of each trial.
    """
    groups = list(groups)
    trials = []
    for seed in range(TRIALS):
        rng = random.Random(seed)
        if shots == 1:
            drawn = [[rng.choice(group)] for group in groups]
        else:
            drawn = [rng.sample(group, min(shots, len(group))) for group in groups]
        trials.append(np.array(list(itertools.chain.from_iterable(drawn)), dtype=np.int64))
    return trials
