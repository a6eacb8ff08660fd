"""Load the weights of a published mmpose checkpoint without running code from it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
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
    cure = "give the config that it was trained with by --model"

    def refuse(what: str, names: Sequence[str]) -> None:
        if names:
            listed = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            count = f"{len(names)} weights are {what} ({listed})"
            raise UserError(f"checkpoint {path} is not of {config}: {count}; {cure}")

    try:
        found = model.load_state_dict(weights, strict=False)
    except RuntimeError as error:  # one line for each weight of another shape
        refuse("of another shape", re.findall(r"size mismatch for (\S+):", str(error)))
        raise
    refuse("missing", found.missing_keys)
    refuse("unknown", found.unexpected_keys)
    said = re.search(
        r"^codec = dict\((.*?)\)\n(?=\S)", trained_with + "\n#", re.DOTALL | re.MULTILINE
    )
    text = "".join(said[1].split()) if said else ""
    kind, size = codec["type"], [int(side) for side in codec["input_size"]]
    theirs = re.search(r"\btype='(\w+)'", text), re.search(r"input_size=[(\[](\d+),(\d+)", text)
    if theirs[0] and theirs[0][1] != kind:
        wrong = f"codec {theirs[0][1]}, not {kind}"
    elif theirs[1] and [int(side) for side in theirs[1].groups()] != size:
        wrong = f"input_size {' x '.join(theirs[1].groups())}, not {size[0]} x {size[1]}"
    else:
        return
    raise UserError(f"checkpoint {path} is not of {config}: it was trained with {wrong}; {cure}")


def _ignored(path: str) -> Any:
    """A class that torch.load builds in place of `path`, and that keeps nothing."""
    module, _, name = path.rpartition(".")
    members = {
        "__module__": module,
        "__qualname__": name,
        "__new__": lambda cls, *args: object.__new__(cls),
        "__init__": lambda self, *args: None,
        "__setstate__": lambda self, state: None,
    }
    return type(name, (), members)


# Checkpoints of mmengine also contain the curves of their training, as objects that are not needed.
_IGNORED = [
    _ignored(path)
    for path in (
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
