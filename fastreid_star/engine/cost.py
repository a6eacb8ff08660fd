"""The size of a config's network, and the work for the feature of one tracklet."""

from __future__ import annotations

import functools
import logging
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from fastreid.config import CfgNode
from tabulate import tabulate
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fastreid_star.coco import NUM_JOINTS
from fastreid_star.engine.builders import Builders
from fastreid_star.engine.configs import load_config, shipped_configs
from fastreid_star.files import insert
from fastreid_star.modeling.backbones.two_stream import TwoStreamBackbone
from fastreid_star.modeling.layers.skeleton_graph import spatial_temporal_adjacency

CLASSES = 500  # of the classifiers: the training identities of HITSZ-VCM


class Cost(NamedTuple):
    """The cost of a network.

    Args:
        parameters: numbers that training changes, with classifiers of :data:`CLASSES` identities
            and the layers of the losses.
        flops: floating-point operations for the feature of one visible tracklet, see
            :func:`count_cost`.
    """

    parameters: int
    flops: int


@torch.no_grad()
def count_cost(cfg: CfgNode) -> Cost:
    """Build the network of a config, without pretrained weights, and count on tensors without data.

    torch's counter knows products of matrices, convolutions and attention; a multiplication and an
    addition are two operations.

    Args:
        cfg: MODEL, INPUT.SIZE_TEST and INPUT.CLIP.LENGTH are read.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE, cfg.MODEL.BACKBONE.PRETRAIN = "cpu", False
    cfg.MODEL.HEADS.NUM_CLASSES = CLASSES
    level = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        with torch.random.fork_rng(devices=[]):
            model = Builders.build_model(cfg).eval()
    finally:
        logging.disable(level)
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    own = getattr(model, "own_optimizer", None)  # its parameters ask for gradients in its step only
    parameters += (
        sum(p.numel() for group in own.param_groups for p in group["params"]) if own else 0
    )
    for part in model.modules():
        if isinstance(part, TwoStreamBackbone):
            visible = functools.partial(_visible, part.visible_stem)
            part.stem = visible  # type: ignore[method-assign] # of this object alone
    with warnings.catch_warnings(), FlopCounterMode(display=False) as counter:
        warnings.simplefilter("ignore", UserWarning)  # the switch warns of Intel's GPUs
        # the counter knows neither oneDNN's LSTM nor the CPU's fused attention
        known = torch.backends.mkldnn.flags(enabled=False), sdpa_kernel(SDPBackend.MATH)
        try:
            with known[0], known[1], FakeTensorMode(allow_non_fake_inputs=True):
                model(_clip(cfg))
        finally:  # it keeps tensors, which have no data here
            spatial_temporal_adjacency.cache_clear()
    return Cost(parameters, counter.get_total_flops())


def cost_table(
    names: Sequence[str],
    opts: Sequence[str] = (),
    step: Callable[..., tuple[float, float]] | None = None,
) -> str:
    """A Markdown table of the costs of these configs.

    Args:
        names: of configs.
        opts: config keys and values to change in all of them.
        step: measures a training step of a config, with `opts`, for two more columns: its time by
            that of SAD, and the bytes of a frame that it keeps for its backward pass.
    """
    rows = []
    for name in names:
        cfg = load_config(name, opts)
        cost = count_cost(cfg)
        height, width = cfg.INPUT.SIZE_TEST
        clip = f"{cfg.INPUT.CLIP.LENGTH} x {height}x{width}"
        row = [f"`{name}`", clip, f"{cost.parameters / 1e6:.1f}", f"{cost.flops / 1e9:.1f}"]
        if step is not None:
            time, kept = step(name, opts)
            row += [f"{time:.2f}", f"{kept / 2**20:.0f}"]
        rows.append(row)
    headers = ["config", "clip", "parameters (M)", "GFLOPs", "step, SAD = 1", "MiB a frame"]
    alignment = ["left", "left", *["right"] * 4]
    columns = len(headers) if step is not None else 4
    return tabulate(
        rows,
        headers[:columns],
        tablefmt="pipe",
        colalign=alignment[:columns],
        disable_numparse=True,
    )


def cost_of_page(
    page: str, opts: Sequence[str] = (), step: Callable[..., tuple[float, float]] | None = None
) -> str:
    """The content of a Markdown page, with the costs of all shipped configs that it names.

    Args:
        page: with the lines ``<!-- cost: begin -->`` and ``<!-- cost: end -->``.
        opts, step: as for :func:`cost_table`.

    Raises:
        UserError: the page cannot be read, or lacks the lines.
    """
    empty = insert(page, "cost", "")
    named = dict.fromkeys(re.findall(r"`([\w/-]+\.yml)`", empty))
    shipped = shipped_configs()
    names = [name for name in named if name in shipped]
    return insert(page, "cost", cost_table(names, opts, step))


def _clip(cfg: CfgNode) -> dict[str, Any]:
    """One visible clip with skeletons in all frames."""
    length, (height, width) = cfg.INPUT.CLIP.LENGTH, cfg.INPUT.SIZE_TEST
    return {
        "images": torch.empty(1, length, 3, height, width),
        "skeletons": torch.empty(1, length, NUM_JOINTS, 3),
        "has_skeleton": torch.empty(1, length, dtype=torch.bool),
        "crop_sizes": torch.empty(1, length, 2),
        "is_visible": torch.ones(1),
    }


def _visible(stem: nn.Module, images: torch.Tensor, is_visible: torch.Tensor) -> torch.Tensor:
    """The stem of visible frames alone: a choice by `is_visible` would need data."""
    return stem(images)
