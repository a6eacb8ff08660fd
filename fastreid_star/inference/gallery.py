"""A gallery that is searched: named features, ranked exactly as the evaluation ranks them.

To rank own tracklets, with a folder of images for each below ``crops/rgb`` and ``crops/ir``:

    predictor = StarPredictor.from_run("logs/run")
    visible, infrared = tracklets_in("crops/rgb"), tracklets_in("crops/ir")
    gallery = Gallery(predictor)
    gallery.add(predictor.features(visible), [tracklet.name for tracklet in visible], "visible")
    lists = gallery.search(predictor.features(infrared), k=5, modality="visible")

``lists[0].names`` are then the five visible tracklets most similar to the first infrared one.

Letters: N entries, Q queries, P parts of a feature, D feature width.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fastreid_star.data.folders import check_names
from fastreid_star.data.tracklets import as_modality
from fastreid_star.errors import UserError
from fastreid_star.evaluation.rerank import Reranking
from fastreid_star.evaluation.similarity import (
    check_features,
    first_ranked,
    normalize,
    shorten,
    similarity,
)
from fastreid_star.files import prepare_output, waiting_lock, write_output
from fastreid_star.inference.fingerprint import differences
from fastreid_star.inference.predictor import StarPredictor
from fastreid_star.structures import Modality

FILE, LOCK = "gallery.npz", ".lock"
_BLOCK = 2**24  # similarities that are computed and ranked at once; takes up to 450 MiB


@dataclass(frozen=True, eq=False)
class RankedList:
    """The entries most similar to one query, most similar first. Ties keep the gallery's order.

    Args:
        names: k names, or fewer if the gallery has fewer.
        similarities: float32 ``[k]``, see :func:`~fastreid_star.evaluation.similarity.similarity`.
        indices: int64 ``[k]``, positions in the gallery.
    """

    names: tuple[str, ...]
    similarities: np.ndarray
    indices: np.ndarray

    def __len__(self) -> int:
        return len(self.names)


class Gallery:
    """Named features of both modalities, in the order in which they were added.

    Args:
        made_with: the predictor whose features are added, or its fingerprint.

    Attributes:
        names: N names.
        modalities: the modality of each entry.
        metadata: a dict of JSON values for each entry.
    """

    def __init__(self, made_with: StarPredictor | dict[str, Any]):
        self.fingerprint = made_with if isinstance(made_with, dict) else made_with.fingerprint
        self.names: list[str] = []
        self.modalities: list[Modality] = []
        self.metadata: list[dict[str, Any]] = []
        self._features = torch.empty(0, 0)

    def __len__(self) -> int:
        return len(self.names)

    def __contains__(self, name: str) -> bool:
        return name in self.names

    def features(self) -> np.ndarray:
        """All features, float32 ``[N, D]`` or ``[N, P, D]``, in the gallery's order; a copy."""
        return self._features.numpy().copy()

    def add(
        self,
        features: torch.Tensor | np.ndarray,
        names: Sequence[str],
        modality: Modality | str | Sequence[Modality | str],
        metadata: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        """Add entries at the end. If an error is raised, no entry is added.

        Args:
            features: ``[n, D]`` or ``[n, P, D]``; ``[n, D]`` is L2-normalized here.
            names: n names. All names of a gallery differ.
            modality: the modality of all entries, or n modalities.
            metadata: n dicts of JSON values, stored with the entries.

        Raises:
            UserError: a name is used already, a modality is unknown, or a feature is not finite.
            ValueError: numbers or shapes do not match.
        """
        new = self._check(features)
        given = [modality] * len(names) if isinstance(modality, str | int) else list(modality)
        own = [{} for _ in names] if metadata is None else [dict(entry) for entry in metadata]
        if not len(new) == len(names) == len(given) == len(own):
            raise ValueError(
                f"{len(new)} features, {len(names)} names, {len(given)} modalities and {len(own)} "
                "metadata"
            )
        kinds = [as_modality(value) for value in given]
        self.check_names(names)
        json.dumps(own)  # raises TypeError now, not when the gallery is saved
        self._features = torch.cat([self._features, new]) if self.names else new
        self.names += names
        self.modalities += kinds
        self.metadata += own

    def check_names(self, names: Sequence[str]) -> None:
        """Check that entries of these names can be added.

        Raises:
            UserError: a name is given twice or is used already.
        """
        check_names(names)
        used = sorted(set(names) & set(self.names))
        if used:
            raise UserError(
                f"{len(used)} names are already in the gallery, first {used[0]!r}: add --replace "
                "to replace these entries (in Python: Gallery.remove), or rename the new tracklets"
            )

    def remove(self, names: str | Sequence[str]) -> None:
        """Remove entries. If an error is raised, no entry is removed.

        Raises:
            UserError: no entry has one of the names.
        """
        gone = {names} if isinstance(names, str) else set(names)
        unknown = sorted(gone - set(self.names))
        if unknown:
            raise UserError(f"the gallery has no entry named {unknown[0]!r}")
        keep = [place for place, name in enumerate(self.names) if name not in gone]
        self.names = [self.names[place] for place in keep]
        self.modalities = [self.modalities[place] for place in keep]
        self.metadata = [self.metadata[place] for place in keep]
        self._features = self._features[keep]

    def search(
        self,
        features: torch.Tensor | np.ndarray,
        k: int = 10,
        *,
        modality: Modality | str | None = None,
        reranking: Reranking | None = None,
    ) -> list[RankedList]:
        """Rank the gallery for every query. Every entry is compared.

        Args:
            features: ``[Q, D]`` or ``[Q, P, D]``, computed with this gallery's model.
            k: the length of each list.
            modality: rank the entries of this modality only; None: all entries.
            reranking: applied to the queries and the ranked entries together, so that a list
                depends on the other queries as well; None: none.

        Returns:
            Q ranked lists.

        Raises:
            UserError: k is below 1, there is nothing to rank, a feature is not finite, or
                `reranking` needs the halves of the tracklets.
            ValueError: features of another shape.
        """
        if k < 1:
            raise UserError(f"k is {k}: ask for at least one entry")
        kind = None if modality is None else as_modality(modality)
        places = np.flatnonzero([kind in (None, own) for own in self.modalities])
        if not len(places):
            name = "" if kind is None else f"{kind.name.lower()} "
            raise UserError(f"the gallery has no {name}entries to rank; it has {len(self)} in all")
        query, entries = self._check(features), self._features[places]
        lists = []
        require_single_features(reranking)
        if reranking is not None and reranking != Reranking():
            values = iter([reranking.similarity(query[None], entries[None])])
        else:
            blocks = query.split(max(1, _BLOCK // len(places)))
            values = (similarity(block, entries) for block in blocks)
        for found in map(torch.Tensor.numpy, values):
            for values, order in zip(found, first_ranked(found, k), strict=True):
                names = tuple(self.names[place] for place in places[order])
                lists.append(RankedList(names, values[order], places[order]))
        return lists

    def save(self, folder: str | os.PathLike) -> None:
        """Write the gallery into a folder, as ``gallery.npz``.

        The file is replaced in one step. To add to a gallery that other programs add to as well,
        use :meth:`update`, which saves it itself: do not call :meth:`save` inside.

        Args:
            folder: it is created if it does not exist.

        Raises:
            UserError: the folder contains other files or cannot be written.
        """
        with _locked(folder):
            self._write(folder)

    def _write(self, folder: str | os.PathLike) -> None:
        about = {
            "names": self.names,
            "modality": self.modalities,
            "metadata": self.metadata,
            "fingerprint": self.fingerprint,
        }
        arrays: dict[str, Any] = {
            "features": self._features.numpy(),
            "about": np.frombuffer(json.dumps(about).encode(), np.uint8),
        }
        write_output(os.path.join(folder, FILE), lambda file: np.savez(file, **arrays))

    @classmethod
    def load(cls, folder: str | os.PathLike, made_with: StarPredictor | dict[str, Any]) -> Gallery:
        """Read a saved gallery. No code in the file is run.

        Args:
            folder: the gallery's folder.
            made_with: the predictor whose features are searched in it, or its fingerprint.

        Raises:
            UserError: there is no gallery, it cannot be read or is damaged, or it was made with
                another model or config.
        """
        path, gallery = os.path.join(folder, FILE), cls(made_with)
        if not os.path.isfile(path):
            raise UserError(
                f"{folder} is not a gallery, it has no {FILE}: make one with the command "
                "`features --gallery`"
            )
        try:
            with np.load(path, allow_pickle=False) as arrays:
                features = arrays["features"]
                about = json.loads(arrays["about"].tobytes())
            different = differences(about["fingerprint"], gallery.fingerprint)
            if not different:
                gallery.add(features, about["names"], about["modality"], about["metadata"])
        except OSError as error:
            raise UserError(f"gallery {path} cannot be read: {error.strerror or error}") from error
        except (
            Exception
        ) as error:  # a damaged file can raise any error, from BadZipFile to TypeError
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            raise UserError(f"gallery {path} is damaged ({reason}): make it again") from error
        if different:
            raise UserError(
                f"gallery {folder} was made with another model or config "
                f"({shorten(different, 4)}): use the model it was made with, or make it again"
            )
        return gallery

    @classmethod
    @contextlib.contextmanager
    def update(
        cls, folder: str | os.PathLike, made_with: StarPredictor | dict[str, Any]
    ) -> Iterator[Gallery]:
        """Load a gallery, or start a new one, change it and save it, while other programs wait.

            with Gallery.update("galleries/crops", predictor) as gallery:
                gallery.add(features, names, "visible")

        Raises:
            UserError: see :meth:`load` and :meth:`save`.
        """
        with _locked(folder):
            exists = os.path.isfile(os.path.join(folder, FILE))
            gallery = cls.load(folder, made_with) if exists else cls(made_with)
            yield gallery
            gallery._write(folder)

    def _check(self, features: torch.Tensor | np.ndarray) -> torch.Tensor:
        """Features as the gallery stores them, float32 on the CPU."""
        features = torch.as_tensor(features).detach().to("cpu", torch.float32)
        own = self._features.shape[1:] if self.names else features.shape[1:]
        if features.ndim not in (2, 3) or features.shape[1:] != own:
            raise ValueError(
                f"features must be [N, D] or [N, P, D], in this gallery of {list(own)} numbers "
                f"each, got {list(features.shape)}"
            )
        check_features(features, "the tracklets'")
        unit = normalize(features)
        # Features that a predictor has normalized are kept to the last bit.
        return features if torch.allclose(unit, features, rtol=0, atol=1e-6) else unit


def require_single_features(reranking: Reranking | None) -> None:
    """Raise a UserError if a re-ranking needs the halves of the tracklets."""
    if reranking is not None and reranking.views > 1:
        raise UserError(
            "temporal re-ranking needs the features of both halves of each tracklet, which a "
            "gallery does not have: add --set TEST.RERANK.TEMPORAL False"
        )


def prepare_gallery(folder: str | os.PathLike) -> None:
    """Create the folder of a gallery if it does not exist.

    Raises:
        UserError: it is a file, contains something else, or cannot be created or written.
    """
    is_gallery = os.path.isfile(os.path.join(folder, FILE))
    is_empty = os.path.isdir(folder) and set(os.listdir(folder)) <= {LOCK}
    if os.path.exists(folder) and not (is_gallery or is_empty):
        raise UserError(f"{folder} is not a gallery and not an empty folder: choose another folder")
    prepare_output(os.path.join(folder, FILE))
    try:
        open(os.path.join(folder, LOCK), "ab").close()
    except OSError as error:
        raise UserError(f"gallery {folder} cannot be written: {error.strerror}") from error


@contextlib.contextmanager
def _locked(folder: str | os.PathLike) -> Iterator[None]:
    """Prepare a gallery's folder, and wait until no other program writes to it."""
    prepare_gallery(folder)
    with waiting_lock(os.path.join(folder, LOCK)):
        yield
