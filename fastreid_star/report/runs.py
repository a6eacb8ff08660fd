"""Read the folder of a run: config, training history, log and the checkpoint to report on."""

from __future__ import annotations

import contextlib
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
from fastreid_star.engine.defaults import load_config
from fastreid_star.errors import UserError
from fastreid_star.report.page import file_name
from fastreid_star.weights import read_checkpoint

WEIGHTS = ("model_best.pth", "model_final.pth", "model_last.pth")


@dataclass(frozen=True)
class History:
    """The lines of metrics.json in the order of training.

    Args:
        lines: ``{"iteration": 24, "epoch": 2.5, "lr": 0.01, ...}``. Iterations count from 0;
            `epoch` is the number of epochs done, a fraction within an epoch.
    """

    lines: tuple[dict, ...]

    @property
    def unit(self) -> str:
        """The unit of the x values of :meth:`series`."""
        return "epoch" if all("epoch" in line for line in self.lines) else "iteration"

    def series(self, name: str) -> tuple[list[float], list[float]]:
        """One quantity over training: x in :attr:`unit`, and its values."""
        lines = [line for line in self.lines if name in line]
        by_epoch = self.unit == "epoch"
        x = [float(line["epoch"] if by_epoch else line["iteration"] + 1) for line in lines]
        return x, [float(line[name]) for line in lines]

    def names(self, start: str) -> list[str]:
        """The quantities whose names begin with `start`, in the order of their first value."""
        return list(dict.fromkeys(n for line in self.lines for n in line if n.startswith(start)))


@dataclass(frozen=True)
class Weights:
    """A checkpoint."""

    path: Path
    sha256: str
    size: int  # bytes
    modified: datetime.datetime
    epochs: int | None  # of training; None: the file does not contain it
    metric: float | None  # for which it was kept as the best; None: it was not


@dataclass(frozen=True)
class Run:
    """A run."""

    folder: Path  # OUTPUT_DIR
    name: str
    trained: CfgNode  # the config it was trained with
    cfg: CfgNode  # with the options given to the report; `weights` replaces MODEL.WEIGHTS
    dataset: str  # the test set
    weights: Weights
    history: History | None  # None if the folder has no metrics.json
    environments: tuple[str, ...]  # lines of versions and devices in the log
    commands: tuple[str, ...]  # command lines in the log, quoted for a shell

    @property
    def training_command(self) -> str | None:
        """The last command that trained, not only evaluated; None if the log has none."""
        trained = [c for c in self.commands if "--eval-only" not in shlex.split(c)]
        return trained[-1] if trained else None

    @property
    def recorded(self) -> dict[str, float] | None:
        """The evaluation of these weights in metrics.json; None if it has none."""
        if self.history is None or self.weights.epochs is None:
            return None
        if self.weights.path.resolve().parent != self.folder.resolve():
            return None
        lines = [line for line in self.history.lines if line.get("epoch") == self.weights.epochs]
        line = lines[0] if lines else {}
        metric = line.get(_prefix(self.trained, self.trained.DATASETS.TESTS[0]) + "metric")
        if self.weights.metric is not None and self.weights.metric != metric:
            return None
        prefix = _prefix(self.trained, self.dataset)
        found = {k.removeprefix(prefix): v for k, v in line.items() if k.startswith(prefix)}
        return found if "mean/mAP" in found else None

    def evaluations(self, key: str) -> tuple[list[float], list[float]]:
        """One number of the evaluations over training, as :meth:`History.series`."""
        if self.history is None:
            return [], []
        return self.history.series(_prefix(self.trained, self.dataset) + key)


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
        weights=read_weights(find_weights(folder, asked)),
        history=read_history(folder / "metrics.json"),
        environments=_find(r"INFO: (Python [\d.]+, torch .*)$", log),
        commands=tuple(map(_quoted, _find(r"INFO: Command line: (.*)$", log))),
    )


def find_weights(folder: Path, asked: str = "") -> Path:
    """The checkpoint to report on: `asked`, or the best of the folder, or its last.

    Raises:
        UserError: there is none.
    """
    if asked:
        return Path(asked)
    for name in WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    raise UserError(
        f"{folder} contains none of {', '.join(WEIGHTS)}: train first, or name a checkpoint with "
        "MODEL.WEIGHTS path/to/model.pth"
    )


def read_weights(path: Path) -> Weights:
    """Read what a checkpoint says about itself.

    Raises:
        UserError: the file is missing or damaged.
    """
    content = read_checkpoint(str(path))
    epoch = content.get("epoch")
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    status = path.stat()
    modified = datetime.datetime.fromtimestamp(status.st_mtime)
    epochs = None if epoch is None else epoch + 1
    size = status.st_size
    return Weights(path, digest.hexdigest(), size, modified, epochs, content.get("metric"))


def read_history(path: str | Path) -> History | None:
    """Read metrics.json. Lines that a resumed or restarted run has repeated count once.

    Returns:
        None if there is no such file.

    Raises:
        UserError: a line is damaged; the last one may be, since an interruption can cut it off.
    """
    path = Path(path)
    if not path.is_file():
        return None
    texts = path.read_text(encoding="utf-8").splitlines()
    lines: list[dict] = []
    for number, text in enumerate(texts, start=1):
        try:
            line = json.loads(text)
            line["iteration"]
        except (ValueError, TypeError, KeyError):
            if number == len(texts):
                break
            raise UserError(
                f"{path}: line {number} is damaged; restore or delete the file"
            ) from None
        while lines and not _is_before(lines[-1], line):
            lines.pop()
        lines.append(line)
    return History(tuple(lines))


def _is_before(line: dict, other: dict) -> bool:
    """By epoch where both lines have it: resuming with another batch size renumbers iterations."""
    key = "epoch" if "epoch" in line and "epoch" in other else "iteration"
    return line[key] < other[key]


def flatten(node: Mapping, prefix: str = "") -> dict[str, object]:
    """A config as ``{"MODEL.HEADS.NAME": value}``; tuples become lists."""
    flat: dict[str, object] = {}
    for key, value in node.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat


def differences(before: Mapping, after: Mapping) -> list[tuple[str, object, object]]:
    """The keys whose values differ, sorted: (key, value before, value after)."""
    old, new = flatten(before), flatten(after)
    keys = sorted({*old, *new})
    return [(key, old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)]


def base_config(run: Run) -> tuple[str, CfgNode] | None:
    """The config file of the training command, as it is today; None if it cannot be read."""
    words = shlex.split(run.training_command or "")
    for place, word in enumerate(words):
        name, _, value = word.partition("=")
        if name == "--config-file" and (value or words[place + 1 :]):
            path = value or words[place + 1]
            try:
                return path, load_config(path)
            except UserError:
                return None
    return None


def _read_log(folder: Path, trained: CfgNode) -> str:
    """The run's log.txt, or that of the parent folder if several runs share it, as in the demo."""
    own, shared = folder / "log.txt", folder.resolve().parent / "log.txt"
    if own.is_file():
        return own.read_text(encoding="utf-8", errors="replace")
    text = shared.read_text(encoding="utf-8", errors="replace") if shared.is_file() else ""
    return text if f"Saving checkpoint to {trained.OUTPUT_DIR}/" in text else ""


def _test_set(cfg: CfgNode, folder: Path) -> str:
    names = list(cfg.DATASETS.TESTS)
    if len(names) != 1:
        example = names[0] if names else "NAME"
        raise UserError(
            f"{folder} is tested on {', '.join(names) or 'no dataset'}: a report is about one test "
            f"set, so set DATASETS.TESTS \"('{example}',)\""
        )
    if not is_video_dataset(names[0]):
        raise UserError(f"{folder} is tested on {names[0]}, which has images, not tracklets")
    return names[0]


def _prefix(trained: CfgNode, dataset: str) -> str:
    """The prefix of an evaluation's keys, which a run with several test sets writes."""
    return f"{dataset}/" if len(trained.DATASETS.TESTS) > 1 else ""


def _find(pattern: str, text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(match.strip() for match in re.findall(pattern, text, re.MULTILINE)))


def _quoted(command: str) -> str:
    """A command of the log, quoted for a shell. Logs of older versions have no quotes."""
    with contextlib.suppress(ValueError):
        if shlex.join(shlex.split(command)) == command:
            return command
    return shlex.join(command.split())
