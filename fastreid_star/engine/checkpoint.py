"""fast-reid's checkpointer: files that are whole or not there, that know their hash, and whose loading runs no code.

A checkpoint ends with the SHA-256 of all before it, as the comment of the zip archive that it is. So it is written,
moved and copied in one piece with its hash, and whatever reads archives still reads it. `head -c -71 FILE | sha256sum`
says what `tail -c 64 FILE` should.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import logging
import os
import struct
import zipfile
from importlib.metadata import PackageNotFoundError, version
from typing import Any, BinaryIO

import torch
from fastreid.utils.checkpoint import Checkpointer as FastReidCheckpointer

from fastreid_star.errors import UserError
from fastreid_star.files import write_whole

logger = logging.getLogger(__name__)

ROLLING = "model_last"  # the checkpoint of which earlier ones are kept
TAG = "last_checkpoint"  # names the one to resume from
_END_OF_ARCHIVE, _END_SIZE = (
    b"PK\x05\x06",
    22,
)  # a zip archive's last record, without the comment after it
_MARK = b"sha256="
_SEAL_SIZE = len(_MARK) + 64


class Checkpointer(FastReidCheckpointer):
    """Saves to a temporary file, then renames; loads with ``weights_only``, and only what its hash confirms.

    See :class:`fastreid.utils.checkpoint.Checkpointer` for the other arguments. Everything saved must be tensors and
    plain Python values.

    Args:
        keep: how many of the ``model_last.pth`` are kept: it and the ``model_last-1.pth``, ... before it.
        notes: plain values that each checkpoint is to hold, such as what it was trained with.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        save_dir: str = "",
        *,
        save_to_disk: bool = True,
        keep: int = 1,
        notes: dict[str, Any] | None = None,
        **checkpointables: object,
    ):
        super().__init__(model, save_dir, save_to_disk=save_to_disk, **checkpointables)
        self._keep = keep
        self._notes = notes or {}

    def save(self, name: str, *, tag: bool = True, **kwargs: Any) -> None:
        """Write ``<name>.pth``.

        Args:
            name: file name without its ending.
            tag: make it the checkpoint that a run resumes from.
            kwargs: plain values to save beside the model and the checkpointables.

        Raises:
            UserError: the disk does not take it. What was there before is still there.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        data = {"model": self.model.state_dict()}
        data.update({key: item.state_dict() for key, item in self.checkpointables.items()})
        data.update(self._notes)
        data.update(kwargs)
        data = on_host(data)
        path = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info(f"Saving checkpoint to {path}")
        try:
            earlier = self._keep - 1 if name == ROLLING else None
            write_whole(path, functools.partial(_write_sealed, data), earlier=earlier)
            if tag:
                self.tag_last_checkpoint(f"{name}.pth")
        except OSError as error:
            raise UserError(
                f"checkpoint {path} cannot be written ({error.strerror or error}): make room or mend the folder, then "
                "go on with --resume from the last one that was"
            ) from error

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        path = os.path.join(self.save_dir, TAG)
        write_whole(path, lambda file: file.write(last_filename_basename.encode()))

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict:
        """As fast-reid's; a path that does not exist is a :class:`UserError` and is not looked for on a network."""
        if path and not os.path.isfile(path):
            read_checkpoint(path)
        return super().load(path, checkpointables)

    def newest(self) -> str | None:
        """The file of the folder to resume from, which can be read and whose hash is right; None: there is none.

        It is the one that ``last_checkpoint`` names. Where that one is missing or damaged, it is the one of most
        steps among the others, and a warning says so; damaged files are renamed, so that they take no place among
        those that are kept.

        Raises:
            UserError: there are checkpoints, but none that can be resumed from.
        """
        tagged, damaged = self._tagged(), {}
        if tagged is not None:
            path = os.path.join(self.save_dir, tagged)
            try:
                if not os.path.isfile(path):
                    raise UserError(
                        f"{os.path.join(self.save_dir, TAG)} names {tagged!r}, which is not there"
                    )
                read_checkpoint(path)
                return tagged
            except UserError as error:
                damaged[tagged] = str(error)
        steps = {}
        for name in sorted(os.listdir(self.save_dir)) if os.path.isdir(self.save_dir) else ():
            if not (name.startswith("model_") and name.endswith(".pth")) or name == tagged:
                continue
            try:
                data = read_checkpoint(os.path.join(self.save_dir, name))
            except UserError as error:
                damaged[name] = str(error)
                continue
            if {"epoch", *self.checkpointables} <= data.keys():
                steps[name] = (data.get("iteration", 0), data["epoch"])
        if not steps:
            if damaged:
                raise UserError(
                    f"--resume: {next(iter(damaged.values()))}; no other checkpoint in {self.save_dir} can be resumed "
                    "from: restore one, or train anew, without --resume, which puts what is there aside"
                )
            return None
        name = max(steps, key=steps.__getitem__)
        for other, reason in damaged.items():
            logger.warning(
                f"{reason}. The run goes on from {os.path.join(self.save_dir, name)} instead"
            )
            path = os.path.join(self.save_dir, other)
            if os.path.isfile(path):
                os.replace(path, f"{path}.damaged")
        return name

    def resume(self, path: str) -> dict:
        """Take over everything from a checkpoint of this very model.

        Returns:
            what it holds beside the model and the checkpointables.

        Raises:
            UserError: it cannot be read, or is of another model.
        """
        data = read_checkpoint(path)
        wrong = misfits(self.model, data["model"])
        if wrong:
            raise UserError(
                f"--resume: {path} is of another model, {len(wrong)} weights do not fit, first "
                f"{', '.join(wrong[:3])}: resume with the config of that run, or choose another OUTPUT_DIR"
            )
        self.logger.info(f"Loading checkpoint from {path}")
        self._load_model(data)
        for key, item in self.checkpointables.items():
            if key in data:
                item.load_state_dict(data.pop(key))
        return data

    def _tagged(self) -> str | None:
        """What ``last_checkpoint`` says, whatever that is; None where it is not there."""
        try:
            with open(os.path.join(self.save_dir, TAG), "rb") as file:
                return "".join(
                    c for c in file.read(1000).decode(errors="replace").strip() if c.isprintable()
                )
        except FileNotFoundError:
            return None

    def _load_file(self, f: str) -> dict:
        return read_checkpoint(f)


def set_earlier_run_aside(folder: str) -> str | None:
    """Move the checkpoints of an earlier run into a folder of their own, ``earlier-1``, ``earlier-2``, ...

    Left where they are, ``model_best.pth`` would pass for the new run's, and ``--resume`` might go on with the old one.

    Returns:
        that folder; None where there are no checkpoints.
    """
    names = sorted(
        name for name in os.listdir(folder) if name.startswith("model_") and name.endswith(".pth")
    )
    if os.path.isfile(os.path.join(folder, TAG)):
        names.append(TAG)
    if not names:
        return None
    number = 1
    while os.path.exists(os.path.join(folder, f"earlier-{number}")):
        number += 1
    aside = os.path.join(folder, f"earlier-{number}")
    os.mkdir(aside)
    for name in names:
        os.replace(os.path.join(folder, name), os.path.join(aside, name))
    return aside


def versions() -> dict[str, str]:
    """Of this plugin, fast-reid and torch, for a checkpoint to remember."""
    found = {}
    for package in ("fastreid-star", "fastreid", "torch"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def on_host(data: Any) -> Any:
    """The same tree of dicts, lists and tuples, its tensors on the CPU: a machine without the device reads it too."""
    if isinstance(data, torch.Tensor):
        return data.detach().cpu()
    if isinstance(data, dict):
        same = copy.copy(data)  # a Counter stays one, which a schedule counts on
        for key, value in data.items():
            same[key] = on_host(value)
        return same
    if isinstance(data, (list, tuple)):
        return type(data)(on_host(value) for value in data)
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
        self._scaler.load_state_dict(
            {key: state.get(key, value) for key, value in self.state_dict().items()}
        )


def read_checkpoint(path: str) -> dict:
    """A checkpoint's content, on the CPU; no code in the file is run.

    Raises:
        UserError: there is no such file, it is damaged, or it is not a checkpoint.
    """
    if not os.path.isfile(path):
        raise UserError(
            f"checkpoint {path} does not exist: check MODEL.WEIGHTS or the output folder"
        )
    try:
        if not _is_sealed(path):
            logger.debug("checkpoint %s has no hash to be checked", path)
    except OSError as error:
        raise UserError(
            f"checkpoint {path} cannot be read ({error.strerror}): mend the disk or its rights"
        ) from error
    try:
        data = load_plain(path)
    except Exception as error:  # a damaged file can raise anything from EOFError to UnpicklingError
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"checkpoint {path} cannot be read ({reason}): it is damaged or not a checkpoint"
        ) from error
    if not isinstance(data, dict) or not isinstance(data.get("model"), dict):
        raise UserError(
            f"checkpoint {path} holds no 'model': it was not written by fast-reid or this plugin"
        )
    return data


def load_plain(path: str) -> Any:
    """Tensors and plain values from a file of torch's, on the CPU: no code in it is run, and nothing is unpacked.

    Raises:
        Exception: of about any kind, where it is damaged, holds something else or is compressed, which could be small
            and unpack to more than the machine has.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                raise ValueError("it is compressed, as torch never does")
    return torch.load(path, map_location="cpu", weights_only=True)


def _write_sealed(data: dict, file: BinaryIO) -> None:
    """The checkpoint as torch writes it, then its hash."""
    torch.save(data, file)
    file.seek(-2, os.SEEK_END)
    file.write(struct.pack("<H", _SEAL_SIZE))  # the length of the archive's comment, its last field
    file.write(_MARK + _digest(file, file.tell()))


def _is_sealed(path: str) -> bool:
    """Whether a file ends with its hash; False: it never had one.

    Raises:
        UserError: the hash is another's, or the file was cut off behind its archive.
    """
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _END_SIZE - _SEAL_SIZE))
        tail = file.read()
        start = tail.rfind(_END_OF_ARCHIVE)
        record = tail[start : start + _END_SIZE] if start >= 0 else b""
        comment = tail[start + _END_SIZE :]
        if len(record) == _END_SIZE and struct.unpack("<H", record[-2:])[0] != len(comment):
            raise UserError(f"checkpoint {path} is damaged: its end is missing")
        if not (record and comment.startswith(_MARK)):
            return False
        if _digest(file, size - _SEAL_SIZE) != comment[len(_MARK) :]:
            raise UserError(f"checkpoint {path} is damaged: its content is not what its hash says")
        return True


def _digest(file: BinaryIO, size: int) -> bytes:
    """The SHA-256 of the first `size` bytes, in hexadecimal; the file is left behind them."""
    digest = hashlib.sha256()
    file.seek(0)
    while size and (block := file.read(min(size, 1 << 20))):
        digest.update(block)
        size -= len(block)
    return digest.hexdigest().encode()


def misfits(model: torch.nn.Module, weights: dict[str, torch.Tensor]) -> list[str]:
    """Names that only one of them has, or that differ in shape."""
    own = model.state_dict()
    wrong = [name for name in own if name not in weights or weights[name].shape != own[name].shape]
    return wrong + [name for name in weights if name not in own]
