"""A run as the checks before it see it, and what a check reports."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import fastreid.data.build as fastreid_build
from fastreid.config import CfgNode
from fastreid.data.datasets import DATASET_REGISTRY
from fastreid.modeling.meta_arch import META_ARCH_REGISTRY

from fastreid_star.data.build import build_dataset, is_video_dataset
from fastreid_star.data.datasets import VideoDataset
from fastreid_star.errors import UserError


class Problem(NamedTuple):
    """One line about a run.

    Args:
        text: the cause and the cure.
        fatal: the run must not start; otherwise it is a warning.
    """

    text: str
    fatal: bool = True


@dataclass
class Run:
    """What the checks look at.

    Args:
        cfg: complete.
        training: False: only an evaluation of MODEL.WEIGHTS.
        world_size: number of processes.
        local_size: number of processes on this machine.
    """

    cfg: CfgNode
    training: bool = True
    world_size: int = 1
    local_size: int = 1

    @property
    def network(self) -> type | None:
        """The class of MODEL.META_ARCHITECTURE; None if no class has this name."""
        return META_ARCH_REGISTRY._obj_map.get(self.cfg.MODEL.META_ARCHITECTURE)

    @property
    def dataset_names(self) -> list[str]:
        """Names of all datasets that the run reads, each once."""
        data = self.cfg.DATASETS
        names = [*data.NAMES, *data.TESTS] if self.training else list(data.TESTS)
        return [name for number, name in enumerate(names) if name not in names[:number]]

    @property
    def video(self) -> bool:
        """Whether all datasets are known and hold tracklets."""
        try:
            names = self.dataset_names
            return bool(names) and all(is_video_dataset(name) for name in names)
        except (UserError, TypeError):
            return False

    @functools.cached_property
    def opened(self) -> dict[str, Any]:
        """The datasets by name, or the UserError that explains why one cannot be opened."""
        opened: dict[str, Any] = {}
        for name in self.dataset_names:
            try:
                opened[name] = self._open(name)
            except UserError as error:
                opened[name] = error
            except Exception as error:  # of an image dataset: RuntimeError, AssertionError, OSError
                opened[name] = UserError(f"dataset {name} cannot be opened: {error}")
        return opened

    def _open(self, name: str):
        combine = self.training and self.cfg.DATASETS.COMBINEALL
        if is_video_dataset(name):
            return build_dataset(self.cfg, name, combineall=combine)
        root = self.cfg.DATASETS.ROOT or fastreid_build._root
        return DATASET_REGISTRY.get(name)(root=root, combineall=combine)

    def datasets(self, names: Iterable[str]) -> list[Any]:
        """Those of these datasets that can be opened."""
        found = [self.opened.get(name) for name in names if isinstance(name, str)]
        return [data for data in found if data is not None and not isinstance(data, UserError)]

    def videos(self, names: Iterable[str]) -> list[VideoDataset]:
        """Those of these datasets that can be opened and hold tracklets."""
        return [data for data in self.datasets(names) if isinstance(data, VideoDataset)]


# Yields problems, or raises a UserError, which is one.
Check = Callable[[Run], Iterable[Problem]]
