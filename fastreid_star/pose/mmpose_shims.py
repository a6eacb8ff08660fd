"""What mmpose 1.3.2 asks of its surroundings and does not need, in one place: stand-ins, each with its reason.

mmcv's compiled operators exist for no recent torch, so mmcv-lite stands in for mmcv, and mmdet does not go with that.
mmpose imports two modules of theirs at its start that no top-down network uses.
"""

from __future__ import annotations

import contextlib
import importlib.machinery
import importlib.util
import sys
import types
import warnings
from collections.abc import Iterator
from typing import Any


def _operators() -> dict[str, types.ModuleType]:
    """EDPose's transformer takes MultiScaleDeformableAttention from ``mmcv.ops`` without asking whether it is there.

    Everything else in mmpose asks, and is told that there are no compiled operators.
    """
    return _stand_in(
        "mmcv.ops", MultiScaleDeformableAttention=type("MultiScaleDeformableAttention", (), {})
    )


def _detector() -> dict[str, types.ModuleType]:
    """RTMO's head takes from ``mmdet.utils`` a name for type hints and a function for its loss."""
    return {**_stand_in("mmdet"), **_stand_in("mmdet.utils", ConfigType=dict, reduce_mean=None)}


def _stand_in(name: str, **members: Any) -> dict[str, types.ModuleType]:
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(
        name, loader=None
    )  # whoever asks for it by find_spec finds it
    vars(module).update(members)
    return {name: module}


_STAND_INS = {"mmcv._ext": _operators, "mmdet": _detector}  # by what must be missing


@contextlib.contextmanager
def importable() -> Iterator[None]:
    """While it lasts mmpose can be imported. Stand-ins are gone after it; what is really there is left alone."""
    added = {}
    for module, stand_ins in _STAND_INS.items():
        if importlib.util.find_spec(module) is None:
            added.update(stand_ins())
    sys.modules.update(added)
    try:
        with warnings.catch_warnings():
            # mmcv-lite says that it has no operators
            warnings.filterwarnings(
                "ignore", "Fail to import ``MultiScaleDeformableAttention``", UserWarning
            )
            yield
    finally:
        for name in added:
            del sys.modules[name]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings of mmpose's own that a user can do nothing about."""
    with warnings.catch_warnings():
        # configs name COCO's joints by a path that mmpose looks for in its package next
        warnings.filterwarnings("ignore", "The metainfo config file .* does not exist", UserWarning)
        # CSPNeXt's way to switch mixed precision off works, and has another name today
        warnings.filterwarnings("ignore", category=FutureWarning, module="mmpose")
        yield


def drop_detector_scope(config: Any) -> None:
    """Take ``_scope_='mmdet'`` out of an RTMPose's config: without mmdet it makes a warning for every layer.

    mmpose has the same CSPNeXt, and it is what such a config gets in the end where mmdet is not installed.

    Args:
        config: a dict, list or anything else of a config; changed in place.
    """
    if isinstance(config, dict):
        if config.get("_scope_") == "mmdet" and importlib.util.find_spec("mmdet") is None:
            del config["_scope_"]
        for value in config.values():
            drop_detector_scope(value)
    elif isinstance(config, (list, tuple)):
        for value in config:
            drop_detector_scope(value)
