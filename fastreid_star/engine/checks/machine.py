"""Checks of the machine before a run: the device, files of weights and the output folder."""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Iterator

from fastreid.config import CfgNode
from fastreid.modeling.backbones import BACKBONE_REGISTRY
from fastreid.utils import comm

from fastreid_star.engine import device as devices
from fastreid_star.engine.checks.run import Problem, Run
from fastreid_star.engine.trackers import why_unusable
from fastreid_star.modeling.backbones.dinov2 import SIZES as DINOV2_SIZES
from fastreid_star.modeling.backbones.pretrained import download, pretrained_file, pretrained_fit
from fastreid_star.weights import read_weights


def device(run: Run) -> Iterator[Problem]:
    """MODEL.DEVICE can be used, and there is one for each process."""
    count = devices.device_count(run.cfg.MODEL.DEVICE)
    if count is not None and run.local_size > count:
        yield Problem(f"--num-devices {run.local_size}: this machine has {count} device(s)")


def weights(run: Run) -> Iterator[Problem]:
    """MODEL.WEIGHTS is a checkpoint, if it is needed."""
    cfg = run.cfg
    if not run.training and not cfg.MODEL.WEIGHTS:
        yield Problem("--eval-only needs weights: add MODEL.WEIGHTS path/to/model.pth")
    # a resumed run does not read them
    resumed = run.training and os.path.isfile(os.path.join(cfg.OUTPUT_DIR, "last_checkpoint"))
    if cfg.MODEL.WEIGHTS and not resumed and comm.is_main_process():
        read_weights(cfg.MODEL.WEIGHTS)


def pretrained(run: Run) -> Iterator[Problem]:
    """The pretrained weights that the network needs are here, and fit the backbone."""
    node = run.cfg.MODEL.BACKBONE
    if not (run.training and comm.is_main_process()):
        return
    keys_of = getattr(run.network, "pretrained_keys", lambda cfg: ())
    for key in keys_of(run.cfg):
        path = functools.reduce(getattr, key.split("."), run.cfg)
        if path and path not in DINOV2_SIZES and not os.path.exists(path):
            yield Problem(f"{key} {path} does not exist: set it to a file (docs/weights.md)")
    if not node.PRETRAIN:
        return
    if node.PRETRAIN_PATH and not os.path.isfile(node.PRETRAIN_PATH):
        yield Problem(
            f"the pretrained weights {node.PRETRAIN_PATH} of {node.NAME} {node.DEPTH} do not "
            "exist: set MODEL.BACKBONE.PRETRAIN_PATH to a file, or MODEL.BACKBONE.PRETRAIN False"
        )
    elif node.NAME in BACKBONE_REGISTRY._obj_map:
        path = pretrained_file(node)
        if path is not None:
            pretrained_fit(run.cfg, path)
        else:
            yield from _downloaded(node)


def _downloaded(node: CfgNode) -> Iterator[Problem]:
    """Weights that are not on this machine yet."""
    known = download(node)
    module = BACKBONE_REGISTRY.get(node.NAME).__module__
    if known is None and module.startswith("fastreid."):
        yield Problem(
            f"fast-reid has no download of pretrained weights for {node.NAME} {node.DEPTH}: set "
            "MODEL.BACKBONE.PRETRAIN_PATH to a file (docs/weights.md)"
        )
    elif known is not None:
        yield Problem(
            f"the pretrained weights of {node.NAME} {node.DEPTH} are not on this machine: they are "
            f"downloaded from {known.url}; without a network put the file there as "
            f"{known.places[0]}, or set MODEL.BACKBONE.PRETRAIN_PATH (docs/weights.md)",
            fatal=False,
        )


def trackers(run: Run) -> Iterator[Problem]:
    """The trackers of TRACKERS exist and are installed, where the run is recorded."""
    if run.training and comm.is_main_process():
        yield from map(Problem, why_unusable(run.cfg.TRACKERS))


def output(run: Run) -> Iterator[Problem]:
    """OUTPUT_DIR can be written."""
    problem = why_unwritable(run.cfg.OUTPUT_DIR) if comm.is_main_process() else None
    if problem:
        yield Problem(problem)


def why_unwritable(folder: str | os.PathLike[str], name: str = "OUTPUT_DIR") -> str | None:
    """Make a folder and write into it. Returns what went wrong and the cure, or None.

    Args:
        folder: the folder.
        name: what the user calls it.
    """
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"test")
    except OSError as error:
        return (
            f"{name} {folder} cannot be written ({error.strerror}): use another folder, or "
            "free space"
        )
    return None
