"""Train in two processes until, on rank 1, something is not finite; three times.

    nonfinite.py CONFIG FOLDER KEY VALUE ...

Each process starts the next training when the previous one has raised its error, so neither
process may wait for the other. The error is written to FOLDER/<what>/said<rank>. The last error
ends the program.
"""

import math
import os
import sys

from fastreid.utils import comm

from fastreid_star.engine.defaults import load_config, run_tool
from fastreid_star.engine.launch import launch
from fastreid_star.engine.trainer import Trainer
from fastreid_star.errors import UserError

FIRST = 4  # in the second or third epoch: the first has left a checkpoint
FLOAT16 = [
    "SOLVER.AMP.ENABLED",
    "True",
    "SOLVER.AMP.DTYPE",
    "float16",
    "SOLVER.AMP.MAX_SKIPPED",
    "2",
]


def train(what, config, folder, options):
    trainer = Trainer(
        load_config(
            config, [*options, "OUTPUT_DIR", folder, *(FLOAT16 if what == "skipped" else [])]
        )
    )
    if trainer.grad_scaler is not None:
        trainer.grad_scaler._init_scale = 1.0  # no overflow but the planted one
    if comm.get_rank() == 1:
        plant(trainer, what)
    trainer.train()


def plant(trainer, what):
    model = trainer.model.module
    if what == "gradient":
        parameter = model.heads.bottleneck[0].weight
        parameter.register_hook(
            lambda gradient: gradient * (math.inf if trainer.iter >= FIRST else 1)
        )
        return
    honest = model.forward

    def forward(batch):
        found = honest(batch)
        if trainer.iter >= FIRST:
            # its gradients are finite: only rank 1 can see it
            found["loss_defense"] = found["loss_defense"] + math.nan
        return found

    model.forward = forward


def train_thrice(config, folder, options):
    for what in ("gradient", "skipped", "loss"):
        try:
            train(what, config, os.path.join(folder, what), options)
        except UserError as error:
            with open(os.path.join(folder, what, f"said{comm.get_rank()}"), "w") as file:
                file.write(str(error))
            if what == "loss":
                raise


def main():
    config, folder, *options = sys.argv[1:]
    launch(train_thrice, 2, device="cpu", args=(config, folder, options))


if __name__ == "__main__":
    run_tool(main)
