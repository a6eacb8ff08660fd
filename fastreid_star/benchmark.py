"""Measure speed, each figure beside a reference that is measured in the same run.

The reference is the same work without the part that is measured: a time alone says more about the
machine than about the program. Both run in turns, and of each the fastest run counts.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from fastreid.evaluation.rank import evaluate_rank
from fastreid.utils.events import EventStorage
from PIL import Image
from tabulate import tabulate

from fastreid_star.data.build import build_clip_train_loader
from fastreid_star.data.clips import collate_clips
from fastreid_star.engine import device as devices
from fastreid_star.engine.defaults import argument_parser, setup
from fastreid_star.engine.trainer import Trainer
from fastreid_star.errors import UserError
from fastreid_star.evaluation.cross_modal import cross_modal_results
from fastreid_star.structures import Modality, Tracklet
from fastreid_star.training_step import (
    BARE,
    NETWORKS,
    TrainingStep,
    changed_config,
    in_turns,
    step_settings,
)

RANKED = (5159, 5643, 2048)  # infrared and visible tracklets of HITSZ-VCM's test set, feature width


class Figure(NamedTuple):
    """One measured number.

    Args:
        name, unit, value: such as ``loader``, ``frames/s`` and 1300.
        ratio: to the reference, which is the same work without the part that is measured;
            None without a reference.
        limit: of the ratio, or of the value where there is no reference: ``>= 0.65``, ``<= 10``.
        note: what the reference is, and the size of the work.
    """

    name: str
    unit: str
    value: float
    ratio: float | None
    limit: str
    note: str

    @property
    def is_outside(self) -> bool:
        """Whether the figure misses its limit."""
        if not self.limit:
            return False
        sign, limit = self.limit.split()
        number = self.value if self.ratio is None else self.ratio
        return number < float(limit) if sign == ">=" else number > float(limit)


def run(
    parts: Sequence[str] = (),
    *,
    device: str = "auto",
    quick: bool = False,
    opts: Sequence[str] = (),
) -> list[Figure]:
    """Measure, print a table, and name the figures that miss their limits.

    Args:
        parts: names from :data:`PARTS`; empty: all.
        device: as ``MODEL.DEVICE``.
        quick: smaller work and fewer repeats, about two minutes on two cores.
        opts: ``[KEY, VALUE, ...]``, config keys that change the work or the precision, for example
            ``MODEL.CHANNELS_LAST True`` or ``SOLVER.IMS_PER_BATCH 64``.

    Raises:
        UserError: a part, config key or device is unknown.
    """
    if unknown := set(parts) - set(PARTS):
        raise UserError(f"unknown part {', '.join(unknown)}: choose from {', '.join(PARTS)}")
    chosen = devices.choose_device(device)
    logging.getLogger("fastreid_star.data").setLevel(logging.ERROR)  # the synthetic data are small
    print(f"{devices.describe(chosen)}, torch {torch.__version__}, {' '.join(opts) or 'defaults'}")
    figures: list[Figure] = []
    for part in parts or PARTS:
        with tempfile.TemporaryDirectory(prefix="fastreid-star-benchmark-") as folder:
            data = ["MODEL.DEVICE", str(chosen), "DATASETS.ROOT", folder]
            figures += PARTS[part](chosen, quick, [*data, *opts])
    print(format_table(figures))
    outside = [figure.name for figure in figures if figure.is_outside]
    print(f"Outside the limit: {', '.join(outside) or 'no figure'}.")
    return figures


def format_table(figures: Sequence[Figure]) -> str:
    """The figures as a Markdown table. An exclamation mark stands at a limit that is missed."""
    rows = [f._replace(limit=f.limit + " !" * f.is_outside) for f in figures]
    return tabulate(rows, headers=Figure._fields, tablefmt="pipe", floatfmt=",.2f")


def measure_step(device: torch.device, quick: bool, opts: Sequence[str]) -> Iterator[Figure]:
    """A training step of SAD and STAR against the bare backbone's same passes."""
    settings = step_settings(device, quick)
    configs = {n: changed_config(file, settings, opts) for n, file in NETWORKS.items()}
    seconds = in_turns(
        {name: TrainingStep(name, cfg) for name, cfg in configs.items()},
        repeats=3 if quick else 10,
        warm_up=3,  # a GPU chooses its kernels, and a CPU's memory still grows
        wait=partial(devices.synchronize, device),
    )
    cfg = configs[BARE]
    count = cfg.SOLVER.IMS_PER_BATCH * cfg.INPUT.CLIP.LENGTH
    done = f"{cfg.MODEL.BACKBONE.DEPTH}, {count} frames of {cfg.INPUT.SIZE_TRAIN}"
    for name, value in seconds.items():
        ratio = None if name == BARE else seconds[BARE] / value
        limit = ">= 0.88" if device.type == "cpu" and name == "STAR" else ""
        note = f"{1000 * value:,.1f} ms; {done if name == BARE else 'the bare backbone'}"
        yield Figure(f"{name} step", "frames/s", count / value, ratio, limit, note)


def measure_loader(device: torch.device, quick: bool, opts: Sequence[str]) -> Iterator[Figure]:
    """One process that loads clips, against decoding and resizing the same JPEGs."""
    settings = {
        "DATASETS.NAMES": ("SyntheticVCM",),
        "DATASETS.SYNTHETIC.TRAIN_IDS": 8,
        "DATASETS.SYNTHETIC.TEST_IDS": 2,
        "DATASETS.SYNTHETIC.TRACKLETS": 2,
        "DATASETS.SYNTHETIC.SIZE": [256, 128],
        "DATALOADER.NUM_WORKERS": 0,
        "SOLVER.IMS_PER_BATCH": 16 if quick else 32,
    }
    cfg = changed_config("HITSZ-VCM/STAR_R50.yml", settings, [*opts, "MODEL.DEVICE", "cpu"])
    loader: Any = build_clip_train_loader(cfg, seed=0)
    requests = next(iter(loader.batch_sampler))
    tracklets = [loader.dataset.tracklets[request.index] for request in requests]
    files = [t.path(i) for t in tracklets for i in range(cfg.INPUT.CLIP.LENGTH)]
    size = cfg.INPUT.SIZE_TRAIN[::-1]

    def decode_and_resize() -> None:
        for path in files:
            with Image.open(path) as image:
                np.asarray(image.resize(size, Image.Resampling.BILINEAR))

    torch.set_num_threads(1)  # as a worker process of the loader
    load = lambda: collate_clips([loader.dataset[request] for request in requests])  # noqa: E731
    seconds = in_turns({"load": load, "decode": decode_and_resize}, repeats=10)
    ratio = seconds["decode"] / seconds["load"]
    note = f"decode and resize; {len(files)} JPEGs to {cfg.INPUT.SIZE_TRAIN}, one process"
    yield Figure("loader", "frames/s", len(files) / seconds["load"], ratio, ">= 0.65", note)


def measure_ranking(device: torch.device, quick: bool, opts: Sequence[str]) -> Iterator[Figure]:
    """Ranking HITSZ-VCM's test set, both directions, against fast-reid's loop over queries."""
    infrared, visible, width = RANKED
    total, rng = infrared + visible, np.random.default_rng(0)
    pids, cameras = rng.integers(427, size=total), rng.integers(1, 13, size=total)
    features = rng.standard_normal((total, width), np.float32)
    tracklets = [
        Tracklet(int(pids[i]), int(cameras[i]), Modality(1 + (i >= infrared)), "", (f"{i}.jpg",))
        for i in range(total)
    ]
    every = min(50 if quick else 10, infrared, visible)

    def rank_by_loop() -> None:
        first, second = np.arange(infrared), np.arange(infrared, total)
        for query, gallery in ((first[::every], second), (second[::every], first)):
            distances = 1 - features[query] @ features[gallery].T
            labels = (pids[query], pids[gallery], cameras[query], cameras[gallery])
            evaluate_rank(distances, *labels, use_cython=False)

    rank = partial(cross_modal_results, features, tracklets, min_frames=1, dataset_name="noise")
    sides: dict[str, Callable] = {"rank": rank, "loop": rank_by_loop}
    seconds = in_turns(sides, repeats=1 if quick else 3, warm_up=0)
    note = f"the plain loop, from each {every}th query; {infrared} x {visible} x {width}"
    ratio = seconds["rank"] / (seconds["loop"] * every)
    yield Figure("ranking", "s", seconds["rank"], ratio, "<= 0.05", note)


def first_step() -> None:
    """Set a training up and run its first step, with the arguments of a training command."""
    trainer = Trainer(setup(argument_parser("first step").parse_args()))
    trainer.iter = 0
    with EventStorage(0):
        trainer.run_step()


def measure_start(device: torch.device, quick: bool, opts: Sequence[str]) -> Iterator[Figure]:
    """From the start of a process to the first training step of the demo, whose data are ready."""
    cfg = changed_config("Synthetic/STAR_demo.yml", {"DATASETS.SYNTHETIC.TEST_IDS": 4}, opts)
    build_clip_train_loader(cfg, seed=0)  # writes the dataset
    file = Path(cfg.DATASETS.ROOT, "first_step.yaml")
    file.write_text(cfg.dump(), encoding="utf-8")
    code = "from fastreid_star.benchmark import first_step; first_step()"
    options = ["--config-file", str(file), "OUTPUT_DIR", str(file.with_name("run"))]
    start = partial(subprocess.check_output, [sys.executable, "-c", code, *options])
    seconds = in_turns({"start": start}, repeats=1 if quick else 3, warm_up=0)
    yield Figure("start", "s", seconds["start"], None, "<= 10", "a process to its first step")


PARTS: dict[str, Callable[[torch.device, bool, Sequence[str]], Iterator[Figure]]] = {
    "step": measure_step,
    "ranking": measure_ranking,
    "start": measure_start,
    "loader": measure_loader,  # the last: it sets the number of threads
}
