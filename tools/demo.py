#!/usr/bin/env python
"""The main job on data the project makes: draw people, train the baseline and STAR on them, evaluate both.

Ends with the table of both directions: untrained, SAD and STAR, both from one warm start, and with a page that shows
what STAR found, where it looked, and what it won over SAD. Everything is written below demo/.
"""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path

from fastreid_star.engine.defaults import argument_parser, load_config, run_tool, setup
from fastreid_star.engine.trainer import Trainer
from fastreid_star.errors import UserError
from fastreid_star.evaluation.cross_modal import format_table
from fastreid_star.report.build import write_report

CONFIGS = Path(__file__).resolve().parent.parent / "configs" / "Synthetic"
WARM_UP_EPOCHS, EPOCHS = 8, 12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", default="demo", metavar="DIR", help="where data and results go")
    parser.add_argument(
        "opts",
        nargs=argparse.REMAINDER,
        metavar="KEY VALUE",
        help="config keys and values to change",
    )
    args = parser.parse_args()
    output = Path(args.output)
    if (output / "runs").exists():
        if not (output / "runs" / "config.yaml").is_file():
            raise UserError(f"{output / 'runs'} is not an earlier demo's: choose another --output")
        shutil.rmtree(output / "runs")
    start = time.monotonic()

    def options(name: str, **settings) -> list[str]:
        pairs = {
            "DATASETS.ROOT": output / "datasets",
            "OUTPUT_DIR": output / "runs" / name,
            **settings,
        }
        return [str(part) for pair in pairs.items() for part in pair] + args.opts

    def trainer(config: str, name: str, **settings) -> Trainer:
        (output / "runs" / name).mkdir(parents=True)
        return Trainer(load_config(str(CONFIGS / config), options(name, **settings)))

    # one log for all runs
    setup(
        argument_parser("demo").parse_args(
            ["--config-file", str(CONFIGS / "SAD_demo.yml"), *options(".")]
        )
    )

    # cross entropy alone, from nothing; both networks go on from there
    warm_up = {
        "MODEL.LOSSES.CE_ONLY_EPOCHS": WARM_UP_EPOCHS,
        "SOLVER.MAX_EPOCH": WARM_UP_EPOCHS,
        "SOLVER.STEPS": [],
        "TEST.EVAL_PERIOD": 0,
    }
    first = trainer("SAD_demo.yml", "warm-up", **warm_up)
    results = {"untrained": first.test(first.cfg, first.model)}
    first.train()
    go_on = {
        "MODEL.WEIGHTS": output / "runs" / "warm-up" / "model_final.pth",
        "MODEL.LOSSES.CE_ONLY_EPOCHS": 0,
        "SOLVER.MAX_EPOCH": EPOCHS,
        "SOLVER.STEPS": [EPOCHS - 4],
        "TEST.EVAL_PERIOD": EPOCHS,
    }
    for name in ("SAD", "STAR"):
        run = trainer(f"{name}_demo.yml", name, **go_on)
        run.resume_or_load(resume=False)
        results[name] = run.train()

    runs = output / "runs"
    page = write_report(runs / "STAR", runs / "SAD", output=output / "report.html")
    size = page.stat().st_size

    print(f"\n{format_table(results)}\n")
    for name in ("SAD", "STAR"):
        gain = results[name]["mean/mAP"] / results["untrained"]["mean/mAP"]
        print(
            f"{name}: mean mAP {results[name]['mean/mAP']:.2f}, {gain:.1f} times the untrained network's"
        )
    print(
        f"done in {time.monotonic() - start:.0f} s; weights, log, curves and per-query results: {output.resolve()}"
    )
    print(f"see the curves: tensorboard --logdir {output / 'runs'}")
    print(f"see all of it: {page.resolve()} ({size / 1e6:.1f} MB)")


if __name__ == "__main__":
    run_tool(main)
