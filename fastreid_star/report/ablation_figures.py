"""The paper's Figures 5 and 6 from what tools/ablate.py has left: mAP over the clip's length, and over the exponents.

Which runs belong together is read from their configs, not from their names: those that differ in nothing else.
"""

from __future__ import annotations

import datetime
import itertools
import json
import re
import statistics
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup

from fastreid_star.data.folders import natural_key
from fastreid_star.engine import ablation
from fastreid_star.errors import UserError
from fastreid_star.report import plots
from fastreid_star.report.html import file_name, render

LENGTH, EXPONENTS, METHOD = "INPUT.CLIP.LENGTH", "MODEL.STAR.EXPONENTS", "MODEL.META_ARCHITECTURE"
BASELINE = "SAD"
MEASURES = {"I2V": "I2V/mAP", "V2I": "V2I/mAP"}

# what differs between the runs of one config, and what between the baseline and a method on top of it
OF_A_RUN = ("SEED", "OUTPUT_DIR", "DATASETS.ROOT", "DATASETS.SYNTHETIC.SEED", "MODEL.WEIGHTS")
OF_A_METHOD = (METHOD, "MODEL.HEADS.NAME", "MODEL.LOSSES.NAME", "DATASETS.SKELETONS")


@dataclass(frozen=True)
class Finished:
    """A training run that has a result.

    Args:
        run: as the table counts it.
        config: key -> value, of all keys; the values are hashable.
        result: measure -> per cent.
    """

    run: ablation.Run
    config: Mapping[str, Any]
    result: Mapping[str, float]


@dataclass(frozen=True)
class LengthCurve:
    """Figure 5 of one method: measures over the clip's length, beside the baseline's.

    Args:
        method, baseline: names of the networks.
        values: direction -> (the method's, the baseline's); each clip length -> one mAP a run.
    """

    method: str
    baseline: str
    values: dict[str, tuple[dict[int, list[float]], dict[int, list[float]]]]


@dataclass(frozen=True)
class ExponentMap:
    """Figure 6 of one network: measures over how many exponents lie below and above 1.

    Args:
        method: name of the network.
        values: direction -> (below, above) -> one mAP a run.
        exponents: (below, above) -> the sets that were trained.
    """

    method: str
    values: dict[str, dict[tuple[int, int], list[float]]]
    exponents: dict[tuple[int, int], list[tuple[float, ...]]]


def find_runs(folder: str | Path) -> list[Finished]:
    """The finished training runs below the output folder of tools/ablate.py; tests under other conditions are not.

    Raises:
        UserError: there are none, or a run's files are damaged.
    """
    found = []
    for path in sorted(
        Path(folder).glob(f"*seed*/*/{ablation.RESULT}"), key=lambda path: natural_key(str(path))
    ):
        try:
            made_with = json.loads((path.parent / ablation.OPTIONS).read_text(encoding="utf-8"))
            config = _flat(yaml.safe_load(made_with["config"]))
            result = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
            raise UserError(
                f"{path.parent} is damaged ({error}): delete it and run tools/ablate.py again"
            ) from error
        if path.parent.name != "warm-start":
            run = ablation.Run(Path(path.parent.name), config["SEED"], None, path.parent)
            found.append(Finished(run, config, result))
    if not found:
        raise UserError(f"{folder} holds no finished runs of tools/ablate.py: name its --output")
    return found


def length_curves(runs: Sequence[Finished]) -> list[LengthCurve]:
    """Methods and baselines that were trained at two lengths or more and differ in nothing else but the method."""
    families = _families(runs, vary=(LENGTH,))
    families = [family for family in families if len({run.config[LENGTH] for run in family}) > 1]
    baselines = [family for family in families if family[0].config[METHOD] == BASELINE]
    curves = []
    for method in families:
        for baseline in baselines:
            if method[0].config[METHOD] != BASELINE and _without_method(
                method[0]
            ) == _without_method(baseline[0]):
                values = {
                    way: (_by_length(method, key), _by_length(baseline, key))
                    for way, key in MEASURES.items()
                }
                curves.append(LengthCurve(_name(method), _name(baseline), values))
    return curves


def exponent_maps(runs: Sequence[Finished]) -> list[ExponentMap]:
    """Networks that were trained with two sets of exponents or more and differ in nothing else."""
    maps = []
    for family in _families(runs, vary=(EXPONENTS,)):
        if (
            family[0].config[METHOD] == BASELINE
            or len({run.config[EXPONENTS] for run in family}) < 2
        ):
            continue
        values = {way: _collect(family, _cell, key) for way, key in MEASURES.items()}
        exponents: dict[tuple[int, int], list[tuple[float, ...]]] = {}
        for run in family:
            sets = exponents.setdefault(_cell(run), [])
            if run.config[EXPONENTS] not in sets:
                sets.append(run.config[EXPONENTS])
        maps.append(ExponentMap(_name(family), values, exponents))
    return maps


def build_ablation_report(folder: str | Path) -> str:
    """The page of an ablation: the table, and the figures that its runs make.

    Raises:
        UserError: see :func:`find_runs`.
    """
    runs = find_runs(folder)
    table = ablation.summarize([finished.run for finished in runs])
    of_the_paper = all(
        tuple(finished.config["DATASETS.TESTS"]) == ("HITSZVCM",) for finished in runs
    )
    return render(
        "ablation",
        name=file_name(Path(folder).resolve()),
        made=datetime.datetime.now(),
        datasets=sorted({name for finished in runs for name in finished.config["DATASETS.TESTS"]}),
        columns=ablation.COLUMNS,
        rows=[
            (
                name,
                len(row[ablation.COLUMNS[0]]),
                [ablation.spread(row[c]) for c in ablation.COLUMNS],
            )
            for name, row in table.items()
        ],
        paper={name: _with_mean(row) for name, row in ablation.PAPER.items()}
        if of_the_paper
        else {},
        curves=[(curve, length_charts(curve)) for curve in length_curves(runs)],
        maps=[(found, heat_tables(found)) for found in exponent_maps(runs)],
    )


def length_charts(curve: LengthCurve) -> list[Markup]:
    """One drawing a direction."""
    return [
        plots.gain(
            {curve.method: ours, curve.baseline: theirs},
            title=f"{way}, mAP in %",
            x_label="frames of a clip",
        )
        for way, (ours, theirs) in curve.values.items()
    ]


@dataclass(frozen=True)
class HeatCell:
    """A cell of a heat table: its text, its place between the smallest (0) and the largest value (100), its sets."""

    text: str
    share: float
    title: str


def heat_tables(
    found: ExponentMap,
) -> dict[str, tuple[list[int], list[int], dict[tuple[int, int], HeatCell]]]:
    """For each direction the counts above 1 (columns), those below 1 (rows), and the cells that were trained."""
    tables = {}
    for way, values in found.values.items():
        means = {cell: statistics.fmean(each) for cell, each in values.items()}
        low, high = min(means.values()), max(means.values())
        cells = {
            cell: HeatCell(
                f"{mean:.2f}",
                100 * (mean - low) / (high - low) if high > low else 0.0,
                f"{_sets(found.exponents[cell])}; {ablation.spread(values[cell])}, {len(values[cell])} run(s)",
            )
            for cell, mean in means.items()
        }
        below, above = (sorted({cell[place] for cell in means}) for place in (0, 1))
        tables[way] = (above, below, cells)
    return tables


def _families(runs: Sequence[Finished], vary: tuple[str, ...]) -> list[list[Finished]]:
    """The runs by all that is in their configs, without what differs between seeds and without `vary`."""
    families: dict[Hashable, list[Finished]] = {}
    for run in runs:
        families.setdefault(_key(run, vary), []).append(run)
    return list(families.values())


def _key(run: Finished, without: Iterable[str]) -> tuple[tuple[str, Any], ...]:
    left_out = {*OF_A_RUN, *without}
    return tuple((key, value) for key, value in run.config.items() if key not in left_out)


def _without_method(run: Finished) -> Hashable:
    key = _key(run, (LENGTH, *OF_A_METHOD))
    return tuple((name, value) for name, value in key if not name.startswith("MODEL.STAR."))


def _name(family: Sequence[Finished]) -> str:
    """What the names of a family's configs begin with, in whole words: STAR_R50 of STAR_R50_T2 and STAR_R50_T4."""
    words = [re.split(r"(?=[_-])", file_name(run.run.name)) for run in family]
    shared = itertools.takewhile(lambda each: len(set(each)) == 1, zip(*words, strict=False))
    return "".join(each[0] for each in shared) or family[0].config[METHOD]


def _collect(family: Sequence[Finished], place: Callable[[Finished], Hashable], key: str) -> dict:
    values: dict = {}
    for run in family:
        values.setdefault(place(run), []).append(run.result[key])
    return dict(sorted(values.items()))


def _by_length(family: Sequence[Finished], key: str) -> dict[int, list[float]]:
    return _collect(family, lambda run: run.config[LENGTH], key)


def _cell(run: Finished) -> tuple[int, int]:
    exponents = run.config[EXPONENTS]
    return sum(p < 1 for p in exponents), sum(p > 1 for p in exponents)


def _sets(exponents: Sequence[Sequence[float]]) -> str:
    return " and ".join("p = " + ", ".join(f"{p:g}" for p in each) for each in exponents)


def _with_mean(row: Sequence[float]) -> list[float]:
    return [*row, (row[1] + row[3]) / 2]


def _flat(node: Mapping, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in sorted(node.items()):
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = _frozen(value)
    return flat


def _frozen(value: Any) -> Hashable:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value
