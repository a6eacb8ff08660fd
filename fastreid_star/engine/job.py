"""A run as the checks before it see it, and what a check has to say."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from fastreid.config import CfgNode
from fastreid.modeling.meta_arch import META_ARCH_REGISTRY

from fastreid_star.data.build import build_dataset, is_video_dataset
from fastreid_star.data.datasets import VideoDataset
from fastreid_star.errors import UserError


class Problem(NamedTuple):
    """One line about a run.

    Args:
        text: what is wrong, and the cure.
        fatal: the run cannot go well; False: it may, but somebody should know.
    """

    text: str
    fatal: bool = True


@dataclass(frozen=True)
class Job:
    """What is to be checked, and what several checks want to know of it.

    Args:
        cfg: a complete config.
        training: False: only an evaluation of MODEL.WEIGHTS.
        world_size: how many processes there will be.
        local_size: how many of them on one machine.
    """

    cfg: CfgNode
    training: bool = True
    world_size: int = 1
    local_size: int = 1

    @property
    def network(self) -> type | None:
        """The class of MODEL.META_ARCHITECTURE; None where there is none."""
        return META_ARCH_REGISTRY._obj_map.get(self.cfg.MODEL.META_ARCHITECTURE)

    @property
    def dataset_names(self) -> list[str]:
        """Those that the run reads, each once."""
        names = (
            [*self.cfg.DATASETS.NAMES, *self.cfg.DATASETS.TESTS]
            if self.training
            else self.cfg.DATASETS.TESTS
        )
        return [
            name for number, name in enumerate(names) if name not in names[:number]
        ]  # a name may be a list

    @property
    def video(self) -> bool:
        """Whether all of them are known and hold tracklets."""
        try:
            return bool(self.dataset_names) and all(
                is_video_dataset(name) for name in self.dataset_names
            )
        except (UserError, TypeError):
            return False

    @functools.cached_property
    def opened(self) -> dict[str, VideoDataset | UserError]:
        """The datasets of tracklets by name, or why one cannot be opened; each is opened once."""
        opened: dict[str, VideoDataset | UserError] = {}
        for name in self.dataset_names if self.video else ():
            try:
                combine = self.training and self.cfg.DATASETS.COMBINEALL
                opened[name] = build_dataset(self.cfg, name, combineall=combine)
            except UserError as error:
                opened[name] = error
        return opened

    def datasets(self, names: Iterable[str]) -> list[VideoDataset]:
        """Of these, the ones that can be opened."""
        found = [self.opened.get(name) for name in names if isinstance(name, str)]
        return [data for data in found if isinstance(data, VideoDataset)]


# Says what is wrong, or raises a UserError of it.
Check = Callable[[Job], Iterable[Problem]]
