"""Read the folder of a run: config, training history, log and the checkpoint to report on."""

from __future__ import annotations

import datetime
import hashlib
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastreid.config import CfgNode

from fastreid_star.data.build import is_video_dataset
from fastreid_star.engine.config_changes import flatten
from fastreid_star.engine.defaults import load_config
from fastreid_star.errors import UserError
from fastreid_star.inference.predictor import find_weights
from fastreid_star.report.page import file_name
from fastreid_star.weights import read_checkpoint


@dataclass(frozen=True)
class Weights:
    """A checkpoint."""

    path: Path
    sha256: str
    size: int  # bytes
    modified: datetime.datetime
    epochs: int | None  # of training; None: the file does not contain it


@dataclass(frozen=True)
class Run:
    """A run."""

    folder: Path  # OUTPUT_DIR
    name: str
    trained: CfgNode  # the config it was trained with
    cfg: CfgNode  # with the options given to the report; `weights` replaces MODEL.WEIGHTS
    dataset: str  # the test set
    weights: Weights
    history: tuple[dict, ...]  # of metrics.json, see read_history; empty without such a file
    environments: tuple[str, ...]  # lines of versions and devices in the log
    commands: tuple[str, ...]  # command lines in the log, see split_command

    @property
    def training_command(self) -> str | None:
        """The last command that trained, not only evaluated; None if the log has none."""
        trained = [c for c in self.commands if "--eval-only" not in split_command(c)]
        return trained[-1] if trained else None

    @property
    def recorded(self) -> dict[str, float] | None:
        """The evaluation of these weights in metrics.json; None if it has none."""
        if self.weights.path.resolve().parent != self.folder.resolve():
            return None
        for line in self.history:
            if line["epoch"] == self.weights.epochs and self._prefix + "mean/mAP" in line:
                known = {k: v for k, v in line.items() if k.startswith(self._prefix)}
                return {k.removeprefix(self._prefix): v for k, v in known.items()}
        return None

    def series(self, name: str) -> tuple[list[float], list[float]]:
        """A quantity of metrics.json over training: numbers of epochs, and its values."""
        lines = [line for line in self.history if name in line]
        return [line["epoch"] for line in lines], [float(line[name]) for line in lines]

    def evaluations(self, key: str) -> tuple[list[float], list[float]]:
        """One number of the evaluations over training, as :meth:`series`."""
        return self.series(self._prefix + key)

    @property
    def _prefix(self) -> str:
        """The prefix of an evaluation's keys, which a run with several test sets writes."""
        return f"{self.dataset}/" if len(self.trained.DATASETS.TESTS) > 1 else ""


def read_run(folder: str | Path, options: Sequence[str] = (), *, config_file: str = "") -> Run:
    """Read the folder of a run.

    Args:
        folder: OUTPUT_DIR of a training run.
        options: ``[KEY, VALUE, ...]``, config keys to change for the report; MODEL.WEIGHTS names
            another checkpoint.
        config_file: the config of a folder that has no ``config.yaml``.

    Raises:
        UserError: a file is missing, or the options do not fit.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: name the OUTPUT_DIR of a run")
    own = folder / "config.yaml"
    if not own.is_file() and not config_file:
        raise UserError(f"{folder} has no config.yaml: add --config-file with the training config")
    source = str(own if own.is_file() else config_file)
    trained, cfg = load_config(source), load_config(source, list(options))
    asked = cfg.MODEL.WEIGHTS if "MODEL.WEIGHTS" in options[::2] else ""
    log = _read_log(folder, trained)
    return Run(
        folder=folder,
        name=file_name(folder.resolve()),
        trained=trained,
        cfg=cfg,
        dataset=_test_set(cfg, folder),
        weights=read_weights(Path(asked or find_weights(folder))),
        history=read_history(folder / "metrics.json"),
        environments=_find(r"INFO: (Python [\d.]+, torch .*)$", log),
        commands=_find(r"INFO: Command line: (.*)$", log),
    )


def split_command(command: str) -> list[str]:
    """The words of a command line in a log. Old logs have lines that are not quoted for a shell."""
    try:
        return shlex.split(command)
    except ValueError:  # an apostrophe
        return command.split()


def read_weights(path: Path) -> Weights:
    """Read what a checkpoint says about itself.

    Raises:
        UserError: the file is missing or damaged.
    """
    epoch = read_checkpoint(str(path)).get("epoch")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    status = path.stat()
    modified = datetime.datetime.fromtimestamp(status.st_mtime)
    return Weights(path, digest, status.st_size, modified, None if epoch is None else epoch + 1)


def read_history(path: Path) -> tuple[dict, ...]:
    """The lines of metrics.json, ``{"iteration": 24, "epoch": 2.5, "lr": 0.01, ...}``.

    `epoch` is the number of epochs done, a fraction within an epoch. Lines that a resumed or
    restarted run has repeated count once. A line that an interruption has cut off is skipped, and
    so are lines without `epoch`, which fast-reid itself and release 0.1.0 have written.
    """
    lines: list[dict] = []
    texts = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    for text in texts:
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if "epoch" not in line:
            continue
        while lines and lines[-1]["epoch"] >= line["epoch"]:
            lines.pop()
        lines.append(line)
    return tuple(lines)


def differences(before: Mapping, after: Mapping) -> list[tuple[str, object, object]]:
    """The keys whose values differ, sorted: (key, value before, value after)."""
    old, new = flatten(before), flatten(after)
    keys = sorted({*old, *new})
    return [(key, old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)]


def _read_log(folder: Path, trained: CfgNode) -> str:
    """The run's log.txt, or that of the parent folder if several runs share it, as in the demo."""
    own, shared = folder / "log.txt", folder.resolve().parent / "log.txt"
    if own.is_file():
        return own.read_text(encoding="utf-8", errors="replace")
    text = shared.read_text(encoding="utf-8", errors="replace") if shared.is_file() else ""
    return text if f"Saving checkpoint to {trained.OUTPUT_DIR}/" in text else ""


def _test_set(cfg: CfgNode, folder: Path) -> str:
    names = list(cfg.DATASETS.TESTS)
    if len(names) != 1 or not is_video_dataset(names[0]):
        raise UserError(
            f"{folder} is tested on {', '.join(names) or 'no dataset'}: a report is about one test "
            "set of tracklets, so set DATASETS.TESTS \"('HITSZVCM',)\" or another name"
        )
    return names[0]


def _find(pattern: str, text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(match.strip() for match in re.findall(pattern, text, re.MULTILINE)))
