"""fast-reid's checkpointer, with files that are whole or not there, and loading that runs no code."""

from __future__ import annotations

import copy
import os
from typing import Any

import torch
from fastreid.utils.checkpoint import Checkpointer as FastReidCheckpointer

from fastreid_star.errors import UserError
from fastreid_star.files import write_whole


class Checkpointer(FastReidCheckpointer):
    """Saves to a temporary file, then renames; loads with ``weights_only``.

    See :class:`fastreid.utils.checkpoint.Checkpointer` for the arguments. Everything saved must be tensors and
    plain Python values.
    """

    def save(self, name: str, *, tag: bool = True, **kwargs: Any) -> None:
        """Write ``<name>.pth``.

        Args:
            name: file name without its ending.
            tag: make it the checkpoint that a run resumes from.
            kwargs: plain values to save beside the model and the checkpointables.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        data = {"model": self.model.state_dict()}
        data.update({key: item.state_dict() for key, item in self.checkpointables.items()})
        data.update(kwargs)
        data = _on_host(data)  # a machine without this device reads it too
        path = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info(f"Saving checkpoint to {path}")
        write_whole(path, lambda file: torch.save(data, file))
        if tag:
            self.tag_last_checkpoint(f"{name}.pth")

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        path = os.path.join(self.save_dir, "last_checkpoint")
        write_whole(path, lambda file: file.write(last_filename_basename.encode()))

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict:
        """As fast-reid's; a path that does not exist is a :class:`UserError` and is not looked for on a network."""
        if path and not os.path.isfile(path):
            read_checkpoint(path)
        return super().load(path, checkpointables)

    def _load_file(self, f: str) -> dict:
        return read_checkpoint(f)


def _on_host(data: Any) -> Any:
    """The same tree of dicts, lists and tuples, its tensors on the CPU."""
    if isinstance(data, torch.Tensor):
        return data.cpu()
    if isinstance(data, dict):
        same = copy.copy(data)  # a Counter stays one, which a schedule counts on
        for key, value in data.items():
            same[key] = _on_host(value)
        return same
    if isinstance(data, (list, tuple)):
        return type(data)(_on_host(value) for value in data)
    return data


class ScalerState:
    """A gradient scaler's state, readable on another kind of device: torch_npu's scaler has one key more than torch's.

    Args:
        scaler: the gradient scaler. What a checkpoint does not say of it stays as it is.
    """

    def __init__(self, scaler):
        self._scaler = scaler

    def state_dict(self) -> dict:
        return self._scaler.state_dict()

    def load_state_dict(self, state: dict) -> None:
        self._scaler.load_state_dict({key: state.get(key, value) for key, value in self.state_dict().items()})


def read_checkpoint(path: str) -> dict:
    """A checkpoint's content, on the CPU; no code in the file is run.

    Raises:
        UserError: there is no such file, it is damaged, or it is not a checkpoint.
    """
    if not os.path.isfile(path):
        raise UserError(f"checkpoint {path} does not exist: check MODEL.WEIGHTS or the output folder")
    try:
        data = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise anything from EOFError to UnpicklingError
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"checkpoint {path} cannot be read ({reason}): it is damaged or not a checkpoint") from error
    if not isinstance(data, dict) or "model" not in data:
        raise UserError(f"checkpoint {path} holds no 'model': it was not written by fast-reid or this plugin")
    return data


def misfits(model: torch.nn.Module, weights: dict[str, torch.Tensor]) -> list[str]:
    """Names that only one of them has, or that differ in shape."""
    own = model.state_dict()
    wrong = [name for name in own if name not in weights or weights[name].shape != own[name].shape]
    return wrong + [name for name in weights if name not in own]
