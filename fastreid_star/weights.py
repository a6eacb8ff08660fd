"""Read weights and checkpoints without running the code that a file may carry."""

from __future__ import annotations

import contextlib
import errno
import importlib
import re
import tarfile
import zipfile
from typing import Any, BinaryIO, TypeGuard

import numpy as np
import torch

from fastreid_star.errors import UserError
from fastreid_star.upgrade import upgrade_weights

# where a file keeps its state dict, if not at the top
WRAPPERS = ("model", "state_dict", "model_state", "model_state_dict", "net")
# of DistributedDataParallel and torch.compile
PREFIXES = ("module.", "_orig_mod.")
# names of fast-reid's model zoo -> fast-reid's names
_RENAMED = (
    (re.compile(r"^((?:heads|b\d+_head)\.)classifier\."), r"\1"),
    (re.compile(r"^((?:heads|b\d+_head)\.)bnneck\."), r"\1bottleneck.0."),
)


class DamagedFile(UserError):
    """A file that is missing, or whose content is not a whole checkpoint."""


def read_file(path: str) -> dict:
    """The dict in a file of torch or safetensors, on the CPU; no code in the file is run.

    The checksums in a file of torch are compared with its content, which torch itself does not do.

    Raises:
        DamagedFile: the file is missing, damaged, or contains something else.
        UserError: the disk cannot read the file at the moment, or safetensors is not installed.
    """
    if path.endswith(".safetensors"):
        return _read_safetensors(path)
    try:
        with open(path, "rb") as file:
            data = _load(file)
    except FileNotFoundError as error:
        raise DamagedFile(f"checkpoint {path} does not exist: check the path") from error
    except DamagedFile:
        raise
    except Exception as error:  # damaged content can raise any error
        # torch seeks before the start of a file that was cut: EINVAL
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise UserError(
                f"checkpoint {path} cannot be read ({error.strerror}): check the disk and the "
                "file's permissions"
            ) from error
        if found := re.search(r"GLOBAL (\S+)", str(error)):
            raise DamagedFile(
                f"checkpoint {path} cannot be read: it holds Python objects ({found[1]}), and "
                "loading them would run code of the file; save the network's state_dict() instead"
            ) from error
        # torch begins with the advice to run code of the file
        found = re.search(r"WeightsUnpickler error: (.*)", str(error))
        reason = found[1] if found else (str(error).splitlines() or [type(error).__name__])[0]
        raise DamagedFile(
            f"checkpoint {path} cannot be read ({reason}): it is damaged or not a checkpoint"
        ) from error
    if not isinstance(data, dict):
        raise DamagedFile(f"{path} holds no weights: it is not a checkpoint")
    return data


def _load(file: BinaryIO) -> Any:
    """The content of an open file of torch."""
    if zipfile.is_zipfile(file):
        _check_archive(zipfile.ZipFile(file))
    file.seek(0)
    _check_start(file.read(512))
    file.seek(0)
    if tarfile.is_tarfile(file):
        raise DamagedFile(
            f"checkpoint {file.name} cannot be read: it is a tar archive, torch's oldest format, "
            "which needs code of the file to be run; docs/weights.md names newer files"
        )
    file.seek(0)
    with _numpy_numbers():
        return torch.load(file, map_location="cpu", weights_only=True)


def _check_start(start: bytes) -> None:
    """Refuse what failed downloads leave: nothing, zeros, a web page, a pointer of Git LFS."""
    if not start.strip(b"\0"):
        raise ValueError("it begins with zeros" if start else "it is empty")
    line = start[:60].splitlines()[0]
    if line.isascii() and line.decode().isprintable():
        raise ValueError(f"it is a text, {line.decode()!r}, as a web page or a pointer of Git LFS")


def _numpy_numbers() -> contextlib.AbstractContextManager:
    """Let ``weights_only`` read numbers of numpy, such as a saved metric, of numpy 1 or 2."""
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


def safetensors_of(path: str) -> Any:
    """The module ``safetensors.torch``.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module("safetensors.torch")
    except ImportError as error:
        raise UserError(f"{path} needs the package safetensors: pip install safetensors") from error


def _read_safetensors(path: str) -> dict[str, torch.Tensor]:
    load_file = safetensors_of(path).load_file
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise DamagedFile(f"checkpoint {path} does not exist: check the path") from error
    except Exception as error:  # damaged content can raise any error
        raise DamagedFile(f"{path} cannot be read ({error}): it is damaged") from error


def _check_archive(archive: zipfile.ZipFile) -> None:
    """Refuse wrong checksums, and compression: a small file could unpack to fill the memory."""
    if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
        raise ValueError("it is compressed, as torch never does")
    damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"the checksum of {damaged} is wrong")


def read_checkpoint(path: str) -> dict:
    """A checkpoint's content, see :func:`read_file`, with the weights under today's names.

    Raises:
        UserError: as :func:`read_file`, or the file is not a checkpoint.
    """
    data = read_file(path)
    if not isinstance(data.get("model"), dict):
        raise DamagedFile(f"checkpoint {path} holds no 'model': fast-reid did not write it")
    data["model"] = upgrade_weights(data["model"])
    return data


def read_weights(path: str) -> dict[str, torch.Tensor]:
    """The weights in a file from anywhere, under fast-reid's names; no code in the file is run.

    Raises:
        UserError: as :func:`read_file`, or the file holds no weights.
    """
    return weights_of(read_file(path), path)


def weights_of(data: dict, path: str) -> dict[str, torch.Tensor]:
    """The weights in the content of a file, under fast-reid's names.

    A state dict may stand alone or under one of :data:`WRAPPERS`. The prefixes of wrappers are
    removed, and the names of fast-reid's model zoo are translated.

    Raises:
        DamagedFile: there are no weights.
    """
    data = unwrapped(data)
    weights = {name: value for name, value in data.items() if is_state({name: value})}
    if data and not weights:
        raise DamagedFile(f"{path} holds no weights: it is not a checkpoint")
    weights = without_prefix(weights)
    for pattern, name in _RENAMED:
        weights = {pattern.sub(name, old): value for old, value in weights.items()}
    return upgrade_weights(weights)


def unwrapped(data: dict) -> dict:
    """The dict inside of a file's dict that holds the tensors, or the dict itself."""
    for _ in WRAPPERS:  # not endless: a dict may hold itself
        data = next((data[key] for key in WRAPPERS if isinstance(data.get(key), dict)), data)
    return data


def is_state(data: Any) -> TypeGuard[dict[str, torch.Tensor]]:
    """Whether something is a state dict: tensors with names."""
    return (
        isinstance(data, dict)
        and len(data) > 0
        and all(isinstance(name, str) and torch.is_tensor(data[name]) for name in data)
    )


def without_prefix(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state dict without the prefixes of wrappers, see :data:`PREFIXES`."""
    for prefix in PREFIXES:
        if state and all(name.startswith(prefix) for name in state):
            return without_prefix({name.removeprefix(prefix): v for name, v in state.items()})
    return state


def fill_copy(state: dict[str, torch.Tensor], source: str, target: str) -> None:
    """Give a part that starts as a copy the weights of its source, if the state has none for it.

    Args:
        state: names and weights; it is changed.
        source, target: what the names of both parts begin with.
    """
    if not any(name.startswith(target) for name in state):
        found = {name: value for name, value in state.items() if name.startswith(source)}
        state.update({target + name.removeprefix(source): v for name, v in found.items()})


def misfits(model: torch.nn.Module, weights: dict[str, torch.Tensor]) -> list[str]:
    """Names that only the model or only the weights have, or whose shapes differ."""
    own = model.state_dict()
    wrong = [name for name in own if name not in weights or weights[name].shape != own[name].shape]
    return wrong + [name for name in weights if name not in own]
