"""Load the weights of a published mmpose checkpoint without running code from it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from fastreid_star.errors import UserError


def load_weights(model: torch.nn.Module, path: str, config: str, codec: Mapping[str, Any]) -> None:
    """Load all weights of a published checkpoint. mmpose renames the heads of older ones itself.

    Args:
        model: a network of mmpose.
        path: the file.
        config: the name of the config, for messages.
        codec: ``type`` and ``input_size``, which leave no trace in the shapes of the weights.

    Raises:
        UserError: the file is damaged, belongs to another network or codec, or contains more than
            weights.
    """
    weights, trained_with = read_checkpoint(path)
    wrong = _other_codec(trained_with, codec)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:  # it lists the weights that are missing, unknown or misshapen
        wrong = " ".join(str(error).split())[:300]
    if wrong:
        raise UserError(
            f"checkpoint {path} is not of {config}: {wrong}; give the config that it was trained "
            "with by --model"
        )


def _other_codec(trained_with: str, codec: Mapping[str, Any]) -> str:
    """What differs between a codec and that in the text of a config; empty if nothing does."""
    found = re.search(
        r"^codec = dict\((.*?)\)\n(?=\S)", trained_with + "\n#", re.DOTALL | re.MULTILINE
    )
    text = "".join(found[1].split()) if found else ""
    kind = re.search(r"\btype='(\w+)'", text)
    size = re.search(r"input_size=[(\[](\d+),(\d+)", text)
    if kind and kind[1] != codec["type"]:
        return f"it was trained with codec {kind[1]}, not {codec['type']}"
    if size and [int(side) for side in size.groups()] != [*codec["input_size"]]:
        return f"it was trained with input_size {size[1]} x {size[2]}"
    return ""


class _Ignored:
    """What torch.load builds in place of objects that are not needed; it keeps nothing."""

    def __init__(self, *args: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass


# Checkpoints of mmengine also contain the curves of their training.
_IGNORED: list[Any] = [
    type(name.rpartition(".")[2], (_Ignored,), {"__module__": name.rpartition(".")[0]})
    for name in (
        *("mmengine.logging.history_buffer.HistoryBuffer", "builtins.getattr"),
        *("numpy.ndarray", "numpy.dtype"),
        *("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct"),
        *("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"),
    )
]


def read_checkpoint(path: str) -> tuple[dict[str, torch.Tensor], str]:
    """The weights by name, and the text of the config they were trained with. Runs no code."""
    try:
        with torch.serialization.safe_globals(_IGNORED):
            data = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise anything
        culprit = re.search(r"\bGLOBAL (\S+)", str(error))
        raise UserError(
            f"checkpoint {path} contains {culprit[1]}, which may run code: use the published file, "
            "or save its state_dict alone"
            if culprit
            else f"checkpoint {path} is damaged or no checkpoint: download it again"
        ) from error
    weights = data.get("state_dict", data) if isinstance(data, Mapping) else None
    if not isinstance(weights, Mapping) or not all(map(torch.is_tensor, weights.values())):
        raise UserError(f"checkpoint {path} contains no weights by name: it is not of mmpose")
    meta = data.get("meta")
    text = meta.get("cfg") if isinstance(meta, Mapping) else None
    weights = {name.removeprefix("module."): value for name, value in weights.items()}
    return weights, text if isinstance(text, str) else ""
