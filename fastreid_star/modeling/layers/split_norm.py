"""BatchNorm with a set of statistics and parameters for each kind of rows, such as each modality.

The convolutions around it stay shared. Which rows are of which kind is set once for a network,
before it runs.

Shapes: N rows of a batch, S sets.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from fastreid_star.errors import UserError


class RowSets:
    """Which set of BatchNorm each row of a batch takes; one object for all norms of a network.

    Exactly one of :meth:`all_take`, :meth:`take` and :meth:`choose` is called before a pass.
    """

    only: int | None
    counts: list[int]
    order: torch.Tensor | None
    back: torch.Tensor | None
    flags: torch.Tensor | None

    def __init__(self) -> None:
        self.all_take(0)

    def all_take(self, number: int) -> None:
        """All rows take this set."""
        self._clear()
        self.only = number

    def take(self, sets: torch.Tensor, device: torch.device) -> None:
        """Each row takes its own set; rows may have any order.

        Args:
            sets: int64 ``[N]``, on the host, so that no shape depends on data on the device.
            device: of the maps.
        """
        self._clear()
        self.counts = sets.bincount().tolist()
        order = sets.argsort(stable=True)
        if not torch.equal(sets, sets[order]):  # not sorted: rows are gathered, and put back
            self.order = order.to(device, non_blocking=True)
            self.back = order.argsort().to(device, non_blocking=True)

    def choose(self, flags: torch.Tensor) -> None:
        """Rows take set 0 where `flags` ``[N]`` is above 0.5, else set 1, without a branch on data.

        For export; in evaluation only.
        """
        self._clear()
        self.flags = flags

    def _clear(self) -> None:
        self.only, self.counts = None, []
        self.order = self.back = self.flags = None


class SplitBatchNorm(nn.Module):
    """S copies of a BatchNorm, one for each set of rows.

    Args:
        norm: the norm that all copies start as.
        number: S.
        rows: which rows take which copy.
    """

    def __init__(self, norm: nn.Module, number: int, rows: RowSets):
        super().__init__()
        self.sets = nn.ModuleList([norm, *(copy.deepcopy(norm) for _ in range(number - 1))])
        self.rows = rows

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps or features ``[N, C, ...]``."""
        rows = self.rows
        if rows.only is not None:
            return self.sets[rows.only](x)
        if rows.flags is not None:
            flags = (rows.flags > 0.5).view(-1, *[1] * (x.dim() - 1))
            return torch.where(flags, self.sets[0](x), self.sets[1](x))
        if rows.order is not None:
            x = x.index_select(0, rows.order)
        parts = zip(self.sets, x.split(rows.counts), strict=False)
        x = torch.cat([norm(part) for norm, part in parts if len(part)])
        return x if rows.back is None else x.index_select(0, rows.back)

    def fill_state(self, state: dict[str, Any], prefix: str) -> None:
        """Give all copies the weights of one BatchNorm, where a state has no more.

        Args:
            state: weights by name; it is changed.
            prefix: the name of this module and a dot.
        """
        names = [prefix + name for name in self.sets[0].state_dict()]
        for name in names:
            if name in state:
                value = state.pop(name)
                own = name.removeprefix(prefix)
                state.update({f"{prefix}sets.{i}.{own}": value for i in range(len(self.sets))})

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *args: Any) -> None:
        """Load weights; those of an unsplit network have one BatchNorm."""
        self.fill_state(state, prefix)
        super()._load_from_state_dict(state, prefix, *args)


def split_norms(network: nn.Module, number: int) -> None:
    """Give each BatchNorm of a network `number` copies, with one :class:`RowSets`, in place.

    Raises:
        UserError: the network has no BatchNorm.
    """
    rows, found = RowSets(), False
    for parent in [*network.modules()]:
        for name, child in [*parent.named_children()]:
            if isinstance(child, nn.modules.batchnorm._BatchNorm):
                setattr(parent, name, SplitBatchNorm(child, number, rows))
                found = True
    if not found:
        raise UserError("MODEL.BACKBONE has no BatchNorm that could be split: choose a ResNet")


def rows_of(network: nn.Module) -> RowSets:
    """The :class:`RowSets` of a network's norms; also of a copy of it."""
    return next(module.rows for module in network.modules() if isinstance(module, SplitBatchNorm))
