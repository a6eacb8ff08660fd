"""The base class of the datasets of video tracklets."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from fastreid.config import CfgNode
from fastreid.data.datasets.bases import Dataset
from tabulate import tabulate

from fastreid_star.data.io import explain_missing
from fastreid_star.errors import UserError
from fastreid_star.structures import Modality, Tracklet, Trials

logger = logging.getLogger(__name__)

LONG = 12  # frames: the minimum length of a tracklet in HITSZ-VCM's published protocol


@dataclass(frozen=True, slots=True)
class ListedTracklet(Tracklet):
    """A test tracklet of a dataset that lists its queries.

    Args:
        role: ``query``: only searched for; ``gallery``: only found. A plain
            :class:`~fastreid_star.structures.Tracklet` of a test set is both.
    """

    role: str


@dataclass(frozen=True, slots=True)
class SubsetCounts:
    """The size of a part of a dataset.

    Args:
        name: ``train infrared``, ``train``, ...
        tracklets, frames, identities, cameras: how many.
        long: tracklets of at least 12 frames.
        published: the published values of these counts, by name; empty if unknown.
    """

    name: str
    tracklets: int
    frames: int
    identities: int
    long: int
    cameras: int
    published: Mapping[str, int] = field(default_factory=dict)

    @property
    def differences(self) -> list[str]:
        """``frames 7 instead of 8`` for each count that differs from the published one."""
        words = {"long": f"tracklets of at least {LONG} frames"}
        return [
            f"{words.get(name, name)} {getattr(self, name):,} instead of {count:,}"
            for name, count in self.published.items()
            if getattr(self, name) != count
        ]


def count_subsets(
    parts: Mapping[str, Sequence[Tracklet]],
    published: Mapping[str, Mapping[str, int]] | None = None,
) -> list[SubsetCounts]:
    """The sizes of each split: its infrared half, its visible half, the whole."""
    counts = []
    for split, tracklets in parts.items():
        for modality in (*Modality, None):
            name = split if modality is None else f"{split} {modality.name.lower()}"
            chosen = [t for t in tracklets if modality in (None, t.modality)]
            counts.append(
                SubsetCounts(
                    name=name,
                    tracklets=len(chosen),
                    frames=sum(map(len, chosen)),
                    identities=len({t.pid for t in chosen}),
                    long=sum(len(t) >= LONG for t in chosen),
                    cameras=len({t.camid for t in chosen}),
                    published=(published or {}).get(name, {}),
                )
            )
    return counts


class VideoDataset(Dataset):
    """A dataset of :class:`~fastreid_star.structures.Tracklet`.

    The evaluation extracts `query` and `gallery` once for both directions. If every test tracklet
    is a query in one direction and in the gallery of the other, `query` and `gallery` are the
    infrared and the visible half of the test set. If the protocol lists its queries, both contain
    both modalities and consist of :class:`ListedTracklet`.

    Args:
        train, query, gallery: lists of tracklets.
        folder: the dataset's own folder; relative skeleton paths start here.
        min_frames: tracklets with fewer frames are left out of all three lists.
        without: a text file that names a frame in each line, ``0001/ir/D4/1.jpg``. These frames are
            left out before frames are counted. Empty: none.
        combineall: train on the test tracklets too, as further identities.

    Attributes:
        published: published counts by name of the subset, for :func:`count_subsets`.
        dropped: number of tracklets that were too short.
        about: a line about what was read, for the log; empty: the name says it.
        warnings: what was not read, and why: a line for each reason.

    Raises:
        UserError: a list has no tracklet of `min_frames` frames, or `without` names a frame that no
            tracklet has.
    """

    dataset_name = ""
    published: ClassVar[Mapping[str, Mapping[str, int]]] = {}
    about: str = ""
    warnings: Sequence[str] = ()

    def __init__(
        self,
        train: list[Tracklet],
        query: list[Tracklet],
        gallery: list[Tracklet],
        *,
        folder: str,
        min_frames: int = 1,
        without: str = "",
        **kwargs,
    ):
        self.folder = folder
        self.min_frames = min_frames
        self.dropped = 0
        kept = []
        parts = [train, query, gallery]
        if without:
            parts = leave_out_frames(parts, without)
        for name, tracklets in zip(("train", "query", "gallery"), parts, strict=True):
            kept.append([tracklet for tracklet in tracklets if len(tracklet) >= min_frames])
            self.dropped += len(tracklets) - len(kept[-1])
            if tracklets and not kept[-1]:
                raise UserError(
                    f"{folder}: no {name} tracklet has {min_frames} frames or more: lower "
                    "DATASETS.MIN_FRAMES"
                )
        super().__init__(*kept, **kwargs)

    @staticmethod
    def arguments(cfg: CfgNode) -> dict[str, Any]:
        """The keyword arguments of this class that a config sets; a subclass may override it."""
        return {}

    @staticmethod
    def protocol_name(cfg: CfgNode) -> str:
        """The name of the test protocol that a config sets; empty: only one is in use."""
        return ""

    def trials(self) -> Trials | None:
        """The trials of the test protocol; None: every query is compared with the whole gallery."""
        return None

    def path(self, name: str) -> str:
        """An absolute `name` unchanged, a relative one inside the dataset's folder."""
        return os.path.join(self.folder, name)

    def write_shapes(self, folder: str) -> None:
        """Make the body shapes of all frames, if this class can and `folder` does not exist."""

    def combine_all(self) -> None:
        """Add the test tracklets to the training set, as further identities and cameras."""
        pids = 1 + max((tracklet.pid for tracklet in self.train), default=0)
        camids = 1 + max((tracklet.camid for tracklet in self.train), default=0)
        test = [*self.query, *self.gallery]
        shifted = [replace(t, pid=t.pid + pids, camid=t.camid + camids) for t in test]
        self._train = [*self.train, *shifted]

    def show_train(self) -> None:
        """Log a table of the training set."""
        self._show({"train": self.train})

    def show_test(self) -> None:
        """Log a table of the test set, or of the queries and the gallery."""
        self._show({name: part for name, part in splits(self).items() if name != "train"})

    def _show(self, parts: Mapping[str, Sequence[Tracklet]]) -> None:
        rows = [
            (c.name, c.tracklets, c.frames, c.identities, c.cameras) for c in count_subsets(parts)
        ]
        headers = ["subset", "# tracklets", "# frames", "# ids", "# cameras"]
        if self.about:
            logger.info(self.about)
        table = tabulate(rows, tablefmt="pipe", headers=headers, numalign="left")
        logger.info(
            "=> Loaded %s (left out: %d tracklets of fewer than %d frames):\n%s",
            *(type(self).__name__, self.dropped, self.min_frames, table),
        )

    def compare_with_published(self, parts: Mapping[str, Sequence[Tracklet]]) -> None:
        """Log whether the counts of the complete lists equal the published ones."""
        counts = [c for c in count_subsets(parts, self.published) if c.published]
        different = [f"{c.name}: {', '.join(c.differences)}" for c in counts if c.differences]
        name = type(self).__name__
        if different:
            logger.warning(
                "%s: the counts differ from the published ones: %s", name, "; ".join(different)
            )
        elif counts:
            logger.info("%s: the counts equal the published ones", name)


def leave_out_frames(
    parts: Sequence[list[Tracklet]], path: str | os.PathLike
) -> list[list[Tracklet]]:
    """Lists of tracklets without the frames that a text file names, one in each line.

    A tracklet that loses all of its frames is left out.

    Args:
        parts: lists of tracklets.
        path: the file. Empty lines are skipped.

    Raises:
        UserError: the file cannot be read, or names a frame that no tracklet has.
    """
    try:
        with open(path, encoding="utf-8") as file:
            listed = {line.strip() for line in file} - {""}
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"DATASETS.WITHOUT_FRAMES: {path} cannot be read: {error}") from None
    known = {frame for part in parts for tracklet in part for frame in tracklet.frames}
    if unknown := sorted(listed - known):
        raise UserError(
            f"DATASETS.WITHOUT_FRAMES: {path} names {unknown[0]!r}, which is no frame of the "
            f"dataset ({len(unknown)} such lines): write frames like {min(known, default='')}"
        )
    logger.warning(
        "%d frames that %s names are left out, of the test set too: results of other lists of "
        "frames cannot be compared with these",
        *(len(listed), path),
    )
    left = [
        [replace(t, frames=tuple(f for f in t.frames if f not in listed)) for t in part]
        for part in parts
    ]
    return [[tracklet for tracklet in part if len(tracklet)] for part in left]


def splits(dataset: VideoDataset) -> dict[str, list[Tracklet]]:
    """The tracklets by split: ``train`` and ``test``, or ``query`` and ``gallery`` if listed."""
    train, query, gallery = list(dataset.train), list(dataset.query), list(dataset.gallery)
    if {t.modality for t in query} & {t.modality for t in gallery}:
        return {"train": train, "query": query, "gallery": gallery}
    return {"train": train, "test": query + gallery}


def published_counts(tracklets: int, frames: int, identities: int, **more: int) -> dict[str, int]:
    """An entry of :attr:`VideoDataset.published`; `more` may be `long` and `cameras`."""
    return {"tracklets": tracklets, "frames": frames, "identities": identities, **more}


def find_folder(root: str | os.PathLike, name: str, files: Sequence[str]) -> str:
    """The dataset's own folder: ``root/name``, or `root` itself if one of `files` is in it.

    Raises:
        UserError: neither exists.
    """
    root = os.fspath(root)
    if not os.path.isdir(root):
        raise UserError(
            f"{root} does not exist: DATASETS.ROOT, --root or FASTREID_DATASETS must be the folder "
            f"that holds {name}"
        )
    folder = os.path.join(root, name)
    if os.path.isdir(folder):
        return folder
    if any(os.path.exists(os.path.join(root, file)) for file in files):
        return root
    raise UserError(
        f"no {name} in {root}: neither {folder} nor the files {', '.join(files)} exist; set "
        "DATASETS.ROOT or FASTREID_DATASETS to the folder that holds it"
    )


def require_files(folder: str, names: Sequence[str]) -> None:
    """Raise :class:`UserError` if lists of a dataset are not in `folder`."""
    missing = [name for name in names if not os.path.isfile(os.path.join(folder, name))]
    if missing:
        raise UserError(
            f"{folder} lacks {', '.join(missing)}: copy all lists of the dataset into it"
        )


def check_images(split: str, tracklets: Sequence[Tracklet]) -> None:
    """Look for images of eight tracklets, from the first to the last.

    Raises:
        UserError: a tracklet has none; the message says what its folder holds.
    """
    for i in range(8):
        tracklet = tracklets[i * (len(tracklets) - 1) // 7]
        paths = [tracklet.path(index) for index in (0, len(tracklet) // 2, -1)]
        if not any(map(os.path.isfile, paths)):
            raise UserError(
                f"images of the {split} set are missing: {explain_missing(paths[0])}; the names "
                "must equal those in the lists: unpack all images, or rename them"
            )
