"""A run as the checks before it see it, and what a check reports."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import fastreid.data.build as fastreid_build
from fastreid.config import CfgNode
from fastreid.data.datasets import DATASET_REGISTRY
from fastreid.modeling.meta_arch import META_ARCH_REGISTRY

from fastreid_star.data.build import build_dataset, is_video_dataset
from fastreid_star.errors import UserError


class Problem(NamedTuple):
    """One line about a run: the cause and the cure. One that is not fatal is a warning."""

    text: str
    fatal: bool = True


@dataclass
class Run:
    """What the checks look at.

    Args:
        cfg: complete.
        training: False: only an evaluation of MODEL.WEIGHTS.
        world_size, local_size: number of processes, in all and on this machine.
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
        trained = [*data.NAMES, *data.AUXILIARY] if self.training else []
        names = [*trained, *data.TESTS]
        return list(dict.fromkeys(name for name in names if isinstance(name, str)))

    @property
    def kind(self) -> str | None:
        """``video`` or ``image``; None: datasets of both kinds, unknown ones, or none."""
        try:
            kinds = {is_video_dataset(name) for name in self.dataset_names}
        except UserError:
            return None
        return {True: "video", False: "image"}[kinds.pop()] if len(kinds) == 1 else None

    @property
    def video(self) -> bool:
        """Whether all datasets are known and hold tracklets."""
        return self.kind == "video"

    @functools.cached_property
    def opened(self) -> dict[str, Any]:
        """The datasets by name, or the UserError that explains why one cannot be opened."""
        opened: dict[str, Any] = {}
        for name in self.dataset_names if self.kind else ():
            try:
                opened[name] = self._open(name)
            except UserError as error:
                opened[name] = error
            except Exception as error:  # of an image dataset: RuntimeError, AssertionError, ...
                opened[name] = UserError(f"dataset {name} cannot be opened: {error}")
        return opened

    def _open(self, name: str) -> Any:
        trained = self.training and name in self.cfg.DATASETS.NAMES
        combine = trained and self.cfg.DATASETS.COMBINEALL
        if self.video:
            return build_dataset(self.cfg, name, combineall=combine)
        root = self.cfg.DATASETS.ROOT or fastreid_build._root
        return DATASET_REGISTRY.get(name)(root=root, combineall=combine)

    def datasets(self, names: Iterable[str]) -> list[Any]:
        """Those of these datasets that can be opened, each once."""
        found = [data for name, data in self.opened.items() if name in names]
        return [data for data in found if not isinstance(data, UserError)]
