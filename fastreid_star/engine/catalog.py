"""The registered losses and augmentations as Markdown tables, for docs/losses.md."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from tabulate import tabulate

from fastreid_star.methods import METHODS
from fastreid_star.modeling.augmentations import AUGMENTATION_REGISTRY
from fastreid_star.modeling.losses import LOSS_REGISTRY

SHARED = "fastreid_star.modeling."
OWN = (SHARED, *(f"{method.__name__}." for method in METHODS))


def loss_table() -> str:
    """A row for each loss of this project: those that any model can use, then those of methods."""
    losses = [loss for loss in _own(LOSS_REGISTRY._obj_map) if loss.log_name]
    losses.sort(key=lambda loss: (not loss.__module__.startswith(SHARED), loss.__module__))
    rows = [
        (
            _code(loss.__name__),
            _code(loss.equation),
            ", ".join(map(_code, loss.needs)),
            ", ".join(_code(f"{name} {getattr(loss, name)}") for name in loss.options),
            loss.source,
        )
        for loss in losses
    ]
    headers = ("loss", "equation", "needs", "options and defaults", "source")
    return tabulate(rows, headers, tablefmt="pipe", disable_numparse=True)


def augmentation_table() -> str:
    """A row for each augmentation of this project: its name, what it does, the default share."""
    rows = []
    for augmentation in _own(AUGMENTATION_REGISTRY._obj_map):
        about = inspect.getdoc(augmentation) or ""
        share = inspect.signature(augmentation).parameters["share"].default
        rows.append((_code(augmentation.__name__), " ".join(about.split()), str(share)))
    headers = ("augmentation", "what it does", "share")
    return tabulate(rows, headers, tablefmt="pipe", disable_numparse=True)


def catalog() -> str:
    """Both tables with their headings."""
    parts = ("## Losses", loss_table(), "## Augmentations", augmentation_table())
    return "\n\n".join(parts)


def _own(registered: Mapping[str, Any]) -> Iterable[Any]:
    """The entries of a registry that this project brings."""
    return [entry for entry in registered.values() if entry.__module__.startswith(OWN)]


def _code(text: str) -> str:
    """As code in a cell of a table."""
    return "`{}`".format(text.replace("|", r"\|"))
