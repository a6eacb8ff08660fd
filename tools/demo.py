#!/usr/bin/env python
"""The main job on data the project makes: draw people, evaluate an untrained network, train it, evaluate again.

Ends with the table of both directions, untrained beside trained. Everything is written below demo/.
"""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path

from fastreid_star.engine.setup import argument_parser, run_tool, setup
from fastreid_star.engine.trainer import Trainer
from fastreid_star.evaluation.cross_modal import format_table

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", default="demo", metavar="DIR", help="where data and results go")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config keys and values to change")
    args = parser.parse_args()
    output = Path(args.output)
    run = output / "SAD"
    shutil.rmtree(run, ignore_errors=True)

    start = time.monotonic()
    options = ["DATASETS.ROOT", str(output / "datasets"), "OUTPUT_DIR", str(run), *args.opts]
    arguments = ["--config-file", str(ROOT / "configs" / "Synthetic" / "SAD_demo.yml"), *options]
    cfg = setup(argument_parser("demo").parse_args(arguments))
    trainer = Trainer(cfg)
    untrained = trainer.test(trainer.cfg, trainer.model)
    trained = trainer.train()

    print(f"\n{format_table({'untrained': untrained, 'trained': trained})}\n")
    gain = trained["mean/mAP"] / untrained["mean/mAP"]
    print(f"mean mAP {untrained['mean/mAP']:.2f} -> {trained['mean/mAP']:.2f} (x {gain:.1f})", end="")
    print(f" in {time.monotonic() - start:.0f} s")
    print(f"weights, log, curves and per-query results: {run.resolve()}")
    print(f"see them: tensorboard --logdir {run}")


if __name__ == "__main__":
    run_tool(main)
