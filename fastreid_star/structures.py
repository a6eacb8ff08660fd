"""The types that datasets, samplers and evaluators share."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np


class Modality(IntEnum):
    """The modality of a camera, numbered as in HITSZ-VCM's info files."""

    INFRARED = 1
    VISIBLE = 2

    @property
    def folder(self) -> str:
        """The directory name HITSZ-VCM uses for this modality."""
        return "ir" if self is Modality.INFRARED else "rgb"


@dataclass(frozen=True, slots=True)
class Tracklet:
    """One person filmed by one camera.

    Args:
        pid: the dataset's number of the identity.
        camid: the dataset's number of the camera.
        modality: visible or infrared.
        root: the folder that `frames` are relative to.
        frames: file names in temporal order, with forward slashes, e.g. ``0001/ir/D4/1.jpg``.
    """

    pid: int
    camid: int
    modality: Modality
    root: str
    frames: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.frames)

    def path(self, index: int) -> str:
        """The file of frame `index`."""
        return os.path.join(self.root, self.frames[index])

    def key(self, index: int) -> str:
        """The skeleton key of frame `index`: its name without the extension, ``0001/ir/D4/1``."""
        return self.frames[index].rpartition(".")[0]


@dataclass(frozen=True, eq=False)
class Trials:
    """The trials of a protocol that draws a part of the test set several times.

    Results are means over the trials of a direction.

    Args:
        directions: ``I2V``, and ``V2I`` if the protocol has it -> for each trial the positions of
            its queries and those of its gallery entries, among all queries and then all gallery
            tracklets of the dataset.
        skipped: pairs of cameras, of a query and of a gallery entry, that are never compared.
        by_identity: in the CMC an identity counts once, with its most similar gallery entry.
    """

    directions: Mapping[str, Sequence[tuple[np.ndarray, np.ndarray]]]
    skipped: frozenset[tuple[int, int]] = frozenset()
    by_identity: bool = False
