"""Configs x seeds: which runs there are, what they gave, and the paper's table of it."""

from __future__ import annotations

import concurrent.futures
import csv
import io
import json
import re
import statistics
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tabulate import tabulate

from fastreid_star.engine.defaults import load_config
from fastreid_star.errors import UserError
from fastreid_star.files import write_whole

COLUMNS = ("I2V/Rank-1", "I2V/mAP", "V2I/Rank-1", "V2I/mAP", "mean/mAP")
RESULT = "result.json"
OPTIONS = "options.json"

# Table 3 of the paper (HITSZ-VCM, %), by the config that trains the row
PAPER = {
    "SAD_R50": (66.76, 54.05, 70.45, 55.45),
    "STAR_R50_frame": (68.53, 55.01, 71.01, 56.16),
    "STAR_R50_sequence": (69.04, 55.91, 73.15, 58.22),
    "STAR_R50": (69.57, 56.01, 73.25, 58.56),
}


@dataclass(frozen=True)
class Run:
    """One training run, or one more test of what it trained.

    Args:
        config: the YAML file.
        seed: of the model.
        data_seed: of the synthetic data; None: the data are what they are.
        folder: its output folder.
        retest: the name of the test; None: this is the training run.
    """

    config: Path
    seed: int
    data_seed: int | None
    folder: Path
    retest: str | None = None

    @property
    def name(self) -> str:
        """Its row in the table."""
        return self.config.stem if self.retest is None else f"{self.config.stem}, {self.retest}"

    @property
    def result(self) -> dict[str, float] | None:
        """What it gave, None while it has not finished."""
        path = self.folder / RESULT
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


@dataclass(frozen=True)
class Retest:
    """Test the trained networks of one config again, with some config keys changed.

    Args:
        config: the name of one of the configs, without folder and suffix.
        name: of the test.
        options: ``[KEY, VALUE, ...]``.
    """

    config: str
    name: str
    options: tuple[str, ...]


def plan(
    configs: Sequence[str],
    seeds: Sequence[int],
    data_seeds: Sequence[int | None],
    output: str | Path,
) -> list[Run]:
    """All runs, those of one seed side by side: an interrupted ablation has whole rows to compare.

    Raises:
        UserError: a config does not exist, or two have one name.
    """
    if len(set(seeds)) < len(seeds) or len(set(data_seeds)) < len(data_seeds):
        raise UserError(
            f"seeds {list(seeds)} and data seeds {list(data_seeds)}: each may be there once"
        )
    paths = [Path(config) for config in configs]
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        raise UserError(f"no such config: {', '.join(missing)}")
    names = [path.stem for path in paths]
    if len(set(names)) < len(names):
        raise UserError(
            f"two configs have one name, and would share a folder: {', '.join(sorted(names))}"
        )
    return [
        Run(path, seed, data_seed, Path(output) / folder_name(data_seed, seed) / path.stem)
        for data_seed in data_seeds
        for seed in seeds
        for path in paths
    ]


def folder_name(data_seed: int | None, seed: int) -> str:
    """``data1-seed0``, or ``seed0`` where the data have no seed."""
    return f"seed{seed}" if data_seed is None else f"data{data_seed}-seed{seed}"


def options_of(run: Run, options: Sequence[str], warm_start: Path | None, root: str) -> list[str]:
    """The config options that make `run` of its config: those given, its seeds, folder, data and first weights."""
    own = ["SEED", str(run.seed), "OUTPUT_DIR", str(run.folder)]
    if run.data_seed is not None:
        own += [
            "DATASETS.SYNTHETIC.SEED",
            str(run.data_seed),
            "DATASETS.ROOT",
            f"{root}/data{run.data_seed}",
        ]
    elif root:
        own += ["DATASETS.ROOT", root]
    if warm_start is not None:
        own += ["MODEL.WEIGHTS", str(warm_start), "MODEL.LOSSES.CE_ONLY_EPOCHS", "0"]
    return [*options, *own]


def check_options(run: Run, options: Sequence[str]) -> None:
    """Refuse to mix: what a run's folder holds must have been trained with this config and these options.

    Raises:
        UserError: it was trained with others.
    """
    path = run.folder / OPTIONS
    if path.is_file() and json.loads(path.read_text(encoding="utf-8")) != _made_with(run, options):
        raise UserError(
            f"{run.folder} was made with another config or options: delete it or choose another --output"
        )


def _made_with(run: Run, options: Sequence[str]) -> dict:
    return {"options": list(options), "config": load_config(str(run.config), list(options)).dump()}


def plan_retests(
    runs: Sequence[Run], retests: Sequence[Retest]
) -> list[tuple[Run, tuple[str, ...]]]:
    """The tests of trained runs, each with its config options; they are kept in the runs' own folders.

    Raises:
        UserError: a test is of a config that is not among the runs', two have one name, or options are not in pairs.
    """
    names = {run.config.stem for run in runs}
    planned: dict[tuple[str, str], Retest] = {}
    for retest in retests:
        if retest.config not in names:
            raise UserError(
                f"--retest {retest.config}: no such config is trained; there are {', '.join(sorted(names))}"
            )
        if (retest.config, retest.name) in planned or not re.fullmatch(r"[\w-]+", retest.name):
            raise UserError(
                f"--retest {retest.config} {retest.name}: each test needs a name of its own, in plain letters"
            )
        if not retest.options or len(retest.options) % 2:
            raise UserError(
                f"--retest {retest.config} {retest.name}: what is to be changed? Give pairs of KEY VALUE"
            )
        planned[retest.config, retest.name] = retest
    return [
        (
            replace(run, folder=run.folder / f"retest-{retest.name}", retest=retest.name),
            retest.options,
        )
        for run in runs
        for retest in planned.values()
        if run.config.stem == retest.config
    ]


def retest_options(run: Run, options: Sequence[str]) -> list[str]:
    """The options of a test: those of the training run, its last weights, then what the test changes."""
    trained = run.folder.parent
    own = ["OUTPUT_DIR", str(run.folder), "MODEL.WEIGHTS", str(trained / "model_final.pth")]
    return [*json.loads((trained / OPTIONS).read_text(encoding="utf-8"))["options"], *own, *options]


def execute(run: Run, options: Sequence[str]) -> None:
    """Train one run, going on where an earlier try stopped, or test it again; leaves ``result.json``.

    It has a process of its own, so that nothing of one run reaches another.

    Raises:
        UserError: the process failed; its log is in the run's folder.
    """
    run.folder.mkdir(parents=True, exist_ok=True)
    (run.folder / OPTIONS).write_text(json.dumps(_made_with(run, options)), encoding="utf-8")
    code = (
        "import json, sys\n"
        "from fastreid_star.engine.defaults import argument_parser, run_tool\n"
        "from fastreid_star.engine.trainer import train_or_evaluate\n"
        "def main():\n"
        "    results = train_or_evaluate(argument_parser('run').parse_args(sys.argv[2:]))\n"
        "    json.dump(results, open(sys.argv[1], 'w'))\n"
        "run_tool(main)\n"
    )
    written = run.folder / "results.partial.json"
    mode = "--resume" if run.retest is None else "--eval-only"
    arguments = [str(written), "--config-file", str(run.config), mode, *options]
    with open(run.folder / "console.txt", "a", encoding="utf-8") as console:
        status = subprocess.call(
            [sys.executable, "-c", code, *arguments], stdout=console, stderr=console
        )
    if status:
        last = (run.folder / "console.txt").read_text(encoding="utf-8").strip().splitlines()[-1:]
        raise UserError(f"{run.folder} failed ({' '.join(last)}): see console.txt there")
    content = written.read_bytes()
    if not set(COLUMNS) <= json.loads(content).keys():
        raise UserError(
            f"{run.folder} was not evaluated: an ablation needs one test set of clips and TEST.EVAL_PERIOD > 0"
        )
    write_whole(str(run.folder / RESULT), lambda file: file.write(content))
    written.unlink()


def execute_all(
    tasks: Sequence[tuple[Run, Sequence[str]]], jobs: int, report: Callable[[str], None]
) -> None:
    """Execute what has no result yet, `jobs` at a time.

    Args:
        tasks: runs and their options.
        jobs: how many processes at a time. Each takes the threads that OMP_NUM_THREADS gives it.
        report: gets a line as each starts and ends.

    Raises:
        UserError: a run was made with other options, or failed; no other is started after that.
    """
    for run, options in tasks:
        check_options(run, options)
    left = [task for task in tasks if task[0].result is None]
    failed = threading.Event()

    def one(number: int, run: Run, options: Sequence[str]) -> None:
        if failed.is_set():
            return
        report(f"run {number} of {len(left)}: {run.folder} ...")
        try:
            execute(run, options)
        except BaseException:
            failed.set()
            raise
        assert run.result is not None
        report(f"  {run.name}, {run.folder}: mean mAP {run.result['mean/mAP']:.2f}")

    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(one, number, *task) for number, task in enumerate(left, start=1)]
        try:
            for future in futures:
                future.result()
        except (
            BaseException
        ):  # an interruption too: leaving the pool waits for what has started, and for no more
            failed.set()
            raise


def summarize(runs: Sequence[Run]) -> dict[str, dict[str, list[float]]]:
    """The finished runs' numbers: row's name -> column -> values in the order of the runs."""
    table: dict[str, dict[str, list[float]]] = {}
    for run in runs:
        result = run.result
        if result is not None:
            row = table.setdefault(run.name, {column: [] for column in COLUMNS})
            for column in COLUMNS:
                row[column].append(result[column])
    return table


def spread(values: Sequence[float]) -> str:
    """``mean ± standard deviation`` of two and more values, the value of one."""
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{statistics.fmean(values):.2f} ± {statistics.stdev(values):.2f}"


def to_markdown(table: Mapping[str, Mapping[str, Sequence[float]]], *, with_paper: bool) -> str:
    """The paper's table: a row a config, mean and spread over its runs, the paper's own numbers where there are any.

    Args:
        table: of :func:`summarize`.
        with_paper: the data is HITSZ-VCM: show Table 3 beside it.
    """
    rows = []
    for name, row in table.items():
        rows.append([name, len(row[COLUMNS[0]]), *(spread(row[column]) for column in COLUMNS)])
        if with_paper and name in PAPER:
            i2v, v2i = PAPER[name][1], PAPER[name][3]
            rows.append(
                [
                    "(paper)",
                    "",
                    *(f"{value:.2f}" for value in PAPER[name]),
                    f"{(i2v + v2i) / 2:.2f}",
                ]
            )
    return tabulate(
        rows, headers=["config", "runs", *COLUMNS], tablefmt="pipe", disable_numparse=True
    )


def pairs_to_markdown(runs: Sequence[Run], against: str) -> str:
    """Mean mAP minus that of `against`, seed by seed: one row a config, one column a seed, then mean and least.

    A difference of two runs that share data, seed and warm start has less noise than the difference of their means.

    Args:
        runs: those without a result are left out.
        against: the name of a row of the table.

    Raises:
        UserError: no finished run has this name.
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
        gains = {
            seed: mean[seed][name] - mean[seed][against] for seed in seeds if name in mean[seed]
        }
        if gains:
            cells = [f"{gains[seed]:+.2f}" if seed in gains else "" for seed in seeds]
            rows.append(
                [
                    name,
                    *cells,
                    f"{statistics.fmean(gains.values()):+.2f}",
                    f"{min(gains.values()):+.2f}",
                ]
            )
    headers = ["mean mAP against it", *(folder_name(*seed) for seed in seeds), "mean", "least"]
    return tabulate(rows, headers=headers, tablefmt="pipe", disable_numparse=True)


def to_csv(runs: Sequence[Run]) -> str:
    """One line a finished run, every number of its result."""
    finished = [(run, run.result) for run in runs if run.result is not None]
    keys = sorted({key for _, result in finished for key in result})
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(["config", "data_seed", "seed", *keys])
    for run, result in finished:
        data_seed = "" if run.data_seed is None else run.data_seed
        writer.writerow([run.name, data_seed, run.seed, *(result.get(key, "") for key in keys)])
    return buffer.getvalue()


def is_hitsz_vcm(config: str | Path) -> bool:
    """Whether this config tests on HITSZ-VCM, so that the paper's numbers belong beside its own."""
    return tuple(load_config(str(config)).DATASETS.TESTS) == ("HITSZVCM",)
