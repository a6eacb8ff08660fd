"""A user's own data for training and testing: a tree of folders, or a CSV file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from fastreid.config import CfgNode
from fastreid.data.datasets import DATASET_REGISTRY

from fastreid_star.data.datasets.base import ListedTracklet, VideoDataset
from fastreid_star.data.datasets.own.labels import Labeled, modality_of, numbered, one_modality
from fastreid_star.data.datasets.own.split import SPLITS, draw_test, given_split
from fastreid_star.data.datasets.own.table import read_table
from fastreid_star.data.datasets.own.tree import KEY, PATTERN, read_tree
from fastreid_star.errors import UserError
from fastreid_star.structures import Modality, Tracklet

__all__ = ["Folders"]

Pairs = Sequence[tuple[Labeled, Modality]]


@DATASET_REGISTRY.register()
class Folders(VideoDataset):
    """A user's own tracklets in a tree of folders, or in a CSV file.

    See docs/own_data.md. The numbers of identities and cameras are their names if these are
    numbers, else they follow from the names' natural order. Tracklets without a camera count as
    those of one camera for each modality, so that the camera rule leaves nothing out.

    If no split is given, it is drawn by identity, among those in both modalities; the others are
    left out. Training identities in one modality only are left out of a given split too.

    Args:
        root: a CSV file, or the folder of the tree; or a folder that holds ``Folders.csv`` or the
            tree ``Folders``.
        min_frames: shorter tracklets are left out, in the test set too.
        pattern: DATASETS.FOLDERS.PATTERN, the levels of the tree.
        test_share, seed: DATASETS.FOLDERS.TEST_SHARE and SEED, of the drawn split.
        check_frames: all images are found in their folders anyway.

    Attributes:
        identities: the number of each identity, by name.

    Raises:
        UserError: nothing is found, or labels are missing, unknown or contradictory.
    """

    dataset_name = "folders"

    def __init__(
        self,
        root: str = "datasets",
        *,
        min_frames: int = 1,
        pattern: str = PATTERN,
        test_share: float = 0.3,
        seed: int = 0,
        check_frames: bool = True,
        **kwargs,
    ):
        source = _find(os.fspath(root))
        listed = os.path.isfile(source)
        found, warnings = read_table(source) if listed else read_tree(source, pattern)
        folder = os.path.dirname(os.path.abspath(source)) if listed else source
        cure = "" if listed else f", or set {KEY} to the order of your levels"
        pairs = [(one, modality_of(one, cure)) for one in found]
        words = given_split(found)
        split = "as given"
        if not words:
            words, lonely = _draw(pairs, test_share, seed)
            split = f"drawn by identity, {test_share:.0%} for testing, seed {seed}"
            warnings += _left_out(lonely)
        self.about = f"{source}: {_count(pairs)}; split {split}"
        self.identities = numbered(one.identity for one in found)
        parts = _parts(pairs, words, self.identities, folder)
        super().__init__(*parts, folder=folder, min_frames=min_frames, **kwargs)
        alone = one_modality((t.pid, t.modality) for t in self.train)
        self._train = [t for t in self.train if t.pid not in alone]
        names = {number: name for name, number in self.identities.items()}
        named = {names.get(pid, str(pid)): kind for pid, kind in alone.items()}
        self.warnings = (*warnings, *_left_out(named, " of training"))

    @staticmethod
    def arguments(cfg: CfgNode) -> dict[str, Any]:
        node = cfg.DATASETS.FOLDERS
        return {"pattern": node.PATTERN, "test_share": node.TEST_SHARE, "seed": node.SEED}


def _find(root: str) -> str:
    """The CSV file or the folder that is meant by DATASETS.ROOT."""
    for path in (os.path.join(root, "Folders.csv"), os.path.join(root, "Folders"), root):
        if os.path.exists(path):
            return path
    raise UserError(
        f"{root} does not exist: set DATASETS.ROOT, or --root, to the folder of your tracklets or "
        "to a CSV file that lists them"
    )


def _draw(pairs: Pairs, share: float, seed: int) -> tuple[list[str], dict[str, Modality]]:
    """``train``, ``test`` or nothing for each tracklet, and the identities that are left out."""
    lonely = one_modality((one.identity, modality) for one, modality in pairs)
    names = [one.identity for one, _ in pairs]
    test = draw_test(set(names) - set(lonely), share, seed)
    return ["" if name in lonely else "test" if name in test else "train" for name in names], lonely


def _left_out(lonely: dict[str, Modality], of: str = "") -> list[str]:
    """A line about identities in one modality only; no line if there are none."""
    if not lonely:
        return []
    names = [f"{name} (only {kind.name.lower()})" for name, kind in lonely.items()]
    more = ", ..." if len(names) > 5 else ""
    return [
        f"{len(names)} identities have tracklets in one modality only and are left out{of}: "
        f"{', '.join(names[:5])}{more}"
    ]


def _count(pairs: Pairs) -> str:
    """What was read, and what each word for a modality means."""
    words = [
        f"{', '.join(sorted({one.modality for one, own in pairs if own == modality}))} is "
        f"{modality.name.lower()}"
        for modality in sorted({modality for _, modality in pairs})
    ]
    cameras = len({one.camera for one, _ in pairs} - {""})
    single = sum(len(one.frames) == 1 for one, _ in pairs)
    return (
        f"{len(pairs):,} tracklets, {single:,} of one frame; {'; '.join(words)}; "
        f"{cameras or 'no'} cameras{'' if cameras else ', so the camera rule has no effect'}"
    )


def _parts(
    pairs: Pairs, words: Sequence[str], identities: dict[str, int], folder: str
) -> tuple[list[Tracklet], list[Tracklet], list[Tracklet]]:
    """Training set, queries and gallery, see the base class."""
    places = [one.camera or f"any {modality.name.lower()}" for one, modality in pairs]
    cameras = numbered(places)
    parts: dict[str, list[Tracklet]] = {"": [], **{word: [] for word in SPLITS}}
    for (one, modality), place, word in zip(pairs, places, words, strict=True):
        fields = (identities[one.identity], cameras[place], modality, folder, one.frames)
        parts[word].append(Tracklet(*fields))
    train, test, query, gallery = (parts[word] for word in SPLITS)
    if test and (query or gallery):
        raise UserError(
            "some tracklets have the split test, others query or gallery: a tracklet of test is "
            "both, so write test for all, or query or gallery for each"
        )
    if {t.modality for t in query} & {t.modality for t in gallery}:
        return train, _listed(query, "query"), _listed(gallery, "gallery")
    test += query + gallery  # of one modality each: the two directions swap them
    infrared, visible = ([t for t in test if t.modality == modality] for modality in Modality)
    return train, infrared, visible


def _listed(tracklets: Sequence[Tracklet], role: str) -> list[Tracklet]:
    return [ListedTracklet(t.pid, t.camid, t.modality, t.root, t.frames, role) for t in tracklets]
