"""demo: train the baseline and STAR on synthetic data and compare them."""

from __future__ import annotations

import argparse
import functools
import logging
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from fastreid_star.cli.arguments import Action, configs_folder

if TYPE_CHECKING:
    from fastreid.config import CfgNode

WARM_UP_EPOCHS, EPOCHS = 8, 12
# share of the whole time that each phase takes, measured on two cores
PHASES = {
    "drawing synthetic people": 0.15,
    "warm-up: cross entropies only, shared by both networks": 0.15,
    "training the baseline (SAD)": 0.25,
    "training STAR": 0.35,
    "writing the report": 0.1,
}


def add_demo(parser: argparse.ArgumentParser) -> Action:
    """Draw synthetic people, train the baseline (SAD) and STAR on them, and evaluate both.

      fastreid-star demo
      fastreid-star demo --output /tmp/demo DATALOADER.NUM_WORKERS 0

    It ends with a table of both directions (untrained, SAD, STAR) and a report. Ctrl-C leaves a
    checkpoint, and the same command resumes. Everything is written to the folder of --output.
    """
    parser.add_argument(
        "--output", default="demo", metavar="DIR", help="folder of the data and results"
    )
    return _demo


def _demo(args: argparse.Namespace) -> int:
    from fastreid_star.engine.interruption import Interrupted

    try:
        run_demo(Path(args.output), args.opts)
    except (KeyboardInterrupt, Interrupted) as error:
        print("interrupted: the same command continues from here", file=sys.stderr)
        return 128 + error.number if isinstance(error, Interrupted) else 130
    return 0


def run_demo(output: Path, opts: list[str]) -> None:
    """Run all phases. Those that an earlier call has finished take a moment.

    Args:
        output: gets ``datasets/``, ``runs/`` and ``report.html``.
        opts: ``[KEY, VALUE, ...]`` that change the configs of all runs.

    Raises:
        UserError: a package is missing, or the folder holds runs of other options.
    """
    from fastreid_star.data.build import build_dataset
    from fastreid_star.data.datasets.synthetic import CAVEAT
    from fastreid_star.engine.trainer import Trainer
    from fastreid_star.evaluation.cross_modal import format_table
    from fastreid_star.report.build import write_report

    start, runs = time.monotonic(), output / "runs"
    # what an earlier call has finished takes no time, so nothing can be said about the rest
    say = announce if runs.exists() else functools.partial(announce, start=start)
    warm_up, *configs = demo_configs(output, opts)
    claim(runs, [warm_up, *configs])
    open_log(output, opts)

    say(0)
    build_dataset(warm_up, "SyntheticVCM")
    say(1)
    trainer = Trainer(warm_up)
    results = {"untrained": trainer.test(trainer.cfg, trainer.model)}
    train(warm_up)
    for number, (name, cfg) in enumerate(zip(("SAD", "STAR"), configs, strict=True), start=2):
        say(number)
        results[name] = train(cfg)
    say(4)
    report = output / "report.html"
    write_report(runs / "STAR", runs / "SAD", output=report)

    print(f"\n{format_table(results)}\n")
    before = results["untrained"]["mean/mAP"]
    for name in ("SAD", "STAR"):
        mean = results[name]["mean/mAP"]
        print(f"{name}: mean mAP {mean:.2f}, {mean / before:.1f} times the untrained network's")
    print(CAVEAT)
    print(f"done in {time.monotonic() - start:.0f} s")
    print(f"weights, log and per-query results: {runs.resolve()}")
    print(f"curves: tensorboard --logdir {runs}")
    print(f"report: {report.resolve()} ({report.stat().st_size / 1e6:.1f} MB)")


def announce(number: int, start: float | None = None) -> None:
    """Print the phase that begins and, from its `start`, how long the rest of the demo takes."""
    shares, left = list(PHASES.values()), ""
    if number and start is not None:
        seconds = (time.monotonic() - start) * sum(shares[number:]) / sum(shares[:number])
        left = f" (about {seconds:.0f} s left)"
    print(f"[{number + 1}/{len(PHASES)}] {list(PHASES)[number]}{left}", flush=True)


def demo_configs(output: Path, opts: list[str]) -> list[CfgNode]:
    """The configs of the warm-up, of SAD and of STAR."""
    warm_up = {
        "MODEL.LOSSES.CE_ONLY_EPOCHS": WARM_UP_EPOCHS,
        "SOLVER.MAX_EPOCH": WARM_UP_EPOCHS,
        "SOLVER.STEPS": [],
        "TEST.EVAL_PERIOD": 0,
    }
    last = {
        "MODEL.WEIGHTS": output / "runs" / "warm-up" / "model_final.pth",
        "MODEL.LOSSES.CE_ONLY_EPOCHS": 0,
        "SOLVER.MAX_EPOCH": EPOCHS,
        "SOLVER.STEPS": [EPOCHS - 4],
        "TEST.EVAL_PERIOD": EPOCHS,
    }
    return [
        config(output, "SAD", "warm-up", warm_up, opts),
        *(config(output, name, name, last, opts) for name in ("SAD", "STAR")),
    ]


def config(
    output: Path, method: str, name: str, settings: dict[str, object], opts: list[str]
) -> CfgNode:
    """The config of the run `name`."""
    from fastreid_star.engine.defaults import load_config

    folders = {"DATASETS.ROOT": output / "datasets", "OUTPUT_DIR": output / "runs" / name}
    pairs = [str(part) for pair in {**folders, **settings}.items() for part in pair]
    return load_config(str(configs_folder() / f"Synthetic/{method}_demo.yml"), pairs + opts)


def claim(runs: Path, configs: list[CfgNode]) -> None:
    """Note in the folder how its runs are made; refuse runs that were made otherwise."""
    from fastreid_star.engine.checks.machine import why_unwritable
    from fastreid_star.errors import UserError
    from fastreid_star.files import write_whole

    note, text = runs / "demo.yaml", "\n".join(cfg.dump() for cfg in configs)
    folders = [Path(cfg.OUTPUT_DIR) for cfg in configs]
    if note.is_file():
        if note.read_text(encoding="utf-8") != text:
            raise UserError(
                f"{runs} was made with other options: delete it, or choose another --output"
            )
    elif foreign := [folder for folder in folders if folder.exists()]:
        raise UserError(f"{foreign[0]} is not from this demo: choose another --output")
    for folder in folders:
        if problem := why_unwritable(folder, "--output"):
            raise UserError(problem)
    write_whole(note, lambda file: file.write(text.encode()))


def open_log(output: Path, opts: list[str]) -> None:
    """One log for all runs; the terminal gets the phases and a progress bar only."""
    from fastreid_star.engine.defaults import LOGGERS, default_setup

    default_setup(config(output, "SAD", ".", {}, opts), argparse.Namespace(eval_only=False))
    for logger in map(logging.getLogger, LOGGERS):
        for handler in logger.handlers:
            if getattr(handler, "stream", None) is sys.stdout:
                handler.setLevel(logging.ERROR)


def train(cfg: CfgNode) -> dict[str, float]:
    """Train one run to its end, or resume it; the results of its last evaluation."""
    from fastreid_star.engine.trainer import Trainer

    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=True)
    return trainer.train()
