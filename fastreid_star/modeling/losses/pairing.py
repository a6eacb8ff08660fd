"""What losses across modalities share: partners, centers and distillation of logits.

All go by identity and modality, and never by the order of the rows. No shape follows from the data:
a device need not wait for the host.

Shapes: R rows (clips or frames), D feature width, C classes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

from fastreid_star.modeling.layers.pooling import at_least_float32


def rows_are_visible(is_visible: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """`is_visible` ``[N]`` of the frames to that of R clips or frames ``[R]``, on their device."""
    of_rows = is_visible[:: max(len(is_visible) // max(len(rows), 1), 1)]
    return of_rows.to(rows.device, non_blocking=True)


def partners(targets: torch.Tensor, is_visible: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A row of the same identity in the other modality for each row.

    The n-th row of an identity in one modality gets its n-th row in the other; if the other has
    fewer rows, counting starts again. With equal numbers it is a pairing.

    Args:
        targets: ``[R]``, identities.
        is_visible: bool ``[R]``, on the device of `targets`.

    Returns:
        partner ``[R]``, and bool ``[R]``, whether a row has one; a row without is its own partner.
    """
    same = targets[:, None] == targets
    own = same & (is_visible[:, None] == is_visible)
    other = same & ~own
    place = own.tril(-1).sum(1)  # how many rows of its identity and modality stand before a row
    number = other.sum(1)
    has_partner = number > 0
    wanted = place % number.clamp(min=1)
    hits = other & (place[None] == wanted[:, None])  # one in each row that has a partner
    places = torch.arange(len(targets), device=targets.device)
    partner = torch.where(has_partner, (hits * places).sum(1), places)
    return partner, has_partner


class Centers(NamedTuple):
    """Means of the rows of each identity, in as many places as there are rows.

    The center of an identity stands in the place of its first row; the other places are empty.
    `features` ``[R, D]``, 0 in empty places; `targets` ``[R]``; `counts` ``[R]`` of the rows of a
    center, 0 in empty places; `of_row` ``[R]``, the place of each row's center.
    """

    features: torch.Tensor
    targets: torch.Tensor
    counts: torch.Tensor
    of_row: torch.Tensor


def centers(
    features: torch.Tensor, targets: torch.Tensor, chosen: torch.Tensor | None = None
) -> Centers:
    """The center of each identity in a batch, of all its rows or of the `chosen` ones.

    Places do not depend on the choice, so that the centers of two choices, such as ``is_visible``
    and ``~is_visible``, belong together place by place.

    Args:
        features: ``[R, D]``.
        targets: ``[R]``, identities.
        chosen: bool ``[R]``, on the device of `features`.
    """
    places = torch.arange(len(targets), device=targets.device)
    same = targets[:, None] == targets
    of_row = places.expand_as(same).masked_fill(~same, len(targets)).amin(1)
    weights = features.new_ones(len(features)) if chosen is None else chosen.to(features.dtype)
    sums = torch.zeros_like(features).index_add(0, of_row, features * weights[:, None])
    counts = torch.zeros_like(weights).index_add(0, of_row, weights)
    return Centers(sums / counts.clamp(min=1)[:, None], targets, counts, of_row)


def distances(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Euclidean distances ``[R, Q]`` of rows ``[R, D]`` and ``[Q, D]``.

    A distance of 0 has the gradient 0. Differences are taken before squares, so that near rows far
    from 0 keep their digits.
    """
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def distill(
    student: torch.Tensor, teacher: torch.Tensor, *, temperature: float = 1.0, kind: str = "kl"
) -> torch.Tensor:
    """Divergence of the student's class distribution from the teacher's, mean over the rows.

    ``T^2 mean sum_c t (log t - log s)`` (`kl`) or ``- T^2 mean sum_c t log s`` (`ce`) with softmax
    distributions t and s of the logits divided by T; their gradients are the same. The teacher is
    detached. In float32 or wider.

    Args:
        student, teacher: logits ``[R, C]``, row by row.
        temperature: T.
        kind: `kl` or `ce`.
    """
    with torch.autocast(student.device.type, enabled=False):
        log_s = (at_least_float32(student) / temperature).log_softmax(-1)
        log_t = (at_least_float32(teacher).detach() / temperature).log_softmax(-1)
        if kind == "ce":
            total = -(log_t.exp() * log_s).sum()
        else:
            total = F.kl_div(log_s, log_t, reduction="sum", log_target=True)
        return temperature**2 * total / max(len(student), 1)
