"""The threshold of a model, in a file beside its checkpoint: above it two tracklets are one person.

It holds for pairs of an infrared and a visible tracklet: two tracklets of one modality are more
similar than that, whoever they show.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from fastreid_star.errors import UserError
from fastreid_star.evaluation.similarity import shorten
from fastreid_star.files import write_output
from fastreid_star.inference.fingerprint import differences
from fastreid_star.structures import Modality

FILE = "threshold.json"


@dataclass(frozen=True)
class Threshold:
    """A threshold and what it was computed from.

    Args:
        value: a pair whose similarity is above it is accepted as one person.
        false_accepts: the share of the pairs of two people that may be above it.
        same_pairs, different_pairs: numbers of pairs of one person and of two.
        true_accepts: the share of the pairs of one person that are above it.
        source: the pairs, in words: the protocol of a test set, or a file.
        fingerprint: of the model, see :func:`~fastreid_star.inference.fingerprint.fingerprint`.
    """

    value: float
    false_accepts: float
    same_pairs: int
    different_pairs: int
    true_accepts: float
    source: str
    fingerprint: dict[str, Any]

    def save(self, folder: str | os.PathLike) -> str:
        """Write ``threshold.json`` into a folder, and return its path.

        Raises:
            UserError: it cannot be written.
        """
        path = os.path.join(folder, FILE)
        text = json.dumps(asdict(self), indent=1) + "\n"
        write_output(path, lambda file: file.write(text.encode()))
        return path

    @classmethod
    def load(cls, folder: str | os.PathLike, fingerprint: dict[str, Any]) -> Threshold:
        """Read the threshold of a model.

        Args:
            folder: of the model's checkpoint.
            fingerprint: of the model.

        Raises:
            UserError: there is none, it cannot be read, or it is that of another model.
        """
        path = os.path.join(folder, FILE)
        again = "compute it with `fastreid-star threshold`"
        try:
            with open(path, encoding="utf-8") as file:
                found = cls(**json.load(file))
            different = differences(found.fingerprint, fingerprint)
            if not isinstance(found.value, float):
                raise TypeError(f"the value is {found.value!r}")
        except FileNotFoundError:
            raise UserError(f"{os.fspath(folder) or '.'} has no {FILE}: {again}") from None
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
        except Exception as error:  # whatever else is in the file
            raise UserError(f"{path} is damaged: {again} again") from error
        if different:
            raise UserError(
                f"{path} is the threshold of another model or config ({shorten(different, 4)}): "
                f"{again} for this one"
            )
        return found


def require_both_modalities(first: Iterable[Modality], second: Iterable[Modality]) -> None:
    """Raise a UserError if the two sides of the pairs have a modality in common."""
    both = set(first) & set(second)
    if both:
        raise UserError(
            "the threshold of a run is for pairs of an infrared and a visible tracklet, not for "
            f"two {' or '.join(modality.name.lower() for modality in sorted(both))} ones"
        )
