"""Which identities train and which test: as given, or drawn."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from fastreid_star.data.datasets.own.labels import Labeled
from fastreid_star.errors import UserError

SPLITS = ("train", "test", "query", "gallery")


def given_split(found: Sequence[Labeled]) -> list[str]:
    """The split of each tracklet, one of SPLITS; empty if none is given.

    Raises:
        UserError: an unknown word, a split for some tracklets only, or an identity in the training
            set and in the test set.
    """
    words = [one.split.lower() for one in found]
    if not any(words):
        return []
    for one, word in zip(found, words, strict=True):
        if not word:
            raise UserError(f"{one.where} has no split, but others have: write one for all or none")
        if word not in SPLITS:
            raise UserError(f"{one.where}: the split {one.split!r} is none of {', '.join(SPLITS)}")
    pairs = list(zip(found, words, strict=True))
    trained = {one.identity: one.where for one, word in pairs if word == "train"}
    shared = {
        one.identity: one.where
        for one, word in pairs
        if word != "train" and one.identity in trained
    }
    if shared:
        name, where = next(iter(shared.items()))
        raise UserError(
            f"{len(shared)} identities are in the training set and in the test set, such as {name} "
            f"({trained[name]} and {where}): give each identity one of them"
        )
    return words


def draw_test(identities: Iterable[str], share: float, seed: int) -> set[str]:
    """The identities that are drawn for testing.

    Each name has a random place that depends on the name and the seed alone, and the first ones are
    taken. So the draw does not depend on the order of the files, and few identities change sides if
    others are added.

    Args:
        identities: names of those with tracklets in both modalities.
        share: of the identities, above 0 to 1. Two are left for training, unless it is 1.
        seed: of the draw.

    Raises:
        UserError: `share` is out of its range, or fewer than four identities.
    """
    if not 0 < share <= 1:
        raise UserError(f"DATASETS.FOLDERS.TEST_SHARE is {share}: give a number above 0, up to 1")
    names = set(identities)
    if share == 1:
        return names
    if len(names) < 4:
        raise UserError(
            f"{len(names)} identities have tracklets in both modalities: drawing a split takes 4 "
            "or more, two for training and two for testing"
        )
    count = min(max(2, round(share * len(names))), len(names) - 2)
    return set(sorted(names, key=lambda name: _place(name, seed))[:count])


def _place(name: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed} {name}".encode("utf-8", "surrogateescape")).digest()
