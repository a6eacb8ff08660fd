"""Ablations: train configs over several seeds, and write the table of their results."""

from __future__ import annotations

import concurrent.futures
import json
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import yaml
from fastreid.config import get_cfg

from fastreid_star.ablation.tables import (
    COLUMNS,
    OPTIONS,
    RESULT,
    Run,
    note_of_frames,
    pairs_to_markdown,
    seed_name,
    summarize,
    to_csv,
    to_markdown,
)
from fastreid_star.engine.checks.machine import why_unwritable
from fastreid_star.engine.config_changes import flatten
from fastreid_star.engine.configs import config_path, load_config
from fastreid_star.errors import UserError
from fastreid_star.files import insert, locked, write_output, write_whole

# The program of a run's process: the training command, which also writes its results.
_PROGRAM = """
import json, sys
from fastreid_star.engine.defaults import argument_parser, run_tool
from fastreid_star.engine.trainer import train_or_evaluate
def main():
    results = train_or_evaluate(argument_parser("run").parse_args(sys.argv[2:]))
    json.dump(results, open(sys.argv[1], "w"))
run_tool(main)
"""


def ablate(
    configs: Sequence[str],
    output: str,
    *,
    seeds: Sequence[int] = (0,),
    data_seeds: Sequence[int | None] = (None,),
    warm_start: str = "",
    root: str = "",
    jobs: int = 1,
    variants: Sequence[Sequence[str]] = (),
    retests: Sequence[Sequence[str]] = (),
    against: str = "",
    opts: Sequence[str] = (),
    page: str = "",
    table_only: bool = False,
    also: Sequence[str] = (),
    report: Callable[[str], object] = print,
) -> str:
    """Train every config with every seed, and write ``table.md`` and ``runs.csv``.

    Finished runs are kept and interrupted ones are resumed: call it again after an interruption.
    A second call in the same folder is refused while the first one trains.

    Args:
        configs: YAML files.
        output: the folder of all runs.
        seeds, data_seeds: of the models, and of the synthetic data.
        warm_start: a config; one model of it is trained for each seed, from which all runs of the
            seed start.
        root: DATASETS.ROOT.
        jobs: runs at a time. Each uses the threads that OMP_NUM_THREADS gives it.
        variants: single factors, ``[CONFIG, NAME, KEY, VALUE, ...]`` each: train a config once
            more, with changed keys. Only the first seed of the first data is trained.
        retests: controls, ``[CONFIG, NAME, KEY, VALUE, ...]`` each: test the models of a config
            again with changed keys.
        against: the name of a row; a second table shows the difference to it, seed by seed.
        opts: config keys and values to change in all runs.
        page: a Markdown file, in which the table is put between the marks ``ablation``.
        table_only: train nothing.
        also: names of published results to show beside, on HITSZ-VCM.
        report: is called with a line when a run starts and ends.

    Returns:
        the table, as Markdown.

    Raises:
        UserError: an argument is wrong, a run's folder was made with other options, or a run
            failed.
    """
    runs = plan(configs, seeds, data_seeds, output)
    tests = plan_retests(runs, retests)
    varied = plan_variants(runs, variants)
    names = [run.name for run, _ in varied]
    if twice := [run.name for run, _ in tests if run.name in names]:
        raise UserError(f"--vary and --retest have the same name: {twice[0]}")
    if page:
        insert(page, "ablation", "")  # before hours of training
    if problem := why_unwritable(output, "--output"):
        raise UserError(problem)
    if not table_only:
        if not root and list(data_seeds) != [None]:
            root = str(Path(output) / "datasets")
        name = "warm-start"
        starts = [run.folder.parent / name if warm_start else None for run in runs]
        with locked(output):
            if warm_start:
                config = Path(config_path(warm_start))
                first = [replace(r, config=config, folder=r.folder.parent / name) for r in runs]
                warm = [(run, options_of(run, opts, None, root)) for run in dict.fromkeys(first)]
                execute_all(warm, jobs, report)
            trained = [
                (run, options_of(run, opts, start, root))
                for run, start in zip(runs, starts, strict=True)
            ]
            trained += [
                (run, [*options_of(run, opts, starts[0], root), *changed])
                for run, changed in varied
            ]
            execute_all(trained, jobs, report)
            again = [(run, _retest_options(run, changed)) for run, changed in tests]
            execute_all(again, jobs, report)
    everything = [*runs, *(run for run, _ in [*varied, *tests])]
    if not any(run.result for run in everything):
        kept = f", and {page} keeps its table" if page else ""
        raise UserError(f"no run in {output} has finished: there is no table yet{kept}")
    on_hitsz_vcm = tuple(load_config(configs[0]).DATASETS.TESTS) == ("HITSZVCM",)
    table = to_markdown(summarize(everything), with_paper=on_hitsz_vcm, also=also)
    table += note_of_frames(everything)
    if against:
        table += f"\n\n{pairs_to_markdown(everything, against)}"
    write_whole(Path(output) / "table.md", lambda file: file.write(f"{table}\n".encode()))
    write_whole(Path(output) / "runs.csv", lambda file: file.write(to_csv(everything).encode()))
    if page:
        content = insert(page, "ablation", table)
        write_output(page, lambda file: file.write(content.encode()))
    return table


def plan(
    configs: Sequence[str],
    seeds: Sequence[int],
    data_seeds: Sequence[int | None],
    output: str | Path,
) -> list[Run]:
    """All training runs, seed by seed: an interrupted ablation has complete seeds to compare.

    Raises:
        UserError: a config does not exist, two have the same name, or a seed is given twice.
    """
    paths = [Path(config_path(config)) for config in configs]
    for what, values in (
        ("seeds", seeds),
        ("data seeds", data_seeds),
        ("names of configs", [path.stem for path in paths]),
    ):
        if len(set(values)) < len(values):
            raise UserError(f"{what} {list(values)}: all must differ, each has its own folder")
    return [
        Run(path, seed, data_seed, Path(output) / seed_name(data_seed, seed) / path.stem)
        for data_seed in data_seeds
        for seed in seeds
        for path in paths
    ]


def plan_retests(
    runs: Sequence[Run], retests: Sequence[Sequence[str]]
) -> list[tuple[Run, tuple[str, ...]]]:
    """The controls of all runs, each with its changed options; stored in the folders of the runs.

    Raises:
        UserError: a control is of another config, its name is used, or its options are not pairs.
    """
    planned = _read_changes("--retest", runs, retests)
    return [
        (replace(run, folder=run.folder / f"retest-{name}", retest=name), changed)
        for run in runs
        for (config, name), changed in planned.items()
        if run.config.stem == config
    ]


def plan_variants(
    runs: Sequence[Run], variants: Sequence[Sequence[str]]
) -> list[tuple[Run, tuple[str, ...]]]:
    """The variants of the first run of each config, with their changed options.

    Raises:
        UserError: as :func:`plan_retests`.
    """
    planned = _read_changes("--vary", runs, variants)
    first = {run.config.stem: run for run in reversed(runs)}
    return [
        (
            replace(
                first[config],
                folder=first[config].folder.with_name(f"{config}-vary-{name}"),
                variant=name,
            ),
            changed,
        )
        for (config, name), changed in planned.items()
    ]


def _read_changes(
    flag: str, runs: Sequence[Run], given: Sequence[Sequence[str]]
) -> dict[tuple[str, str], tuple[str, ...]]:
    """``[CONFIG, NAME, KEY, VALUE, ...]`` each to (config, name) -> the keys and values."""
    names = {run.config.stem for run in runs}
    planned: dict[tuple[str, str], tuple[str, ...]] = {}
    for words in given:
        config, name, *changed = *words, "", ""
        changed = changed[:-2]
        good = config in names and (config, name) not in planned and re.fullmatch(r"[\w-]+", name)
        if not good or not changed or len(changed) % 2:
            raise UserError(
                f"{flag} {' '.join(words)}: give CONFIG NAME KEY VALUE, with one of the configs "
                f"{sorted(names)} and a new name of letters and digits for each"
            )
        planned[config, name] = tuple(changed)
    return planned


def options_of(run: Run, opts: Sequence[str], warm_start: Path | None, root: str) -> list[str]:
    """The config options of a run: the given ones, its seeds, folder, data and first weights."""
    own = ["SEED", str(run.seed), "OUTPUT_DIR", str(run.folder)]
    if run.data_seed is not None:
        own += ["DATASETS.SYNTHETIC.SEED", str(run.data_seed)]
        own += ["DATASETS.ROOT", f"{root}/data{run.data_seed}"]
    elif root:
        own += ["DATASETS.ROOT", root]
    if warm_start is not None:
        weights = str(warm_start / "model_final.pth")
        own += ["MODEL.WEIGHTS", weights, "MODEL.LOSSES.CE_ONLY_EPOCHS", "0"]
    return [*opts, *own]


def _retest_options(run: Run, changed: Sequence[str]) -> list[str]:
    """The options of a control: those of its training run, its weights, the changed ones."""
    trained = run.folder.parent
    own = ["OUTPUT_DIR", str(run.folder), "MODEL.WEIGHTS", str(trained / "model_final.pth")]
    return [*json.loads((trained / OPTIONS).read_text(encoding="utf-8"))["options"], *own, *changed]


def execute_all(
    tasks: Sequence[tuple[Run, Sequence[str]]], jobs: int, report: Callable[[str], object]
) -> None:
    """Execute the runs that have no result yet; start no other after an error or an interruption.

    Raises:
        UserError: a run's folder was made with other options, or a run failed.
    """
    for run, options in tasks:
        path = run.folder / OPTIONS
        if not path.is_file():
            continue
        made_with = json.loads(path.read_text(encoding="utf-8"))
        if changed := changed_keys(made_with["config"], _made_with(run, options)["config"]):
            raise UserError(
                f"{run.folder} was made with another config or options "
                f"({', '.join(changed[:3])}): delete it, or choose another --output"
            )
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
        except BaseException:  # an interruption too: the pool waits only for runs that have started
            failed.set()
            raise


def execute(run: Run, options: Sequence[str]) -> None:
    """Train a run in its own process, resuming an earlier try, or test it again.

    Raises:
        UserError: the process failed; its output is in ``console.txt`` of the folder.
    """
    run.folder.mkdir(parents=True, exist_ok=True)
    (run.folder / OPTIONS).write_text(json.dumps(_made_with(run, options)), encoding="utf-8")
    partial, console = run.folder / "results.partial.json", run.folder / "console.txt"
    mode = "--resume" if run.retest is None else "--eval-only"
    arguments = [str(partial), "--config-file", str(run.config), mode, *options]
    with open(console, "a", encoding="utf-8") as file:
        command = [sys.executable, "-c", _PROGRAM, *arguments]
        status = subprocess.call(command, stdout=file, stderr=file)
    if status:
        last = console.read_text(encoding="utf-8").strip().splitlines()[-1:]
        raise UserError(f"{run.folder} failed ({' '.join(last)}): see {console.name} in it")
    content = partial.read_bytes()
    if not set(COLUMNS) <= json.loads(content).keys():
        raise UserError(
            f"{run.folder} was not evaluated: an ablation needs one test set of clips and "
            "TEST.EVAL_PERIOD > 0"
        )
    write_whole(run.folder / RESULT, lambda file: file.write(content))
    partial.unlink()


def changed_keys(saved: str, now: str) -> list[str]:
    """The keys in which two configs differ, as far as both versions of the program know them.

    A key that only the present version knows counts if it does not have its default.

    Args:
        saved: as YAML, perhaps of an earlier version.
        now: as YAML.
    """
    before = {**flatten(get_cfg()), **flatten(yaml.safe_load(saved))}
    after = flatten(yaml.safe_load(now))
    return sorted(key for key, value in after.items() if before.get(key) != value)


def _made_with(run: Run, options: Sequence[str]) -> dict:
    return {"options": list(options), "config": load_config(str(run.config), list(options)).dump()}
