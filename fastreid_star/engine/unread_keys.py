"""Config keys that a user has set and that nothing in the run has read."""

from __future__ import annotations

import logging
from typing import Any

from fastreid.config import CfgNode, get_cfg
from fastreid.utils import comm

from fastreid_star.engine.config_changes import flatten, in_sections
from fastreid_star.errors import UserError

logger = logging.getLogger(__name__)
# read outside of the run, or only in its first step
_READ_ELSEWHERE = (
    "VERSION", "IMPORTS", "OUTPUT_DIR", "SEED", "TRACKERS", "MODEL.WEIGHTS",
    "SOLVER.CLIP_GRADIENTS",
)  # fmt: skip
# fast-reid's heads read it, and the heads of clips have a pooling of their own
_READ_IN_VAIN = ("MODEL.HEADS.POOL_LAYER",)


class _Keys(set):
    """A set that all copies of a config share."""

    def __deepcopy__(self, memo):
        return self


class RecordedConfig(CfgNode):
    """A config that records which of its keys are read, also through copies of it.

    ``RecordedConfig.of(cfg)`` makes one. Merging, dumping and comparing do not count as reading.
    """

    @classmethod
    def of(cls, cfg: CfgNode, prefix: str = "", keys: _Keys | None = None) -> RecordedConfig:
        """A copy of `cfg`; the other arguments are for its sections."""
        keys = _Keys() if keys is None else keys
        recorded = cls()
        for name, value in cfg.items():
            child = isinstance(value, CfgNode)
            dict.__setitem__(
                recorded, name, cls.of(value, f"{prefix}{name}.", keys) if child else value
            )
        recorded.__dict__.update(cfg.__dict__, _prefix=prefix, _keys=keys)
        return recorded

    def __getitem__(self, name: str) -> Any:
        if "_keys" in self.__dict__:
            self._keys.add(f"{self._prefix}{name}")
        return super().__getitem__(name)


def check_unread(
    cfg: RecordedConfig,
    *,
    clips: bool = True,
    sections: tuple[str, ...] = (),
    without: tuple[str, ...] = (),
) -> None:
    """Log the keys that differ from their defaults and that nothing has read.

    A feature that is switched on without effect (``TEST.RERANK.ENABLED``), or a sampler of another
    kind, is refused: the results would silently be those without it.

    Args:
        cfg: everything was built from it.
        clips: whether the run trains on clips, whose heads read some keys in vain.
        sections: only keys in these; empty: all.
        without: no keys in these.

    Raises:
        UserError: this run does not support a feature that is switched on.
    """
    defaults, values = flatten(get_cfg()), flatten(cfg)
    unread = [
        key
        for key, value in values.items()
        if value != defaults.get(key)
        and (key not in cfg._keys or (clips and key in _READ_IN_VAIN))
        and not in_sections(key, _READ_ELSEWHERE + without)
        and (not sections or in_sections(key, sections))
    ]
    switches = [key for key in unread if key.endswith(".ENABLED") and values[key]]
    refused = switches + [key for key in unread if key == "DATALOADER.SAMPLER_TRAIN"]
    if refused:
        pairs = ", ".join(f"{key} {values[key]}" for key in refused)
        raise UserError(f"{pairs}: {cfg.MODEL.META_ARCHITECTURE} on clips has no such feature")
    if unread and comm.is_main_process():
        logger.warning(f"Config keys without effect in this run: {', '.join(unread)}")
