"""A program: train until the first step is done, and end.

    python -m fastreid_star.benchmark.first_step REPORT --config-file FILE [KEY VALUE ...] [--with-evaluation]

With ``--with-evaluation`` it then evaluates twice and writes into REPORT, as JSON, how long each took and how many
processes were started on the way, by whatever part of Python.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from fastreid.engine.train_loop import HookBase

from fastreid_star.engine.defaults import argument_parser, run_tool, setup
from fastreid_star.engine.trainer import Trainer


class _Enough(Exception):
    """The first step is done."""


class _OneStep(HookBase):
    def after_step(self):
        raise _Enough


def main() -> None:
    arguments = sys.argv[1:]
    evaluates = "--with-evaluation" in arguments
    report, *rest = (argument for argument in arguments if argument != "--with-evaluation")
    started = []
    sys.addaudithook(
        lambda event, args: started.append(args) if event == "subprocess.Popen" else None
    )
    cfg = setup(argument_parser("first step").parse_args(rest))
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.register_hooks([_OneStep()])
    try:
        trainer.train()
    except _Enough:
        if not evaluates:
            return
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        Trainer.test(cfg, trainer.model.eval())
        seconds.append(time.perf_counter() - start)
    found = {"first": seconds[0], "second": seconds[1], "processes": len(started)}
    Path(report).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    run_tool(main)
