"""Config keys that a user has set and that nothing in the run has read."""

from __future__ import annotations

import logging
from typing import Any

from fastreid.config import CfgNode, get_cfg
from fastreid.utils import comm

from fastreid_star.engine.fingerprint import flatten, in_sections
from fastreid_star.errors import UserError

logger = logging.getLogger(__name__)

# read after the building, or outside of the run
_READ_ELSEWHERE = ("VERSION", "OUTPUT_DIR", "SEED", "MODEL.CPU", "MODEL.WEIGHTS", "SOLVER.CLIP_GRADIENTS")


class _Keys(set):
    """A set that all copies of a config share."""

    def __deepcopy__(self, memo):
        return self


class RecordedConfig(CfgNode):
    """A config that records which of its keys are read, also through copies of it.

    ``RecordedConfig.of(cfg)`` makes one. Merging, dumping and comparing do not count as reading.
    """

    @classmethod
    def of(cls, cfg: CfgNode) -> RecordedConfig:
        """A copy of `cfg`, frozen as it is."""
        recorded = cls._wrap(cfg, "", _Keys())
        if cfg.is_frozen():
            recorded.freeze()
        return recorded

    @classmethod
    def _wrap(cls, node: CfgNode, prefix: str, keys: _Keys) -> RecordedConfig:
        recorded = cls()
        for name, value in node.items():
            child = isinstance(value, CfgNode)
            dict.__setitem__(
                recorded, name, cls._wrap(value, f"{prefix}{name}.", keys) if child else value
            )
        recorded.__dict__.update(_prefix=prefix, _keys=keys)
        for name in (cls.DEPRECATED_KEYS, cls.RENAMED_KEYS, cls.NEW_ALLOWED):
            recorded.__dict__[name] = node.__dict__[name]
        return recorded

    def __getitem__(self, name: str) -> Any:
        if "_keys" in self.__dict__:
            self._keys.add(f"{self._prefix}{name}")
        return super().__getitem__(name)


def check_unread(cfg: RecordedConfig, *, sections: tuple[str, ...] = (), without: tuple[str, ...] = ()) -> None:
    """Name the keys that differ from their defaults and that nothing has read.

    They are logged in one line. A feature that was switched on (``TEST.RERANK.ENABLED``) and a
    sampler of another kind are refused: the results would silently be those without it.

    Args:
        cfg: everything was built from it.
        sections: only keys in these; empty: all.
        without: no keys in these.

    Raises:
        UserError: a feature is switched on that this run does not have.
    """
    defaults, values = flatten(get_cfg()), flatten(cfg)
    unread = [
        key
        for key, value in values.items()
        if value != defaults.get(key)
        and key not in cfg._keys
        and not in_sections(key, _READ_ELSEWHERE + without)
        and (not sections or in_sections(key, sections))
    ]
    refused = [key for key in unread if key == "DATALOADER.SAMPLER_TRAIN" or (key.endswith(".ENABLED") and values[key])]
    if refused:
        pairs = ", ".join(f"{key} {values[key]}" for key in refused)
        raise UserError(
            f"{pairs}: not supported by {cfg.MODEL.META_ARCHITECTURE} on "
            f"{', '.join(map(str, cfg.DATASETS.TESTS))}; leave it at its default"
        )
    if unread and comm.is_main_process():
        logger.warning(f"Config keys without effect in this run: {', '.join(unread)}")
