"""Keep the table of trained models in a Markdown page up to date."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate

from fastreid_star.errors import UserError
from fastreid_star.files import insert, write_output
from fastreid_star.report.runs import Run, read_run, split_command

MARK = "runs"
COLUMNS = ("I2V/Rank-1", "I2V/mAP", "V2I/Rank-1", "V2I/mAP", "mean/mAP")


def update_zoo(
    folders: Sequence[str | Path],
    *,
    page: str | Path,
    logs: str = "logs",
    options: Sequence[str] = (),
) -> None:
    """Replace the table in a page of trained models.

    The table has one row for each run; a list of the training commands follows. The metrics.json of
    each run is copied beside the page.

    Args:
        folders: OUTPUT_DIRs of the runs.
        page: a Markdown file with the marks ``<!-- runs: begin -->`` and ``<!-- runs: end -->``.
        logs: folder for the copies, relative to the page.
        options: ``[KEY, VALUE, ...]``, config keys to change, such as DATASETS.TESTS.

    Raises:
        UserError: a run has no evaluation of its weights or no log, or the page has no place for
            the table. Nothing is written then.
    """
    runs = [read_run(folder, options) for folder in folders]
    text = insert(page, MARK, format_runs(runs, logs))
    for run in runs:
        metrics = (run.folder / "metrics.json").read_bytes()
        _write(Path(page).parent / logs / f"{run.name}.json", metrics)
    _write(page, text.encode())


def format_runs(runs: Sequence[Run], logs: str) -> str:
    """The table and the list of commands in Markdown.

    Raises:
        UserError: see :func:`update_zoo`; or two runs have the same name.
    """
    names = [run.name for run in runs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"two runs are named {twice[0]}: rename one of the folders")
    rows, commands = [], []
    for run in runs:
        results = run.recorded
        if results is None:
            raise UserError(
                f"{run.folder}: metrics.json has no evaluation of {run.weights.path.name}"
            )
        numbers = [f"{results[c]:.2f}" if c in results else "" for c in COLUMNS]
        facts = [run.dataset, str(run.trained.SEED), str(run.weights.epochs)]
        link = f"[{run.name}]({logs}/{run.name}.json)"
        rows.append([link, *facts, *numbers, run.weights.sha256[:8]])
        commands.append(f"- {run.name}: ``{repeat_command(run)}``")
    columns = [column.replace("/", " ") for column in COLUMNS]
    headers = ("run", "test set", "seed", "epochs", *columns, "weights")
    table = tabulate(rows, headers=headers, tablefmt="pipe", disable_numparse=True)
    return "\n".join([table, "", *commands])


def repeat_command(run: Run) -> str:
    """The command that trained a run, quoted for a shell, without the paths of its machine."""
    if run.training_command is None:
        raise UserError(f"{run.folder} has no log.txt with the command that trained it")
    words = split_command(run.training_command)
    words = [re.sub(r"^(--[\w-]+=)?/.*?([^/]*)/*$", r"\1/path/to/\2", word) for word in words]
    return shlex.join(words if words[0] == "fastreid-star" else ["python", *words])


def _write(path: str | Path, content: bytes) -> None:
    write_output(path, lambda file: file.write(content))
