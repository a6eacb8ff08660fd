#!/usr/bin/env python
"""Train a list of configs over several seeds, and print the paper's table of them.

    python tools/ablate.py --configs configs/Synthetic/SAD_small.yml configs/Synthetic/STAR_small*.yml \
        --seeds 0 1 2 --data-seeds 0 1 --output logs/ablation

Finished runs are kept and interrupted ones go on: call it again after any interruption. `--warm-start` trains one
network a seed, from which all configs of that seed start. `--retest` tests what was trained under other conditions.
Writes table.md and runs.csv beside the runs' folders; with `--table-only` it trains nothing.
"""

from __future__ import annotations

import argparse
import functools
from pathlib import Path

from fastreid_star.engine import ablation
from fastreid_star.engine.defaults import run_tool
from fastreid_star.errors import UserError
from fastreid_star.files import write_whole


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--configs", nargs="+", required=True, metavar="FILE")
    parser.add_argument(
        "--seeds", nargs="+", type=int, default=[0], metavar="N", help="seeds of the models"
    )
    parser.add_argument(
        "--data-seeds", nargs="+", type=int, default=[None], metavar="N", help="of synthetic data"
    )
    parser.add_argument(
        "--warm-start", metavar="FILE", help="a config that all start from, trained once a seed"
    )
    parser.add_argument(
        "--root", default="", metavar="DIR", help="the datasets' folder, DATASETS.ROOT"
    )
    parser.add_argument("--output", required=True, metavar="DIR")
    parser.add_argument(
        "--jobs",
        type=int,
        default=1,
        metavar="N",
        help="runs at a time; set OMP_NUM_THREADS to match",
    )
    help_text = "test the networks of CONFIG once more, as NAME, with keys changed; may be repeated"
    metavar = "CONFIG NAME KEY VALUE"
    parser.add_argument(
        "--retest", nargs="+", action="append", default=[], metavar=metavar, help=help_text
    )
    parser.add_argument(
        "--against",
        metavar="CONFIG",
        help="also show each seed's difference to this one's mean mAP",
    )
    parser.add_argument(
        "--table-only", action="store_true", help="train nothing, only write the table"
    )
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY VALUE", help="config keys and values to change"
    )
    args = parser.parse_args()
    if args.jobs < 1:
        raise UserError(f"--jobs {args.jobs}: at least one run at a time")
    if any(len(retest) < 4 for retest in args.retest):
        raise UserError(
            "--retest takes CONFIG NAME KEY VALUE: a config's name, a name for the test, what it changes"
        )

    runs = ablation.plan(args.configs, args.seeds, args.data_seeds, args.output)
    asked = [
        ablation.Retest(config, name, tuple(options)) for config, name, *options in args.retest
    ]
    retests = ablation.plan_retests(runs, asked)
    if not args.table_only:
        root = args.root or (
            str(Path(args.output) / "datasets") if args.data_seeds != [None] else ""
        )
        execute = functools.partial(
            ablation.execute_all, jobs=args.jobs, report=functools.partial(print, flush=True)
        )
        starts = {}
        if args.warm_start:
            for run in runs:
                folder = run.folder.parent / "warm-start"
                starts[folder] = ablation.Run(
                    Path(args.warm_start), run.seed, run.data_seed, folder
                )
            execute(
                [
                    (warm, ablation.options_of(warm, args.set, None, root))
                    for warm in starts.values()
                ]
            )
        first = [
            run.folder.parent / "warm-start" / "model_final.pth" if starts else None for run in runs
        ]
        execute(
            [
                (run, ablation.options_of(run, args.set, start, root))
                for run, start in zip(runs, first, strict=True)
            ]
        )
        execute([(run, ablation.retest_options(run, options)) for run, options in retests])

    everything = [*runs, *(run for run, _ in retests)]
    Path(args.output).mkdir(parents=True, exist_ok=True)
    table = ablation.to_markdown(
        ablation.summarize(everything), with_paper=ablation.is_hitsz_vcm(args.configs[0])
    )
    if args.against:
        table += f"\n\n{ablation.pairs_to_markdown(everything, args.against)}"
    write_whole(str(Path(args.output) / "table.md"), lambda file: file.write(f"{table}\n".encode()))
    write_whole(
        str(Path(args.output) / "runs.csv"),
        lambda file: file.write(ablation.to_csv(everything).encode()),
    )
    print(f"\n{table}\n\ntable and single runs: {Path(args.output).resolve()}")


if __name__ == "__main__":
    run_tool(main)
