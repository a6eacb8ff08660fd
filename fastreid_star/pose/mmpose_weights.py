"""A published mmpose checkpoint into a network: weights only, all of them, and no code in the file is run."""

from __future__ import annotations

import ast
import contextlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from fastreid_star.errors import UserError


def _ignored(path: str) -> type:
    """A class that torch.load makes instead of what a file calls `path`, and that keeps nothing of it."""
    module, _, name = path.rpartition(".")
    members = {
        "__module__": module,
        "__qualname__": name,
        "__new__": lambda cls, *args: object.__new__(cls),
        "__init__": lambda self, *args: None,
        "__setstate__": lambda self, state: None,
    }
    return type(name, (), members)


# Beside the weights a checkpoint of mmengine holds the curves of its training, as HistoryBuffers of numpy arrays that
# name their own methods with getattr, and arrays that describe the dataset. Nobody needs them here: not even what is
# harmless is made of them.
_BESIDE_THE_WEIGHTS: list[Any] = [
    _ignored(path)
    for path in (
        "mmengine.logging.history_buffer.HistoryBuffer",
        "builtins.getattr",
        "numpy.ndarray",
        "numpy.dtype",
        *(
            f"numpy.{core}.multiarray.{name}"
            for core in ("core", "_core")
            for name in ("_reconstruct", "scalar")
        ),
    )
]


def load_weights(model: torch.nn.Module, path: str, config: str, codec: Mapping[str, Any]) -> None:
    """Give a network the weights of a checkpoint.

    mmpose's own rules for older checkpoints hold: heads of mmpose 0.x are renamed, and the mean and deviation of the
    pixels (``data_preprocessor.*``), which the config says too, are left out.

    Args:
        model: a network of mmpose.
        path: of the file: ``{"state_dict": ...}`` or the state dict itself.
        config: the name of the network's config, for what is said.
        codec: the config's settings of what the network's output means, ``type`` and ``input_size`` among them.

    Raises:
        UserError: the file is damaged, holds more than weights and what mmengine writes beside them, is not of this
            network, or says that it was trained with another codec.
    """
    weights, trained_with = read_checkpoint(path)
    try:
        found = model.load_state_dict(weights, strict=False)
    except RuntimeError as error:  # it lists the weights of another shape, one a line
        lines = [line.split() for line in str(error).splitlines() if "size mismatch for" in line]
        _refuse(
            path,
            config,
            "of another shape",
            [words[3].rstrip(":") for words in lines] or [str(error)],
        )
    _refuse(path, config, "missing", found.missing_keys)
    _refuse(path, config, "unknown", found.unexpected_keys)
    theirs = codec_in(trained_with)
    for key in ("type", "input_size"):  # they leave no trace in the weights' shapes
        if key in theirs and _comparable(theirs[key]) != _comparable(codec[key]):
            raise UserError(
                f"checkpoint {path} is not of {config}: it was trained with the {key} {theirs[key]}, not {codec[key]}; "
                "name the config that it was trained with as --model"
            )


def _comparable(value: Any) -> Any:
    return list(value) if isinstance(value, (list, tuple)) else value


def _refuse(path: str, config: str, what: str, names: Sequence[str]) -> None:
    if names:
        listed = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        raise UserError(
            f"checkpoint {path} is not of {config}: {len(names)} weights are {what} ({listed}); name the config that "
            "it was trained with as --model"
        )


def read_checkpoint(path: str) -> tuple[dict[str, torch.Tensor], str]:
    """A checkpoint's weights by name, on the CPU, and the text of the config it was trained with, empty where there is
    none.

    Raises:
        UserError: see :func:`load_weights`.
    """
    try:
        with torch.serialization.safe_globals(_BESIDE_THE_WEIGHTS):
            data = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise anything from EOFError to UnpicklingError
        culprit = re.search(
            r"\bGLOBAL (\S+)", str(error)
        )  # torch's own advice is to load it all the same
        if culprit:
            raise UserError(
                f"checkpoint {path} holds {culprit[1]}, which is not needed and may run code: take the published file, "
                "or save its state_dict alone"
            ) from error
        raise UserError(
            f"checkpoint {path} is damaged or no checkpoint: download it again"
        ) from error
    weights = data.get("state_dict", data) if isinstance(data, Mapping) else None
    if not isinstance(weights, Mapping) or not all(
        isinstance(value, torch.Tensor) for value in weights.values()
    ):
        raise UserError(f"checkpoint {path} holds no weights by name: it is not of mmpose")
    meta = data.get("meta")
    text = meta.get("cfg") if isinstance(meta, Mapping) else None
    weights = {name.removeprefix("module."): value for name, value in weights.items()}
    return weights, text if isinstance(text, str) else ""


def codec_in(config: str) -> dict[str, Any]:
    """What a config's text says with ``codec = dict(...)``, none of it run; empty where it says nothing of the kind."""
    with contextlib.suppress(SyntaxError, ValueError):
        for line in ast.parse(config).body:
            if not (isinstance(line, ast.Assign) and isinstance(line.value, ast.Call)):
                continue
            if ast.unparse(line.targets[0]) == "codec":
                return {
                    str(keyword.arg): ast.literal_eval(keyword.value)
                    for keyword in line.value.keywords
                }
    return {}
