"""Conversion of published checkpoints to checkpoints of this project.

The published programs write ``torch.save({"net": state_dict, "mAP": ..., "epoch": ...})``, and some
the state dicts of further networks under names of their own. A converted checkpoint gives their
features with a config that has their settings.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import tempfile
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from fastreid.config import CfgNode

from fastreid_star.errors import UserError
from fastreid_star.files import write_whole
from fastreid_star.methods import METHODS
from fastreid_star.modeling.convert import Conversion
from fastreid_star.weights import is_state, read_file, without_prefix

_NAMES = [f"{method.__name__}.convert" for method in METHODS]  # some methods have no weights
CONVERTERS = tuple(importlib.import_module(name) for name in _NAMES if find_spec(name))


def convert_weights(
    source: str, target: str, cfg: CfgNode, *, report: Callable[[str], object] | None = None
) -> Conversion:
    """Convert a published checkpoint.

    Args:
        source: the published checkpoint, or a folder with all files of one.
        target: the file to write, in a folder that exists. Weights that this project keeps in a
            file of their own are written beside it. Nothing is written if the checkpoint is
            refused.
        cfg: a config with the settings of the published program.
        report: is called with :meth:`Conversion.report` before the weights are checked.

    Raises:
        UserError: the checkpoint cannot be read or is not recognized, a weight is missing or has
            the wrong shape, or the config gives other features.
    """
    folder = os.path.dirname(os.path.abspath(target))
    if not os.path.isdir(folder):
        raise UserError(f"the folder {folder} does not exist: create it, or choose another file")
    if os.path.exists(target) and os.path.exists(source) and os.path.samefile(source, target):
        raise UserError(f"{target} is the published checkpoint itself: choose another file")
    conversion = convert(read_published(source))
    if report is not None:
        report(conversion.report())
    with tempfile.TemporaryDirectory(dir=folder, prefix=".convert-") as unchecked:
        files = {}
        for key, weights in conversion.beside.items():
            name = f"{Path(target).stem}_{key.rpartition('.')[2].lower()}.pth"
            files[key] = os.path.join(unchecked, name)
            write_whole(files[key], functools.partial(torch.save, weights))
        conversion.require_fit(cfg, files)
        for key, file in files.items():
            files[key] = os.path.join(os.path.dirname(target), os.path.basename(file))
            os.replace(file, files[key])
    write_whole(target, lambda file: torch.save({"model": conversion.weights}, file))
    if report is not None:
        for key, file in files.items():
            report(f"the converted checkpoint needs {key} {file}")
    return conversion


def convert(state: Mapping[str, torch.Tensor]) -> Conversion:
    """Convert a published state dict, with or without the prefix ``module.``.

    Raises:
        UserError: no converter recognizes it.
    """
    state = without_prefix(dict(state))
    modules = {name.split(".")[0] for name in state}
    for converter in CONVERTERS:
        if converter.recognizes(modules):
            return converter.convert(state)
    raise UserError(
        f"no converter recognizes the checkpoint, which has weights of "
        f"{', '.join(sorted(modules)[:8])}: docs/inference.md lists the published checkpoints that "
        "can be converted"
    )


def read_published(path: str) -> dict[str, torch.Tensor]:
    """The state dict in a published checkpoint, on the CPU. No code in the file is run.

    Args:
        path: a file, or a folder whose ``.pth`` files are read as one state dict.

    Raises:
        UserError: the file does not exist, is damaged, contains more than tensors and numbers, or
            contains no state dict; or two files of a folder have a weight of the same name.
    """
    if os.path.isdir(path):
        joined: dict[str, torch.Tensor] = {}
        for name in sorted(each for each in os.listdir(path) if each.endswith(".pth")):
            part = read_published(os.path.join(path, name))
            if twice := joined.keys() & part.keys():
                raise UserError(f"{path}: {name} has {min(twice)}, as a file before it: keep one")
            joined |= part
        return joined
    with _numpy_numbers():
        data = read_file(path)
    state = data.get("net", data)
    if not is_state(state):
        raise UserError(f"checkpoint {path} contains no state dict, alone or under 'net'")
    joined = without_prefix(state)
    for key, other in data.items():
        if key != "net" and is_state(other):  # a second network: its name before its weights
            joined |= {f"{key}.{name}": v for name, v in without_prefix(other).items()}
    return {name: value.detach() for name, value in joined.items()}


def _numpy_numbers() -> contextlib.AbstractContextManager:
    """Let ``weights_only`` read numbers of numpy, such as their ``mAP``, saved by numpy 1 or 2."""
    if not hasattr(torch.serialization, "safe_globals"):
        return contextlib.nullcontext()
    makers = []
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):

        def scalar(dtype, value):
            if not isinstance(dtype, np.dtype) or dtype.kind not in "biuf":
                raise TypeError("a numpy value that is not a number")
            return np.frombuffer(value, dtype, count=1)[0]

        scalar.__module__, scalar.__qualname__ = module, "scalar"
        makers.append(scalar)
    codes = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "b1")
    types = {type(np.dtype(code)) for code in codes}
    return torch.serialization.safe_globals([np.dtype, *types, *makers])
