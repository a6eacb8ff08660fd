"""What a dataset of video tracklets is, beside fast-reid's dataset of images."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from fastreid.data.datasets.bases import Dataset
from tabulate import tabulate

from fastreid_star.structures import Modality, Tracklet

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ListedTracklet(Tracklet):
    """A test tracklet of a dataset whose queries are a list of their own.

    Args:
        role: ``query``: it is looked for, and never found; ``gallery``: it may be found, and is never looked for. A
            plain :class:`~fastreid_star.structures.Tracklet` of a test set is both.
    """

    role: str

    def __post_init__(self):
        if self.role not in ("query", "gallery"):
            raise ValueError(f"role {self.role!r} is neither query nor gallery")


class VideoDataset(Dataset):
    """A dataset of :class:`~fastreid_star.structures.Tracklet`.

    Both directions of the evaluation come from one extraction of `query` and `gallery`. Where every test tracklet is a
    query of one direction and in the gallery of the other, they are the two halves of the test set: the infrared and
    the visible tracklets. Where the protocol has a list of queries, they are that list and the gallery's, of both
    modalities each, and their tracklets are :class:`ListedTracklet`.

    Args:
        train, query, gallery: lists of tracklets.
        folder: the dataset's own folder; relative skeleton paths start here.
        min_frames: tracklets with fewer frames were left out.
        dropped: how many were, by split, as the tables of the log name it (``train``, ``test``), and modality.
        combineall: train on the test tracklets too, their identities kept apart from the training ones.
    """

    dataset_name = ""

    def __init__(
        self,
        train: list[Tracklet],
        query: list[Tracklet],
        gallery: list[Tracklet],
        *,
        folder: str,
        min_frames: int = 1,
        dropped: Mapping[tuple[str, Modality], int] | None = None,
        **kwargs,
    ):
        self.folder = folder
        self.min_frames = min_frames
        self.dropped = dict(dropped or {})
        super().__init__(train, query, gallery, **kwargs)

    def path(self, name: str) -> str:
        """`name` as it stands when absolute, else inside the dataset's folder."""
        return os.path.join(self.folder, name)

    def __getitem__(self, index: int) -> Tracklet:
        return self.data[index]

    def parse_data(self, data: Iterable[Tracklet]) -> tuple[int, int]:
        """The number of identities and of cameras."""
        data = list(data)
        return len({tracklet.pid for tracklet in data}), len({tracklet.camid for tracklet in data})

    def combine_all(self) -> None:
        """Add the test tracklets to the training ones, as identities and cameras of their own."""
        pids = 1 + max((tracklet.pid for tracklet in self.train), default=0)
        camids = 1 + max((tracklet.camid for tracklet in self.train), default=0)
        test = [
            replace(t, pid=t.pid + pids, camid=t.camid + camids)
            for t in [*self.query, *self.gallery]
        ]
        self._train = [*self.train, *test]

    def show_train(self) -> None:
        """Log a table of the training set."""
        self._show("train", self.train)

    def show_test(self) -> None:
        """Log a table of the test set."""
        self._show("test", [*self.query, *self.gallery])

    def _show(self, split: str, tracklets: list[Tracklet]) -> None:
        rows = [
            (
                *_counts(f"{split} {m.name.lower()}", [t for t in tracklets if t.modality == m]),
                self.dropped.get((split, m), 0),
            )
            for m in Modality
        ]
        rows.append((*_counts(split, tracklets), sum(row[-1] for row in rows)))
        headers = [
            "subset",
            "# tracklets",
            "# frames",
            "# ids",
            "# cameras",
            f"# dropped (< {self.min_frames} frames)",
        ]
        table = tabulate(rows, tablefmt="pipe", headers=headers, numalign="left")
        logger.info("=> Loaded %s:\n%s", type(self).__name__, table)


def _counts(name: str, tracklets: list[Tracklet]) -> tuple[str, int, int, int, int]:
    pids, camids = {t.pid for t in tracklets}, {t.camid for t in tracklets}
    return name, len(tracklets), sum(map(len, tracklets)), len(pids), len(camids)
