"""Train, noting each step's own losses (metrics.json smooths them): losses.py FILE CONFIG [--resume] KEY VALUE ..."""

import json
import sys

from fastreid_star.engine.defaults import argument_parser, run_tool, setup
from fastreid_star.engine.trainer import Trainer


def main():
    path, config, *arguments = sys.argv[1:]
    args = argument_parser("test").parse_args(["--config-file", config, *arguments])
    trainer = Trainer(setup(args))
    trainer.resume_or_load(resume=args.resume)
    noted = {}
    step = trainer.run_step

    def run_step():
        step()
        noted[trainer.iter] = {
            name: value for name, (value, _) in trainer.storage.latest().items() if "loss" in name
        }

    trainer.run_step = run_step
    trainer.train()
    with open(path, "w") as file:
        json.dump(noted, file)


if __name__ == "__main__":
    run_tool(main)
