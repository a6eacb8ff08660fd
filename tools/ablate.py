#!/usr/bin/env python
"""Train a list of configs over several seeds, and print the paper's table of them.

    python tools/ablate.py --configs configs/Synthetic/SAD_small.yml configs/Synthetic/STAR_small*.yml \
        --seeds 0 1 2 --data-seeds 0 1 --output logs/ablation

Finished runs are kept and interrupted ones go on: call it again after any interruption. `--warm-start` trains one
network a seed, from which all configs of that seed start. Writes table.md and runs.csv beside the runs' folders; with
`--table-only` it trains nothing.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from fastreid_star.engine import ablation
from fastreid_star.engine.setup import run_tool
from fastreid_star.files import write_whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", nargs="+", required=True, metavar="FILE")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="N", help="seeds of the models")
    parser.add_argument("--data-seeds", nargs="+", type=int, default=[None], metavar="N", help="of synthetic data")
    parser.add_argument("--warm-start", metavar="FILE", help="a config that all start from, trained once a seed")
    parser.add_argument("--root", default="", metavar="DIR", help="the datasets' folder, DATASETS.ROOT")
    parser.add_argument("--output", required=True, metavar="DIR")
    parser.add_argument("--table-only", action="store_true", help="train nothing, only write the table")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY VALUE", help="config keys and values to change")
    args = parser.parse_args()

    runs = ablation.plan(args.configs, args.seeds, args.data_seeds, args.output)
    root = args.root or (str(Path(args.output) / "datasets") if args.data_seeds != [None] else "")
    for number, run in enumerate(runs if not args.table_only else (), start=1):
        folder = run.folder.parent / "warm-start"
        options = ablation.options_of(run, args.set, folder / "model_final.pth" if args.warm_start else None, root)
        ablation.check_options(run, options)
        if run.result is not None:
            continue
        if args.warm_start:
            warm = ablation.Run(Path(args.warm_start), run.seed, run.data_seed, folder)
            warm_options = ablation.options_of(warm, args.set, None, root)
            ablation.check_options(warm, warm_options)
            if warm.result is None:
                print(f"warm start of {run.folder.parent.name} ...", flush=True)
                ablation.train(warm, warm_options)
        print(f"run {number} of {len(runs)}: {run.folder} ...", flush=True)
        ablation.train(run, options)
        print(f"  mean mAP {run.result['mean/mAP']:.2f}", flush=True)

    Path(args.output).mkdir(parents=True, exist_ok=True)
    table = ablation.to_markdown(ablation.summarise(runs), with_paper=ablation.is_hitsz_vcm(args.configs[0]))
    write_whole(str(Path(args.output) / "table.md"), lambda file: file.write(f"{table}\n".encode()))
    write_whole(str(Path(args.output) / "runs.csv"), lambda file: file.write(ablation.to_csv(runs).encode()))
    print(f"\n{table}\n\ntable and single runs: {Path(args.output).resolve()}")


if __name__ == "__main__":
    run_tool(main)
