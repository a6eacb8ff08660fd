"""The main job: train or evaluate what a command line names. A module of its own, so that workers can import it."""

from __future__ import annotations

import argparse

import torch
from fastreid.config import CfgNode

from fastreid_star.engine.checkpoint import misfits, read_checkpoint
from fastreid_star.engine.checks import check
from fastreid_star.engine.defaults import setup
from fastreid_star.engine.failures import in_one_line
from fastreid_star.engine.trainer import Trainer
from fastreid_star.errors import UserError


def train_or_evaluate(args: argparse.Namespace) -> dict:
    """Train, or with ``--eval-only`` evaluate ``MODEL.WEIGHTS``.

    Args:
        args: of :func:`fastreid_star.engine.defaults.argument_parser`.

    Returns:
        the last evaluation's results (empty on other ranks than the main one).

    Raises:
        UserError: all that is wrong with config, data and machine, or a fault of the machine.
    """
    cfg = setup(args)
    with in_one_line(cfg.MODEL.DEVICE):
        if not args.eval_only:
            trainer = Trainer(cfg)
            trainer.resume_or_load(resume=args.resume)
            return trainer.train()
        check(cfg, training=False)
        return Trainer.test(cfg, load_trained(cfg, cfg.MODEL.WEIGHTS))


def load_trained(cfg: CfgNode, path: str) -> torch.nn.Module:
    """Build the model of `cfg` and fill it from a checkpoint, in eval mode.

    The number of identities is read from the checkpoint, and no pretrained backbone is looked for.

    Raises:
        UserError: no such file, or the checkpoint is of another model: one missing or misshapen weight is enough.
    """
    weights = read_checkpoint(path)["model"]
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.BACKBONE.PRETRAIN = False
    if "heads.weight" in weights:
        cfg.MODEL.HEADS.NUM_CLASSES = weights["heads.weight"].shape[0]
    cfg.freeze()
    model = Trainer.build_model(cfg)
    wrong = misfits(model, weights)
    if wrong:
        raise UserError(
            f"checkpoint {path} is of another model: {len(wrong)} weights do not fit, first {', '.join(wrong[:3])}; "
            "use the config it was trained with (config.yaml beside it)"
        )
    model.load_state_dict(weights)
    return model.eval()
