"""A user's tracklet with its labels as they are written, and what the words mean."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, TypeVar

from fastreid_star.data.folders import natural_key
from fastreid_star.data.tracklets import MODALITIES
from fastreid_star.errors import UserError
from fastreid_star.structures import Modality

Identity = TypeVar("Identity", str, int)

# a folder named 1 or 2 says nothing, a level or a column of modalities does
WORDS = {**MODALITIES, **{str(int(modality)): modality for modality in Modality}}


class Labeled(NamedTuple):
    """A tracklet that was found.

    Args:
        where: its place, for messages: ``anna/rgb/1/a`` or ``line 5``.
        frames: image files, absolute or relative to the dataset's folder, in temporal order.
        identity, modality, camera, split: as written; empty: not given.
    """

    where: str
    frames: tuple[str, ...]
    identity: str
    modality: str
    camera: str = ""
    split: str = ""


def modality_of(found: Labeled, cure: str = "") -> Modality:
    """What the word for the modality means.

    Args:
        found: the tracklet.
        cure: what else the user can do, for the message.

    Raises:
        UserError: the word is unknown, or the camera has the name of the other modality.
    """
    try:
        own = WORDS[found.modality.lower()]
    except KeyError:
        raise UserError(
            f"{found.where}: {found.modality!r} is no modality: write one of {', '.join(WORDS)} "
            f"(1 is infrared, 2 visible, as in HITSZ-VCM){cure}"
        ) from None
    if MODALITIES.get(found.camera.lower(), own) != own:
        raise UserError(
            f"{found.where}: the modality {found.modality!r} is {own.name.lower()}, but the camera "
            f"is {found.camera!r}: exchange them, or rename the camera{cure}"
        )
    return own


def numbered(names: Iterable[str]) -> dict[str, int]:
    """A number for each name: its own if all names are different numbers, else by natural order."""
    ordered = sorted(set(names), key=natural_key)
    own = {name: int(name) for name in ordered if name.isascii() and name.isdecimal()}
    if len(set(own.values())) == len(ordered) and max(own.values(), default=0) < 2**31:
        return own
    return {name: number for number, name in enumerate(ordered)}


def one_modality(labels: Iterable[tuple[Identity, Modality]]) -> dict[Identity, Modality]:
    """The identities, names or numbers, that appear in one modality only, and in which."""
    kinds: dict[Identity, set[Modality]] = {}
    for identity, modality in labels:
        kinds.setdefault(identity, set()).add(modality)
    return {identity: next(iter(of)) for identity, of in kinds.items() if len(of) == 1}
