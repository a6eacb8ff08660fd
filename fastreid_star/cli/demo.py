"""demo: train the baseline and STAR on synthetic data and compare them."""

from __future__ import annotations

import argparse
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
        Demo(Path(args.output), args.opts).run()
    except (KeyboardInterrupt, Interrupted) as error:
        print("interrupted: the same command continues from here", file=sys.stderr)
        return 128 + error.number if isinstance(error, Interrupted) else 130
    return 0


class Demo:
    """The demo in one folder.

    Args:
        output: gets ``datasets/``, ``runs/`` and ``report.html``.
        opts: ``[KEY, VALUE, ...]`` that change the configs of all runs.
    """

    def __init__(self, output: Path, opts: list[str]):
        self.output = output
        self.runs = output / "runs"
        self.opts = opts
        self.start = time.monotonic()
        self.resumed = self.runs.exists()

    def run(self) -> None:
        """Run all phases. Those that an earlier call has finished take a moment.

        Raises:
            UserError: a package is missing, or the folder holds runs of other options.
        """
        from fastreid_star.data.build import build_dataset
        from fastreid_star.evaluation.cross_modal import format_table
        from fastreid_star.report.build import write_report

        warm_up = self.config(
            "SAD",
            "warm-up",
            {
                "MODEL.LOSSES.CE_ONLY_EPOCHS": WARM_UP_EPOCHS,
                "SOLVER.MAX_EPOCH": WARM_UP_EPOCHS,
                "SOLVER.STEPS": [],
                "TEST.EVAL_PERIOD": 0,
            },
        )
        last = {
            "MODEL.WEIGHTS": self.runs / "warm-up" / "model_final.pth",
            "MODEL.LOSSES.CE_ONLY_EPOCHS": 0,
            "SOLVER.MAX_EPOCH": EPOCHS,
            "SOLVER.STEPS": [EPOCHS - 4],
            "TEST.EVAL_PERIOD": EPOCHS,
        }
        configs = {name: self.config(name, name, last) for name in ("SAD", "STAR")}
        self.claim("\n".join(cfg.dump() for cfg in (warm_up, *configs.values())))
        self.open_log()

        self.say(0)
        build_dataset(warm_up, "SyntheticVCM")
        self.say(1)
        results = {"untrained": self.evaluate_untrained(warm_up)}
        self.train(warm_up)
        for number, (name, cfg) in enumerate(configs.items(), start=2):
            self.say(number)
            results[name] = self.train(cfg)
        self.say(4)
        report = self.output / "report.html"
        write_report(self.runs / "STAR", self.runs / "SAD", output=report)

        print(f"\n{format_table(results)}\n")
        for name in configs:
            gain = results[name]["mean/mAP"] / results["untrained"]["mean/mAP"]
            mean = results[name]["mean/mAP"]
            print(f"{name}: mean mAP {mean:.2f}, {gain:.1f} times the untrained network's")
        print(f"done in {time.monotonic() - self.start:.0f} s")
        print(f"weights, log and per-query results: {self.runs.resolve()}")
        print(f"curves: tensorboard --logdir {self.runs}")
        print(f"report: {report.resolve()} ({report.stat().st_size / 1e6:.1f} MB)")

    def config(self, config: str, name: str, settings: dict[str, object]) -> CfgNode:
        """The config of one run."""
        from fastreid_star.engine.defaults import load_config

        folders = {"DATASETS.ROOT": self.output / "datasets", "OUTPUT_DIR": self.runs / name}
        pairs = [str(part) for pair in {**folders, **settings}.items() for part in pair]
        return load_config(
            str(configs_folder() / f"Synthetic/{config}_demo.yml"), pairs + self.opts
        )

    def claim(self, configs: str) -> None:
        """Note in the folder how its runs are made; refuse runs that were made otherwise."""
        from fastreid_star.errors import UserError
        from fastreid_star.files import write_whole

        note = self.runs / "demo.yaml"
        own = [self.runs / name for name in ("warm-up", "SAD", "STAR")]
        if note.is_file() and note.read_text(encoding="utf-8") != configs:
            raise UserError(
                f"{self.runs} was made with other options: delete it, or choose another --output"
            )
        foreign = [folder for folder in own if folder.exists()]
        if foreign and not note.is_file():
            raise UserError(f"{foreign[0]} is not from this demo: choose another --output")
        for folder in own:
            folder.mkdir(parents=True, exist_ok=True)
        write_whole(note, lambda file: file.write(configs.encode()))

    def open_log(self) -> None:
        """One log for all runs; the terminal gets the phases and a progress bar only."""
        from fastreid_star.engine.defaults import LOGGERS, default_setup

        cfg = self.config("SAD", ".", {})
        default_setup(cfg, argparse.Namespace(eval_only=False))
        for logger in map(logging.getLogger, LOGGERS):
            for handler in logger.handlers:
                if getattr(handler, "stream", None) is sys.stdout:
                    handler.setLevel(logging.ERROR)

    def train(self, cfg: CfgNode) -> dict[str, float]:
        """Train one run to its end, or resume it; the results of its last evaluation."""
        from fastreid_star.engine.trainer import Trainer

        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=True)
        return trainer.train()

    def evaluate_untrained(self, cfg: CfgNode) -> dict[str, float]:
        """The results of the network that the warm-up starts from."""
        from fastreid_star.engine.trainer import Trainer

        trainer = Trainer(cfg)
        return trainer.test(trainer.cfg, trainer.model)

    def say(self, number: int) -> None:
        """Print the phase that starts, and how long the rest takes at the speed so far."""
        shares = list(PHASES.values())
        elapsed = time.monotonic() - self.start
        left = ""
        if number and not self.resumed:
            left = f" (about {elapsed * sum(shares[number:]) / sum(shares[:number]):.0f} s left)"
        print(f"[{number + 1}/{len(PHASES)}] {list(PHASES)[number]}{left}", flush=True)
