"""What a run's folder holds: config, history, log and the weights that the report looks at."""

from __future__ import annotations

import datetime
import hashlib
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastreid.config import CfgNode

from fastreid_star.data.build import is_video_dataset
from fastreid_star.engine.checkpoint import read_checkpoint
from fastreid_star.engine.defaults import load_config
from fastreid_star.errors import UserError
from fastreid_star.report.history import History, read_history
from fastreid_star.report.html import file_name

WEIGHTS = ("model_best.pth", "model_final.pth", "model_last.pth")


@dataclass(frozen=True)
class Weights:
    """A checkpoint.

    Args:
        path: of the file.
        sha256: of its content, in hexadecimal.
        size: in bytes.
        modified: when it was written.
        epochs: how many it was trained for; None: it does not say.
        metric: for which it was kept as the best, of the first test set; None: it was not.
    """

    path: Path
    sha256: str
    size: int
    modified: datetime.datetime
    epochs: int | None
    metric: float | None


@dataclass(frozen=True)
class Run:
    """A run's folder.

    Args:
        folder: where it is.
        name: what the report calls it.
        trained: the config that it was trained with.
        cfg: the same with what the report was told to change; its weights are in `weights`, not in MODEL.WEIGHTS.
        dataset: the test set's name.
        weights: what is evaluated.
        history: None where nothing was trained in this folder.
        environments: versions and devices, one line for each that its log knows.
        commands: the command lines that its log knows.
    """

    folder: Path
    name: str
    trained: CfgNode
    cfg: CfgNode
    dataset: str
    weights: Weights
    history: History | None
    environments: tuple[str, ...]
    commands: tuple[str, ...]

    @property
    def recorded(self) -> dict[str, float] | None:
        """The evaluation that metrics.json has of these weights, None where it has none, or they are another run's."""
        if self.history is None or self.weights.epochs is None:
            return None
        if self.weights.path.resolve().parent != self.folder.resolve():
            return None
        line = next(
            (line for line in self.history.lines if line.get("epoch") == self.weights.epochs), {}
        )
        metric = line.get(_prefix(self.trained, self.trained.DATASETS.TESTS[0]) + "metric")
        if self.weights.metric is not None and self.weights.metric != metric:
            return None
        prefix = _prefix(self.trained, self.dataset)
        found = {
            key.removeprefix(prefix): value for key, value in line.items() if key.startswith(prefix)
        }
        return found if "mean/mAP" in found else None

    def evaluations(self, key: str) -> tuple[list[float], list[float]]:
        """One number of the evaluations over training, as :meth:`History.series`."""
        return (
            self.history.series(_prefix(self.trained, self.dataset) + key)
            if self.history
            else ([], [])
        )


def gather(folder: str | Path, options: Sequence[str] = (), *, config_file: str = "") -> Run:
    """Read a run's folder.

    Args:
        folder: as ``tools/train_net.py`` leaves it.
        options: ``[KEY, VALUE, ...]``, config keys that the report is to change, MODEL.WEIGHTS among them.
        config_file: the config of a folder without ``config.yaml``, one that was only evaluated.

    Raises:
        UserError: something is missing or does not fit.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder: name the OUTPUT_DIR of a run")
    own = folder / "config.yaml"
    if not own.is_file() and not config_file:
        raise UserError(
            f"{folder} has no config.yaml: name the config it was trained with, --config-file FILE"
        )
    source = str(own if own.is_file() else config_file)
    trained, cfg = load_config(source), load_config(source, list(options))
    dataset = _one_dataset(cfg, folder)
    asked = cfg.MODEL.WEIGHTS if "MODEL.WEIGHTS" in options[::2] else ""
    text = _log(folder, trained)
    return Run(
        folder=folder,
        name=file_name(folder.resolve()),
        trained=trained,
        cfg=cfg,
        dataset=dataset,
        weights=read_weights(find_weights(folder, asked)),
        history=read_history(
            folder / "metrics.json",
            eval_period=trained.TEST.EVAL_PERIOD,
            max_epoch=trained.SOLVER.MAX_EPOCH,
            key=_prefix(trained, dataset) + "I2V/mAP",
        ),
        environments=_found(r"INFO: (Python [\d.]+, torch .*)$", text),
        commands=_found(r"INFO: Command line: (.*)$", text),
    )


def find_weights(folder: Path, asked: str = "") -> Path:
    """The weights to look at: those asked for, else the best, else the last of the folder.

    Raises:
        UserError: there are none.
    """
    if asked:
        return Path(asked)
    for name in WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    raise UserError(
        f"{folder} holds none of {', '.join(WEIGHTS)}: train first, or add --set MODEL.WEIGHTS path/to/model.pth"
    )


def read_weights(path: Path) -> Weights:
    """What is to be said of a checkpoint.

    Raises:
        UserError: it does not exist or cannot be read.
    """
    content = read_checkpoint(str(path))
    epoch, metric = content.get("epoch"), content.get("metric")
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    status = path.stat()
    modified = datetime.datetime.fromtimestamp(status.st_mtime)
    return Weights(
        path,
        digest.hexdigest(),
        status.st_size,
        modified,
        None if epoch is None else epoch + 1,
        metric,
    )


def differences(before: CfgNode, after: CfgNode) -> list[tuple[str, object, object]]:
    """The keys whose values differ: (key, value before, value after), in alphabetical order."""
    old, new = _flat(before), _flat(after)
    keys = sorted({*old, *new})
    return [(key, old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)]


def base_of(run: Run) -> tuple[str, CfgNode] | None:
    """The config file that the run's command line names, as it is today; None where there is none to be read."""
    for command in reversed(run.commands):
        try:
            words = shlex.split(command)
        except ValueError:
            continue
        if "--config-file" in words[:-1]:
            path = words[words.index("--config-file") + 1]
            try:
                return path, load_config(path)
            except UserError:
                return None
    return None


def _log(folder: Path, trained: CfgNode) -> str:
    """The run's log, or the one beside its folder where several runs share it, as the demo's do."""
    own, shared = folder / "log.txt", folder.resolve().parent / "log.txt"
    if own.is_file():
        return own.read_text(encoding="utf-8", errors="replace")
    text = shared.read_text(encoding="utf-8", errors="replace") if shared.is_file() else ""
    return text if f"Saving checkpoint to {trained.OUTPUT_DIR}/" in text else ""


def _one_dataset(cfg: CfgNode, folder: Path) -> str:
    names = list(cfg.DATASETS.TESTS)
    if len(names) != 1:
        raise UserError(
            f"{folder} is tested on {', '.join(names) or 'nothing'}: a report is about one test set, add "
            f"--set DATASETS.TESTS \"('{names[0] if names else 'NAME'}',)\""
        )
    if not is_video_dataset(names[0]):
        raise UserError(
            f"{folder} is tested on {names[0]}, a dataset of images: a report is about clips"
        )
    return names[0]


def _prefix(trained: CfgNode, dataset: str) -> str:
    """What stands before an evaluation's keys where a run has several test sets."""
    return f"{dataset}/" if len(trained.DATASETS.TESTS) > 1 else ""


def _found(pattern: str, text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(match.strip() for match in re.findall(pattern, text, re.MULTILINE)))


def _flat(node: Mapping, prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in node.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat
