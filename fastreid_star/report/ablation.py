"""A page of an ablation: its table, and the paper's Figures 5 (clip length) and 6 (exponents).

Runs are grouped by their configs, not by their names: runs of one curve differ only in the key that
the curve varies, and in their seeds and folders.
"""

from __future__ import annotations

import itertools
import json
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup

from fastreid_star.ablation.published import published
from fastreid_star.ablation.tables import COLUMNS, OPTIONS, RESULT, spread
from fastreid_star.data.folders import natural_key
from fastreid_star.errors import UserError
from fastreid_star.report import plots
from fastreid_star.report.page import file_name, write_page
from fastreid_star.report.runs import flatten

LENGTH, EXPONENTS, METHOD = "INPUT.CLIP.LENGTH", "MODEL.STAR.EXPONENTS", "MODEL.META_ARCHITECTURE"
OF_A_RUN = {"SEED", "OUTPUT_DIR", "DATASETS.ROOT", "DATASETS.SYNTHETIC.SEED", "MODEL.WEIGHTS"}
MEASURES = {"I2V": "I2V/mAP", "V2I": "V2I/mAP"}


@dataclass(frozen=True)
class Finished:
    """A finished training run."""

    name: str  # of its config
    config: Mapping[str, Any]  # key -> value
    result: Mapping[str, float]  # measure -> percent


def write_ablation_page(folder: str | Path, *, output: str | Path | None = None) -> Path:
    """Write the page of an ablation.

    Args:
        folder: the output folder of the ablation.
        output: the HTML file; None: report.html in `folder`.

    Raises:
        UserError: there are no finished runs, a file is damaged, or the page cannot be written.
    """
    output = output or Path(folder) / "report.html"
    runs = find_runs(folder)
    datasets = sorted({name for run in runs for name in run.config["DATASETS.TESTS"]})
    table = _collect((run.name, run.result) for run in runs)
    columns = [key for key in COLUMNS if all(key in run.result for run in runs)]
    return write_page(
        output,
        "ablation",
        name=file_name(Path(folder).resolve()),
        datasets=datasets,
        columns=columns,
        rows=[
            (name, len(results), [spread([result[key] for result in results]) for key in columns])
            for name, results in table.items()
        ],
        paper=_published(table) if datasets == ["HITSZVCM"] else {},
        lengths=length_charts(runs),
        maps=exponent_maps(runs),
    )


def _published(names: Iterable[str]) -> dict[str, tuple[str, list[float]]]:
    """Source and published results of these configs, with the mean mAP."""
    found = {name: published(name) for name in names}
    rows = {name: each for name, each in found.items() if each is not None}
    return {name: (source, [*row, (row[1] + row[3]) / 2]) for name, (source, row) in rows.items()}


def find_runs(folder: str | Path) -> list[Finished]:
    """The finished training runs of an ablation, without warm starts and further tests.

    Raises:
        UserError: there are none, or a file is damaged.
    """
    found = []
    paths = Path(folder).glob(f"*seed*/*/{RESULT}")
    for path in sorted(paths, key=lambda path: natural_key(str(path))):
        try:
            made_with = json.loads((path.parent / OPTIONS).read_text(encoding="utf-8"))
            config = flatten(yaml.safe_load(made_with["config"]))
            result = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
            raise UserError(
                f"{path.parent} is damaged ({error}): delete it and run the ablation again"
            ) from error
        if path.parent.name != "warm-start":
            found.append(Finished(path.parent.name, config, result))
    if not found:
        raise UserError(f"{folder} has no finished runs: name the output folder of an ablation")
    return found


def families(runs: Sequence[Finished], vary: str) -> dict[str, list[Finished]]:
    """The runs that differ only in `vary`, seeds and folders, if it has two values or more."""
    groups = _collect(
        (str(sorted((k, v) for k, v in run.config.items() if k not in {*OF_A_RUN, vary})), run)
        for run in runs
    )
    varied = [g for g in groups.values() if len({str(run.config[vary]) for run in g}) > 1]
    return {_name(group): group for group in varied}


def length_charts(runs: Sequence[Finished]) -> list[Markup]:
    """Figure 5: mAP over the clip length, a figure a direction and a line a method."""
    groups = families(runs, LENGTH)
    charts = []
    for way, key in MEASURES.items() if groups else ():
        lines = {}
        for name, group in groups.items():
            points = _collect((run.config[LENGTH], run.result[key]) for run in group)
            lines[name] = dict(sorted(points.items()))
        charts.append(plots.means(lines, title=f"{way}, mAP in %", x_label="frames of a clip"))
    return charts


def exponent_maps(runs: Sequence[Finished]) -> dict[str, dict[str, tuple]]:
    """Figure 6: mAP over the number of exponents below and above 1.

    Returns:
        name -> direction -> (counts above 1, counts below 1, cells); a cell is
        (below, above) -> its text, its share of the highest value (0 to 100), and a tooltip.
    """
    maps: dict[str, dict[str, tuple]] = {}
    for name, group in families(runs, EXPONENTS).items():
        sets = _collect((_counts(run), tuple(run.config[EXPONENTS])) for run in group)
        for way, key in MEASURES.items():
            values = _collect((_counts(run), run.result[key]) for run in group)
            mean = {cell: statistics.fmean(each) for cell, each in values.items()}
            low, high = min(mean.values()), max(mean.values())
            cells = {
                cell: {
                    "text": f"{mean[cell]:.2f}",
                    "share": 100 * (mean[cell] - low) / max(high - low, 1e-9),
                    "title": f"{_sets(sets[cell])}; {spread(values[cell])}, "
                    f"{len(values[cell])} run(s)",
                }
                for cell in mean
            }
            below, above = (sorted({cell[place] for cell in mean}) for place in (0, 1))
            maps.setdefault(name, {})[way] = (above, below, cells)
    return maps


def _name(group: Sequence[Finished]) -> str:
    """The words that the names share from the start: STAR_R50 of STAR_R50_T2 and STAR_R50_T4."""
    words = [re.split(r"(?=[_-])", run.name) for run in group]
    shared = itertools.takewhile(lambda each: len(set(each)) == 1, zip(*words, strict=False))
    return "".join(each[0] for each in shared) or group[0].config[METHOD]


def _collect(pairs: Iterable[tuple[Any, Any]]) -> dict[Any, list]:
    """The values of each key, in a list."""
    collected: dict[Any, list] = {}
    for key, value in pairs:
        collected.setdefault(key, []).append(value)
    return collected


def _counts(run: Finished) -> tuple[int, int]:
    exponents = run.config[EXPONENTS]
    return sum(p < 1 for p in exponents), sum(p > 1 for p in exponents)


def _sets(sets: Sequence[tuple[float, ...]]) -> str:
    return " and ".join("p = " + ", ".join(f"{p:g}" for p in each) for each in dict.fromkeys(sets))
