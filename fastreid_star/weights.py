"""Read weights and checkpoints without running the code that a file may carry."""

from __future__ import annotations

import errno
import logging
import re
import time
import zipfile
from typing import Any

import torch

from fastreid_star.errors import UserError
from fastreid_star.upgrade import upgrade_weights

logger = logging.getLogger(__name__)

ATTEMPTS, PAUSE = 3, 1.0  # to read a file that fails for a moment; seconds between them
_MOMENTARY = {errno.EIO, errno.ESTALE, errno.EAGAIN, errno.ETIMEDOUT, errno.EINTR}
# names of fast-reid's model zoo -> fast-reid's names
_RENAMED = (
    (re.compile(r"^((?:heads|b\d+_head)\.)classifier\."), r"\1"),
    (re.compile(r"^((?:heads|b\d+_head)\.)bnneck\."), r"\1bottleneck.0."),
)


class DamagedFile(UserError):
    """A file whose content is not a whole checkpoint."""


def read_checkpoint(path: str) -> dict:
    """A checkpoint's content, on the CPU; no code in the file is run.

    Raises:
        UserError: the file is missing or cannot be read; a :class:`DamagedFile` if its content is
            damaged or not a checkpoint.
    """
    data = read_file(path)
    if not isinstance(data.get("model"), dict):
        raise DamagedFile(f"checkpoint {path} holds no 'model': fast-reid did not write it")
    data["model"] = upgrade_weights(data["model"])
    return data


def read_weights(path: str) -> dict[str, torch.Tensor]:
    """The weights in a file from anywhere, under fast-reid's names; no code in the file is run.

    A state dict may stand alone or under ``model`` or ``state_dict``. The prefix ``module.`` of
    DistributedDataParallel is removed, and the names of fast-reid's model zoo are translated.

    Raises:
        UserError: as :func:`read_checkpoint`, or the file holds no weights.
    """
    return weights_of(read_file(path), path)


def weights_of(data: dict, path: str) -> dict[str, torch.Tensor]:
    """As :func:`read_weights`, of the content of the file."""
    while isinstance(inner := data.get("model", data.get("state_dict")), dict):
        data = inner
    weights = {name: value for name, value in data.items() if isinstance(value, torch.Tensor)}
    if data and not weights:
        raise DamagedFile(f"{path} holds no weights")
    if weights and all(name.startswith("module.") for name in weights):
        weights = {name.removeprefix("module."): value for name, value in weights.items()}
    for pattern, name in _RENAMED:
        weights = {pattern.sub(name, old): value for old, value in weights.items()}
    return upgrade_weights(weights)


def read_file(path: str) -> dict:
    """The dict in a file that torch wrote; a read that fails for a moment is repeated.

    Raises:
        UserError: as :func:`read_checkpoint`.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            data = load_plain(path)
            break
        except FileNotFoundError as error:
            raise UserError(f"checkpoint {path} does not exist: check the path") from error
        except Exception as error:  # damaged content raises anything from EOFError on
            # torch seeks before the start of a file that was cut: EINVAL
            if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
                if error.errno in _MOMENTARY and attempt < ATTEMPTS:
                    logger.warning(f"{path} could not be read ({error.strerror}); trying again")
                    time.sleep(PAUSE)
                    continue
                raise UserError(
                    f"checkpoint {path} cannot be read ({error.strerror}): check the disk and the "
                    "file's permissions"
                ) from error
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise DamagedFile(
                f"checkpoint {path} cannot be read ({reason}): it is damaged or not a checkpoint"
            ) from error
    if not isinstance(data, dict):
        raise DamagedFile(f"checkpoint {path} holds no 'model': it is not a checkpoint")
    return data


def load_plain(path: str) -> Any:
    """Tensors and plain values from a file of torch's, on the CPU; no code in it is run.

    The checksums in the file are compared with its content, which torch itself does not do.

    Raises:
        Exception: of almost any kind, if the file is damaged, holds something else, or is
            compressed (a small file could unpack to more than the machine's memory).
    """
    with open(path, "rb") as file:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                    raise ValueError("it is compressed, as torch never does")
                damaged = archive.testzip()
                if damaged is not None:
                    raise ValueError(f"the checksum of {damaged} is wrong")
        file.seek(0)
        return torch.load(file, map_location="cpu", weights_only=True)


def misfits(model: torch.nn.Module, weights: dict[str, torch.Tensor]) -> list[str]:
    """Names that only the model or only the weights have, or whose shapes differ."""
    own = model.state_dict()
    wrong = [name for name in own if name not in weights or weights[name].shape != own[name].shape]
    return wrong + [name for name in weights if name not in own]


def require_most(own: dict[str, torch.Tensor], weights: dict[str, torch.Tensor], what: str) -> None:
    """Refuse weights that would leave most of a network random.

    Args:
        own: the network's state.
        weights: to be loaded.
        what: the config key and the file, for the message.

    Raises:
        UserError: fewer than half of the network's tensors are in `weights` with the same shape.
    """
    names = [name for name in own if not name.endswith("num_batches_tracked")]
    missing = [n for n in names if n not in weights or weights[n].shape != own[n].shape]
    if len(missing) > len(names) / 2:
        raise UserError(
            f"{what} fits only {len(names) - len(missing)} of {len(names)} weights of the backbone "
            f"(not {', '.join(missing[:2])}; the file has {', '.join(list(weights)[:2])}): most of "
            "it would stay random; use weights of this backbone and depth"
        )
