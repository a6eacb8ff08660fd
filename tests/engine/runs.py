"""Whole and interrupted runs on the tiny synthetic data."""

import logging

import pytest
import torch
from fastreid.engine.train_loop import HookBase

from fastreid_star.engine.defaults import argument_parser
from fastreid_star.engine.trainer import Trainer
from fastreid_star.weights import read_checkpoint

from ..tiny import DEMO, tiny_config, tiny_options

NO_EVALUATION = ("TEST.EVAL_PERIOD", "0")


def assert_same_checkpoint(one, other):
    one, other = (read_checkpoint(str(path)) for path in (one, other))
    for data in (one, other):
        assert "OUTPUT_DIR" in data.pop("config")  # in which they differ
    assert one.keys() == other.keys()
    assert torch.utils._pytree.tree_structure(one) == torch.utils._pytree.tree_structure(other)
    for a, b in zip(
        torch.utils._pytree.tree_leaves(one), torch.utils._pytree.tree_leaves(other), strict=True
    ):
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


class WholeRun:
    """One uninterrupted run, with what its log said and which losses each step had."""

    def __init__(self, root, folder):
        self.folder, self.losses, self.lines = folder, [], []
        trainer = Trainer(tiny_config(root, folder, "SOLVER.LOG_PERIOD", "1"))
        parameters = {n: p for n, p in trainer.model.named_parameters() if p.requires_grad}
        before = {name: p.detach().clone() for name, p in parameters.items()}
        trainer.model.register_forward_hook(self._note)
        handler = logging.Handler()
        handler.emit = lambda record: self.lines.append(record.getMessage())
        loggers = [logging.getLogger(name) for name in ("fastreid", "fastreid_star")]
        for logger in loggers:
            logger.addHandler(handler)
            logger.setLevel(logging.INFO)
        trainer.resume_or_load(resume=False)
        self.results = trainer.train()
        for logger in loggers:
            logger.removeHandler(handler)
        self.unchanged = [n for n, p in parameters.items() if torch.equal(p, before[n])]

    def _note(self, module, inputs, output):
        if module.training:
            self.losses.append(set(output))


class StopAt(HookBase):
    def __init__(self, iteration):
        self.iteration = iteration

    def before_step(self):
        if self.trainer.iter == self.iteration:
            raise KeyboardInterrupt


def stopped(root, output, iteration):
    """A run that ended before this iteration; its checkpoints are those of the epochs before."""
    trainer = Trainer(tiny_config(root, output))
    trainer.register_hooks([StopAt(iteration)])
    with pytest.raises(KeyboardInterrupt):
        trainer.train()


def resumed(root, output, *more, **options):
    trainer = Trainer(tiny_config(root, output, *more))
    trainer.resume_or_load(resume=True, **options)
    return trainer


def arguments(root, output, *more):
    flags = [word for word in more if word.startswith("--")]
    words = [word for word in more if not word.startswith("--")]
    options = tiny_options(root, output, *words)
    return argument_parser("test").parse_args(["--config-file", DEMO, *flags, *options])
