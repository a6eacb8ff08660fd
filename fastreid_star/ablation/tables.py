"""The runs of an ablation, and the tables of their results."""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from tabulate import tabulate

from fastreid_star.ablation.published import published
from fastreid_star.errors import UserError

COLUMNS = ("I2V/Rank-1", "I2V/mAP", "V2I/Rank-1", "V2I/mAP", "mean/mAP")
RESULT, OPTIONS = "result.json", "options.json"


@dataclass(frozen=True)
class Run:
    """A training run, perhaps with changed keys, or another test of the model that it trained.

    Args:
        config: the YAML file.
        seed: of the model.
        data_seed: of the synthetic data; None: the data have no seed.
        folder: the output folder.
        retest: the name of the test; None: this is the training run.
        variant: the name of the changed keys; None: the config as it is.
    """

    config: Path
    seed: int
    data_seed: int | None
    folder: Path
    retest: str | None = None
    variant: str | None = None

    @property
    def name(self) -> str:
        """The row of the table that it belongs to."""
        return ", ".join(filter(None, (self.config.stem, self.variant, self.retest)))

    @property
    def result(self) -> dict[str, float] | None:
        """Its results; None if it has not finished."""
        path = self.folder / RESULT
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def note_of_frames(runs: Sequence[Run]) -> str:
    """A line below a table that names its networks of single frames; empty: it has none.

    They are methods for images. How they were put on video for published numbers is not known.
    """
    names = {}
    for run in runs:
        config = run.folder / "config.yaml"
        if run.result is not None and config.is_file():
            node = yaml.safe_load(config.read_text(encoding="utf-8")).get("MODEL", {})
            names[run.name] = node.get("UNIT") == "frame"
    of_frames = ", ".join(name for name, yes in names.items() if yes)
    return of_frames and f"\n\nTrained on single frames, by our protocol: {of_frames}."


def seed_name(data_seed: int | None, seed: int) -> str:
    """``data1-seed0``, or ``seed0`` if the data have no seed."""
    return f"seed{seed}" if data_seed is None else f"data{data_seed}-seed{seed}"


def summarize(runs: Sequence[Run]) -> dict[str, dict[str, list[float]]]:
    """The results of the finished runs: row -> column -> values in the order of the runs."""
    table: dict[str, dict[str, list[float]]] = {}
    for run in runs:
        result = run.result
        if result is not None:
            row = table.setdefault(run.name, {column: [] for column in COLUMNS})
            for column in COLUMNS:
                row[column].append(result[column])
    return table


def spread(values: Sequence[float]) -> str:
    """``mean ± standard deviation``, or the value if there is only one."""
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{statistics.fmean(values):.2f} ± {statistics.stdev(values):.2f}"


def to_markdown(
    table: Mapping[str, Mapping[str, Sequence[float]]],
    *,
    with_paper: bool,
    also: Sequence[str] = (),
) -> str:
    """One row for each config, with mean and spread over its runs, and published numbers below.

    Args:
        table: of :func:`summarize`.
        with_paper: show published results, which are of HITSZ-VCM.
        also: names of published results to show although `table` does not have them.
    """
    rows = []
    for name in [*table, *(name for name in also if with_paper and name not in table)]:
        row = table.get(name)
        cells = [""] * len(COLUMNS) if row is None else [spread(row[c]) for c in COLUMNS]
        rows.append([name, 0 if row is None else len(row[COLUMNS[0]]), *cells])
        found = published(name) if with_paper else None
        if found is not None:
            source, printed = found
            values = (*printed, (printed[1] + printed[3]) / 2)
            rows.append([source, "", *(f"{value:.2f}" for value in values)])
    headers = ["config", "runs", *COLUMNS]
    return tabulate(rows, headers=headers, tablefmt="pipe", disable_numparse=True)


def pairs_to_markdown(runs: Sequence[Run], against: str) -> str:
    """Mean mAP minus that of `against`: a row for each config, a column for each seed.

    The difference of two runs of the same data, seed and warm start has less noise than the
    difference of means.

    Raises:
        UserError: no run of this name has finished.
    """
    mean: dict[tuple[int | None, int], dict[str, float]] = {}
    for run in runs:
        if run.result is not None:
            mean.setdefault((run.data_seed, run.seed), {})[run.name] = run.result["mean/mAP"]
    seeds = [seed for seed, values in mean.items() if against in values]
    if not seeds:
        raise UserError(f"--against {against}: no such run has finished")
    rows = [[against, *(f"{mean[seed][against]:.2f}" for seed in seeds), "", ""]]
    for name in dict.fromkeys(run.name for run in runs if run.name != against):
        own = [seed for seed in seeds if name in mean[seed]]
        gains = {seed: mean[seed][name] - mean[seed][against] for seed in own}
        if gains:
            cells = [f"{gains[seed]:+.2f}" if seed in gains else "" for seed in seeds]
            values = (statistics.fmean(gains.values()), min(gains.values()))
            rows.append([name, *cells, *(f"{value:+.2f}" for value in values)])
    headers = ["mean mAP against it", *(seed_name(*seed) for seed in seeds), "mean", "least"]
    return tabulate(rows, headers=headers, tablefmt="pipe", disable_numparse=True)


def to_csv(runs: Sequence[Run]) -> str:
    """One line for each finished run, with all its results."""
    finished = [(run, run.result) for run in runs if run.result is not None]
    keys = sorted({key for _, result in finished for key in result})
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["config", "data_seed", "seed", *keys])
    for run, result in finished:
        data_seed = "" if run.data_seed is None else run.data_seed
        writer.writerow([run.name, data_seed, run.seed, *(result.get(key, "") for key in keys)])
    return text.getvalue()
