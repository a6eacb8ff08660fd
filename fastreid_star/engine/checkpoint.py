"""Checkpoints of a run: which are written, which is resumed from, and the config in them."""

from __future__ import annotations

import copy
import logging
import os
import re
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
import yaml
from fastreid.config import CfgNode, get_cfg
from fastreid.utils.checkpoint import Checkpointer as FastReidCheckpointer

from fastreid_star.arguments import import_packages
from fastreid_star.engine.config_changes import flatten
from fastreid_star.errors import UserError
from fastreid_star.files import write_whole
from fastreid_star.upgrade import upgrade_config
from fastreid_star.weights import DamagedFile, misfits, read_checkpoint, read_file, weights_of

logger = logging.getLogger(__name__)

ROLLING = "model_last"  # the checkpoint of which earlier ones are kept
TAG = "last_checkpoint"  # names the one to resume from


class Checkpointer(FastReidCheckpointer):
    """fast-reid's checkpointer with safe files.

    See :class:`fastreid.utils.checkpoint.Checkpointer` for the other arguments. Everything saved
    must be tensors and plain Python values.

    Args:
        keep: how many versions of ``model_last.pth`` are kept: it, ``model_last-1.pth``, ...
        notes: plain values that each checkpoint holds, such as the config.
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
            UserError: the file cannot be written. The previous one is unchanged.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        data: dict[str, Any] = {"model": self.model.state_dict()}
        data.update({key: item.state_dict() for key, item in self.checkpointables.items()})
        data = on_host({**data, **self._notes, **kwargs})
        path = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info(f"Saving checkpoint to {path}")
        try:
            earlier = self._keep - 1 if name == ROLLING else 0
            write_whole(path, lambda file: torch.save(data, file), earlier=earlier)
            if tag:
                self.tag_last_checkpoint(f"{name}.pth")
        except OSError as error:
            raise UserError(
                f"checkpoint {path} cannot be written ({error.strerror or error}): free some space "
                "or repair the folder, then continue with --resume from the previous checkpoint"
            ) from error

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        path = os.path.join(self.save_dir, TAG)
        write_whole(path, lambda file: file.write(last_filename_basename.encode()))

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict:
        """As fast-reid's, but a path that does not exist is never looked up on a network."""
        if path and not os.path.isfile(path):
            raise UserError(f"checkpoint {path} does not exist: check the path")
        return super().load(path, checkpointables)

    def newest(self) -> str | None:
        """The file to resume from; None if the folder has no checkpoint.

        It is the file that ``last_checkpoint`` names. If that one is missing or damaged, it is the
        good one with the most steps, with a warning; damaged files are renamed.

        Raises:
            UserError: no checkpoint can be resumed from, or one cannot be read at the moment.
        """
        if not os.path.isdir(self.save_dir):
            return None
        tagged = self._tagged()
        names = sorted(n for n in os.listdir(self.save_dir) if re.fullmatch(r"model_.*\.pth", n))
        steps: dict[str, int] = {}
        damaged: dict[str, str] = {}
        for name in dict.fromkeys([tagged, *names] if tagged else names):
            try:
                if name not in names:
                    raise DamagedFile(f"{TAG} names {name[:80]!r}, which is no checkpoint here")
                data = read_checkpoint(os.path.join(self.save_dir, name))
            except DamagedFile as error:
                damaged[os.path.join(self.save_dir, name)] = str(error)
                continue
            if name == tagged:
                return name
            if {"epoch", *self.checkpointables} <= data.keys():
                steps[name] = data.get("iteration", 0)
        if damaged and not steps:
            raise UserError(
                f"--resume: {next(iter(damaged.values()))}; {self.save_dir} has no other "
                "checkpoint to resume from: restore one, or train from the start without "
                "--resume (the existing checkpoints are moved aside)"
            )
        if not steps:
            return None
        name = max(steps, key=steps.__getitem__)
        for path, reason in damaged.items():
            logger.warning(f"{reason}. Resuming from {os.path.join(self.save_dir, name)} instead")
            if os.path.basename(path) in names:
                # out of the way, or it would replace a good earlier version
                os.replace(path, f"{path}.damaged")
        return name

    def resume(self, path: str, check: Callable[[dict], object] = lambda data: None) -> dict:
        """Restore the model and all checkpointables.

        Args:
            path: of the checkpoint.
            check: gets its content first; it may raise, and add values of its own.

        Returns:
            the other values that the checkpoint holds.

        Raises:
            UserError: the file cannot be read, or the model or the optimizer is another one.
        """
        data = read_checkpoint(path)
        check(data)
        wrong = misfits(self.model, data["model"])
        if wrong:
            raise UserError(
                f"--resume: {path} is of another model, {len(wrong)} weights do not fit, first "
                f"{', '.join(wrong[:3])}: use the config of that run, or another OUTPUT_DIR"
            )
        self.logger.info(f"Loading checkpoint from {path}")
        self.model.load_state_dict(data.pop("model"))
        for key, item in self.checkpointables.items():
            if key in data:
                try:
                    item.load_state_dict(data.pop(key))
                except (ValueError, KeyError) as error:
                    raise UserError(
                        f"--resume: the {key} of {path} is another one ({error}): use the config "
                        "of that run, or another OUTPUT_DIR"
                    ) from error
        return data

    def _tagged(self) -> str:
        try:
            with open(os.path.join(self.save_dir, TAG), encoding="utf-8", errors="replace") as file:
                return file.read().strip()
        except FileNotFoundError:
            return ""

    def _load_file(self, f: str) -> dict:
        data = read_file(f)
        return {**data, "model": weights_of(data, f)}


def set_earlier_run_aside(folder: str) -> str | None:
    """Move the checkpoints of an earlier run into ``earlier-1``, ``earlier-2``, ...

    In place, ``model_best.pth`` would pass for the new run's, and ``--resume`` might load it.

    Returns:
        the new folder; None if there are no checkpoints.
    """
    names = [n for n in sorted(os.listdir(folder)) if n.startswith("model_") and n.endswith(".pth")]
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
    """Versions of this plugin, fast-reid and torch."""
    found = {}
    for package in ("fastreid-star", "fastreid", "torch"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def on_host(data: Any) -> Any:
    """The same tree of dicts, lists and tuples with its tensors on the CPU."""
    if isinstance(data, torch.Tensor):
        return data.detach().cpu()
    if isinstance(data, dict):
        same = copy.copy(data)  # keeps a Counter a Counter, which a schedule needs
        for key, value in data.items():
            same[key] = on_host(value)
        return same
    if isinstance(data, (list, tuple)):
        return type(data)(on_host(value) for value in data)
    return data


class ScalerState:
    """A gradient scaler's state for any kind of device: torch_npu's scaler has one more key.

    Args:
        scaler: the gradient scaler. Keys that a checkpoint lacks keep their values.
    """

    def __init__(self, scaler):
        self._scaler = scaler

    def state_dict(self) -> dict:
        return self._scaler.state_dict()

    def load_state_dict(self, state: dict) -> None:
        own = self.state_dict()
        self._scaler.load_state_dict({key: state.get(key, value) for key, value in own.items()})


def checkpoint_config(path: str) -> CfgNode | None:
    """The config that a checkpoint was trained with; None if the checkpoint holds none.

    Raises:
        UserError: as :func:`read_checkpoint`.
    """
    text = read_checkpoint(path).get("config")
    return None if text is None else parse_config(text)


def parse_config(text: str) -> CfgNode:
    """The frozen config of a checkpoint's YAML text; keys of other versions are ignored.

    The packages that it names in IMPORTS are imported first.
    """
    content = upgrade_config(yaml.safe_load(text))
    import_packages(content.get("IMPORTS", []))
    cfg = get_cfg()
    known = flatten(cfg).keys()
    pairs, unknown = [], []
    for key, value in flatten(content).items():
        if key in known:
            pairs += [key, value]
        else:
            unknown.append(key)
    if unknown:
        logger.warning(f"Ignored keys of another version in the config: {', '.join(unknown)}")
    cfg.merge_from_list(pairs)
    cfg.freeze()
    return cfg
