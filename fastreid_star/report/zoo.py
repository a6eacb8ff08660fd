"""The table of a page of trained models, made from the folders of their runs."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate

from fastreid_star.errors import UserError
from fastreid_star.files import write_whole
from fastreid_star.report.gather import Run

BEGIN, END = "<!-- runs: begin -->", "<!-- runs: end -->"
HEADERS = (
    "run",
    "test set",
    "seed",
    "epochs",
    "I2V Rank-1",
    "I2V mAP",
    "V2I Rank-1",
    "V2I mAP",
    "mean mAP",
    "weights",
)
NUMBERS = ("I2V/Rank-1", "I2V/mAP", "V2I/Rank-1", "V2I/mAP", "mean/mAP")


def format_runs(runs: Sequence[Run], logs: str) -> str:
    """A table with a line for each run, and below it the command of each.

    Args:
        runs: with an evaluation of their weights in ``metrics.json``, and names that differ.
        logs: folder of :func:`write_logs`, relative to the page.

    Raises:
        UserError: a run has no such evaluation or no command, or two have one name.
    """
    names = [run.name for run in runs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(
            f"two runs are called {twice[0]}: name each run's folder once, or rename one of them"
        )
    rows = [_row(run, logs) for run in runs]
    table = tabulate(rows, headers=HEADERS, tablefmt="pipe", disable_numparse=True)
    commands = "\n".join(f"- {run.name}: `{_command(run)}`" for run in runs)
    return f"{table}\n\n{commands}"


def _row(run: Run, logs: str) -> list[str]:
    results = run.recorded
    if results is None:
        raise UserError(
            f"{run.folder} has no evaluation of {run.weights.path.name} in metrics.json: train it here"
        )
    return [
        f"[{run.name}]({logs}/{run.name}.json)",
        run.dataset,
        str(run.trained.SEED),
        str(run.weights.epochs),
        *(f"{results[number]:.2f}" for number in NUMBERS),
        run.weights.sha256[:8],
    ]


def _command(run: Run) -> str:
    """The command that made a run; whose disk it ran on is nobody's business."""
    if not run.commands:
        raise UserError(f"{run.folder} has no log.txt with the command that made it: train it here")
    words = shlex.split(run.commands[-1])
    words = [re.sub(r"^(--[\w-]+=)?/.*?([^/]*)/*$", r"\1/path/to/\2", word) for word in words]
    return re.sub(r"`", "'", shlex.join(["python", *words]))


def write_logs(folder: str | os.PathLike, runs: Sequence[Run]) -> None:
    """Copy each run's ``metrics.json``, every number of its training, to ``folder/NAME.json``."""
    os.makedirs(folder, exist_ok=True)
    for run in runs:
        _copy(run.folder / "metrics.json", Path(folder) / f"{run.name}.json")


def _copy(source: Path, target: Path) -> None:
    content = source.read_bytes()
    write_whole(target, lambda file: file.write(content))


def write_table(page: str | os.PathLike, table: str) -> None:
    """Put the table between the two marks of a page.

    Raises:
        UserError: there is no such page, or it does not have each mark once, in their order.
    """
    try:
        text = Path(page).read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{page} cannot be read: {error.strerror}") from error
    begin, end = text.find(BEGIN), text.find(END)
    if begin < 0 or end < begin or text.count(BEGIN) > 1 or text.count(END) > 1:
        raise UserError(
            f"{page} has no place for the table: put the lines {BEGIN} and {END} into it, once each"
        )
    text = f"{text[:begin]}{BEGIN}\n\n{table}\n\n{text[end:]}"
    write_whole(page, lambda file: file.write(text.encode()))
