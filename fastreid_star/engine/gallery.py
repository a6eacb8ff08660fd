"""A gallery that is searched: features with names, ranked by cosine similarity, exactly.

To rank tracklets of one's own, with a folder of images for each below ``crops/rgb`` and ``crops/ir``:

    predictor = StarPredictor.from_run("logs/run")
    visible, infrared = tracklets_in("crops/rgb"), tracklets_in("crops/ir")
    gallery = Gallery(predictor)
    gallery.add(predictor.features(visible), [tracklet.name for tracklet in visible], "visible")
    lists = gallery.search(predictor.features(infrared), k=5, modality="visible")

``lists[0].names`` are then the five visible tracklets most like the first infrared one.

N entries, Q queries, D feature width.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
import torch

from fastreid_star.data.tracklets import as_modality
from fastreid_star.engine.fingerprint import Fingerprint
from fastreid_star.engine.gallery_files import (
    INDEX_FILE,
    check_gallery_folder,
    read_features,
    read_index,
    write_gallery,
)
from fastreid_star.engine.predictor import StarPredictor
from fastreid_star.errors import UserError
from fastreid_star.evaluation.retrieval import check_features, shorten
from fastreid_star.structures import Modality

# For so few queries a matrix product with the vectors of a FAISS index is twice as fast as its search, and as exact.
_FEW_QUERIES = 4
# Of the length of a feature that was normalized in float32.
_ROUNDING = 1e-6


@dataclass(frozen=True, eq=False)
class RankedList:
    """The entries most like one query, the most alike first. Equal similarities keep the gallery's order.

    Args:
        names: k of them, or as many as there are.
        similarities: float32 [k], cosines.
        indices: int64 [k], positions in the gallery.
    """

    names: tuple[str, ...]
    similarities: np.ndarray
    indices: np.ndarray

    def __len__(self) -> int:
        return len(self.names)


class Gallery:
    """Entries of both modalities, in the order they were added; one exact FAISS index a modality.

    A removed entry leaves no gap: those after it move up.

    Args:
        made_with: the predictor whose features go in, or its fingerprint.
    """

    def __init__(self, made_with: StarPredictor | Fingerprint):
        self.fingerprint = _fingerprint(made_with)
        self.names: list[str] = []
        self.metadata: list[dict[str, Any]] = []
        self._position: dict[str, int] = {}
        self._modality = np.zeros(0, np.int8)
        self._indexes: dict[Modality, faiss.IndexFlatIP] = {}

    def __len__(self) -> int:
        return len(self.names)

    def __contains__(self, name: str) -> bool:
        return name in self._position

    @property
    def width(self) -> int | None:
        """D; None as long as nothing has been added."""
        return next((index.d for index in self._indexes.values()), None)

    @property
    def modalities(self) -> list[Modality]:
        """Of each entry."""
        return [Modality(value) for value in self._modality.tolist()]

    def position(self, name: str) -> int:
        """Where the entry of this name is.

        Raises:
            UserError: there is none.
        """
        if name not in self._position:
            raise UserError(f"the gallery has no entry named {name!r}")
        return self._position[name]

    def add(
        self,
        features: torch.Tensor | np.ndarray,
        names: Sequence[str],
        modality: Modality | str | Sequence[Modality | str],
        metadata: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        """Add entries at the end; all of them, or in case of an error none.

        Args:
            features: [n, D], of any length: they are L2-normalized here.
            names: n, each different from all others in the gallery.
            modality: of all, or n of them.
            metadata: n dicts of what JSON can say, kept with the entries.

        Raises:
            UserError: a name is taken, a modality is none, or a feature is no direction: not finite, or zero.
            ValueError: numbers or widths that do not fit one another.
        """
        features, names = _unit(features, self.width), list(names)
        given = [modality] * len(names) if isinstance(modality, str | int) else list(modality)
        own = [{} for _ in names] if metadata is None else [dict(entry) for entry in metadata]
        if not len(features) == len(names) == len(given) == len(own):
            raise ValueError(
                f"{len(features)} features, {len(names)} names, {len(given)} modalities and {len(own)} metadata"
            )
        kinds = np.array([as_modality(value) for value in given], np.int8)
        self.check_names(names)
        json.dumps(own)  # what cannot be saved is not taken in
        for kind in np.unique(kinds):
            self._index(Modality(kind), features.shape[1]).add(features[kinds == kind])
        self._position.update({name: place for place, name in enumerate(names, len(self.names))})
        self.names += names
        self.metadata += own
        self._modality = np.concatenate([self._modality, kinds])

    def check_names(self, names: Sequence[str]) -> None:
        """Refuse names that cannot be added.

        Raises:
            UserError: one is empty, given twice or taken.
        """
        if not all(isinstance(name, str) and name for name in names):
            raise UserError("every entry of a gallery needs a name that is not empty")
        known, twice = set(self._position), []
        for name in names:
            if name in known:
                twice.append(name)
            known.add(name)
        if twice:
            raise UserError(
                f"{len(twice)} names are in the gallery already or given twice, first {twice[0]!r}: give other ones, "
                "or remove those first"
            )

    def remove(self, names: str | Sequence[str]) -> None:
        """Take entries out; all of them, or in case of an error none.

        Raises:
            UserError: there is no entry of a name.
        """
        gone = np.unique(
            [self.position(name) for name in ([names] if isinstance(names, str) else names)]
        ).astype(int)
        for kind, index in self._indexes.items():
            rows = np.flatnonzero(np.isin(self._positions(kind), gone))
            if len(rows):
                index.remove_ids(rows.astype(np.int64))
        keep = np.setdiff1d(np.arange(len(self)), gone)
        self.names = [self.names[place] for place in keep]
        self.metadata = [self.metadata[place] for place in keep]
        self._modality = self._modality[keep]
        self._position = {name: place for place, name in enumerate(self.names)}

    def search(
        self,
        features: torch.Tensor | np.ndarray,
        k: int = 10,
        *,
        modality: Modality | str | None = None,
    ) -> list[RankedList]:
        """Rank the gallery for every query by cosine similarity, exactly: every entry is compared.

        Args:
            features: [Q, D], made with this gallery's model.
            k: how many entries of each list; fewer where there are fewer.
            modality: rank entries of this one only; None: all.

        Returns:
            Q ranked lists.

        Raises:
            UserError: k is below 1, there is nothing to rank, or a feature is not finite or zero.
            ValueError: features of another width.
        """
        if k < 1:
            raise UserError(f"k is {k}: ask for at least one entry")
        kinds = [kind for kind in Modality if modality is None or kind == as_modality(modality)]
        searched = [kind for kind in kinds if kind in self._indexes and self._indexes[kind].ntotal]
        if not searched:
            what = "" if modality is None else f"{as_modality(modality).name.lower()} "
            raise UserError(f"the gallery has no {what}entries to rank: it has {len(self)} in all")
        query = _unit(features, self.width)
        found = [self._search_one(kind, query, k) for kind in searched]
        similarities = np.concatenate([part[0] for part in found], axis=1)
        positions = np.concatenate([part[1] for part in found], axis=1)
        order = np.lexsort((positions, -similarities))[:, :k]
        similarities = np.take_along_axis(similarities, order, axis=1)
        positions = np.take_along_axis(positions, order, axis=1)
        return [
            RankedList(tuple(self.names[place] for place in row), values, row)
            for values, row in zip(similarities, positions, strict=True)
        ]

    def features(self) -> np.ndarray:
        """All features, float32 [N, D], in the gallery's order; a copy."""
        features = np.empty((len(self), self.width or 0), np.float32)
        for kind, index in self._indexes.items():
            features[self._positions(kind)] = _rows(index)
        return features

    def save(self, folder: str | os.PathLike) -> None:
        """Write the gallery into a folder: features, and beside them names, metadata and the fingerprint.

        Whole or not at all: what an interrupted call leaves is the gallery that was there before.

        Args:
            folder: made where it is not there; an older gallery in it is replaced.

        Raises:
            UserError: the gallery is empty, or the folder holds something else or cannot be written.
        """
        if not len(self):
            raise UserError("an empty gallery is not saved: add something first")
        entries = {
            "names": self.names,
            "modality": self._modality.tolist(),
            "metadata": self.metadata,
        }
        write_gallery(
            folder, self.features(), {**entries, "fingerprint": self.fingerprint.to_dict()}
        )

    @classmethod
    def load(cls, folder: str | os.PathLike, made_with: StarPredictor | Fingerprint) -> Gallery:
        """Read what :meth:`save` wrote. No code in the files is run.

        Args:
            folder: the gallery's.
            made_with: the predictor whose features are to be ranked in it, or its fingerprint.

        Raises:
            UserError: there is no gallery, it is damaged, or it was made with another model or config.
        """
        folder, gallery = os.fspath(folder), cls(made_with)
        content = read_index(folder)
        try:
            different = Fingerprint.from_dict(content["fingerprint"]).differences(
                gallery.fingerprint
            )
        except ValueError as error:
            raise _damaged(folder, error) from error
        if different:
            raise UserError(
                f"gallery {folder} was made with another model or config ({shorten(different, 4)}): search it with the "
                "one it was made with, or make it anew"
            )
        features = read_features(folder, content)
        try:
            gallery.add(features, content["names"], content["modality"], content["metadata"])
        except (ValueError, TypeError) as error:
            raise _damaged(folder, error) from error
        return gallery

    def _index(self, kind: Modality, width: int) -> faiss.IndexFlatIP:
        if kind not in self._indexes:
            self._indexes[kind] = faiss.IndexFlatIP(width)
        return self._indexes[kind]

    def _positions(self, kind: Modality) -> np.ndarray:
        """Of a modality's entries, ascending: row by row those of its index."""
        return np.flatnonzero(self._modality == kind)

    def _search_one(
        self, kind: Modality, query: np.ndarray, k: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Similarities and positions [Q, min(k, entries)] of one modality, unordered."""
        index = self._indexes[kind]
        k = min(k, index.ntotal)
        if len(query) <= _FEW_QUERIES:
            similarities, rows = (
                np.empty((len(query), k), np.float32),
                np.empty((len(query), k), np.int64),
            )
            by_product = np.arange(len(query))
        else:
            # One more than asked for tells where equal similarities reach across the cut. Which of them FAISS returns
            # is its own affair: there the product decides.
            found, places = index.search(query, min(k + 1, index.ntotal))
            similarities, rows = found[:, :k], places[:, :k]
            by_product = (
                np.flatnonzero(found[:, k] == found[:, k - 1])
                if found.shape[1] > k
                else np.arange(0)
            )
        for number in by_product:
            every = _rows(index) @ query[number]
            rows[number] = _first(every, k)
            similarities[number] = every[rows[number]]
        return similarities, self._positions(kind)[rows]


def open_gallery(folder: str | os.PathLike, made_with: StarPredictor | Fingerprint) -> Gallery:
    """The gallery in a folder, to add to; a new one where the folder is empty or not there yet.

    Raises:
        UserError: as :meth:`Gallery.load`, or the folder holds something else.
    """
    check_gallery_folder(folder)
    if os.path.isfile(os.path.join(folder, INDEX_FILE)):
        return Gallery.load(folder, made_with)
    return Gallery(made_with)


def _damaged(folder: str, reason: Exception) -> UserError:
    return UserError(f"gallery {folder} is damaged ({reason}): make it anew")


def _fingerprint(made_with: StarPredictor | Fingerprint) -> Fingerprint:
    return made_with if isinstance(made_with, Fingerprint) else made_with.fingerprint


def _unit(features: torch.Tensor | np.ndarray, width: int | None) -> np.ndarray:
    """Features of unit length, float32 [n, D], one after the other in memory.

    Those that are so already are not touched: a predictor's stay what they are to the last bit, and so does a gallery
    that is saved and loaded.
    """
    features = features.detach().cpu().numpy() if isinstance(features, torch.Tensor) else features
    features = np.ascontiguousarray(features, np.float32)
    if features.ndim != 2 or width not in (None, features.shape[1]):
        raise ValueError(
            f"features must be [tracklets, {width or 'width'}], got {list(features.shape)}"
        )
    check_features(torch.from_numpy(features), "the tracklets'")
    lengths = np.sqrt(np.einsum("nd,nd->n", features, features, dtype=np.float64))
    if not lengths.all():
        zero = np.flatnonzero(lengths == 0).tolist()
        raise UserError(
            f"{len(zero)} features are zero, index {shorten(zero)}: they are like nothing"
        )
    if np.abs(lengths - 1).max(initial=0) <= _ROUNDING:
        return features
    return features / lengths[:, None].astype(np.float32)


def _first(similarities: np.ndarray, k: int) -> np.ndarray:
    """Where the k largest of n are, the largest first; of equal ones the first come first."""
    smallest = np.partition(similarities, len(similarities) - k)[len(similarities) - k]
    candidates = np.flatnonzero(similarities >= smallest)
    return candidates[np.argsort(-similarities[candidates], kind="stable")[:k]]


def _rows(index: faiss.IndexFlatIP) -> np.ndarray:
    """What an index holds, [entries, D]; a view, good until the index changes."""
    return faiss.rev_swig_ptr(index.get_xb(), index.ntotal * index.d).reshape(index.ntotal, index.d)
