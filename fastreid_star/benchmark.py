"""Measure speed, each figure beside a reference that is measured in the same run.

The reference is the same work without the part that is measured: a time alone says more about the
machine than about the program. Both run in turns, and of each the fastest run counts.
"""

from __future__ import annotations

import itertools
import logging
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from fastreid.config import CfgNode
from fastreid.evaluation.rank import evaluate_rank
from fastreid.utils.events import EventStorage
from PIL import Image
from tabulate import tabulate
from torch import nn

from fastreid_star.coco import NUM_JOINTS
from fastreid_star.data.build import DeviceLoader, build_clip_train_loader
from fastreid_star.data.clips import collate_clips
from fastreid_star.engine import device as devices
from fastreid_star.engine.defaults import argument_parser, load_config, setup
from fastreid_star.engine.train_loop import StepRunner
from fastreid_star.engine.trainer import Trainer
from fastreid_star.errors import UserError
from fastreid_star.evaluation.cross_modal import cross_modal_results
from fastreid_star.structures import Modality, Tracklet

BARE = "backbone"
NETWORKS = {
    BARE: "HITSZ-VCM/SAD_R50.yml",
    "SAD": "HITSZ-VCM/SAD_R50.yml",
    "STAR": "HITSZ-VCM/STAR_R50.yml",
}
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


def _config(file: str, settings: Mapping[str, Any], opts: Sequence[str]) -> CfgNode:
    """A config of the project, changed by `settings` and then by the user's options."""
    pairs = [str(part) for pair in settings.items() for part in pair]
    return load_config(file, [*pairs, *opts])


def in_turns(
    sides: Mapping[str, Callable], *, repeats: int, warm_up: int = 1, wait: Callable = lambda: None
) -> dict[str, float]:
    """Seconds of the fastest run of each side.

    All sides run once, then again in the opposite order, and so on: a disturbance meets them all.
    `wait` waits for a device, before each reading of the clock.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(warm_up + repeats):
        for name in list(sides)[:: -1 if number % 2 else 1]:
            wait()
            start = time.perf_counter()
            sides[name]()
            wait()
            if number >= warm_up:
                seconds[name].append(time.perf_counter() - start)
    return {name: min(values) for name, values in seconds.items()}


class BareBackbone(nn.Module):
    """The reference of a training step: the passes of the backbone and nothing else.

    In a step the stems and the two low stages see each frame once, and the two high stages see it
    twice: clean, and in the style of the attack. So do they here.
    """

    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.backbone: Any = backbone

    def forward(self, batch: dict) -> dict[str, torch.Tensor]:
        """The batch of :class:`TrainingStep` to a loss that reaches each weight."""
        frames, length = batch["images"].flatten(0, 1) / 255, batch["images"].shape[1]
        is_visible = batch["modality"].repeat_interleave(length) == Modality.VISIBLE
        low = self.backbone.low(self.backbone.stem(frames, is_visible), length)
        maps = [self.backbone.stage4(self.backbone.stage3(low, length), length) for _ in range(2)]
        return {"loss": torch.stack([m.float().mean((2, 3)) for m in maps]).square().mean()}


class TrainingStep:
    """One optimization step of a network of :data:`NETWORKS`, on a batch of noise."""

    def __init__(self, network: str, cfg: CfgNode):
        device = devices.choose_device(cfg.MODEL.DEVICE)
        clips, frames = cfg.SOLVER.IMS_PER_BATCH, cfg.INPUT.CLIP.LENGTH
        height, width = cfg.INPUT.SIZE_TRAIN
        scale = torch.tensor([width, height, 1.0])
        batch = {
            "images": torch.randint(0, 256, (clips, frames, 3, height, width)).byte(),
            "skeletons": torch.rand(clips, frames, NUM_JOINTS, 3) * scale,
            "has_skeleton": torch.ones(clips, frames, dtype=torch.bool),
            "targets": torch.arange(2).repeat_interleave(clips // 4).repeat(2),
            "modality": torch.tensor(list(Modality)).repeat_interleave(clips // 2),
        }
        if devices.needs_pinned_memory(device):
            batch = {key: value.pin_memory() for key, value in batch.items()}
        self.model = Trainer.build_model(cfg)
        if network == BARE:
            self.model = BareBackbone(self.model.backbone)
        self._runner = StepRunner(
            self.model,
            DeviceLoader(cast(Any, itertools.repeat(batch)), device),
            Trainer.build_optimizer(cfg, self.model)[0],
            device=device,
            amp_dtype=cfg.SOLVER.AMP.DTYPE if cfg.SOLVER.AMP.ENABLED else None,
            seed=cfg.SEED,
        )
        self._runner.iter = 0

    def __call__(self) -> None:
        with EventStorage(0):
            self._runner.run_step()
        self._runner.optimizer.zero_grad()
        self._runner.iter += 1


def measure_step(device: torch.device, quick: bool, opts: Sequence[str]) -> Iterator[Figure]:
    """A training step of SAD and STAR against the bare backbone's same passes."""
    settings = _step_settings(device, quick)
    configs = {n: _config(file, settings, opts) for n, file in NETWORKS.items()}
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


def step_ratio(name: str, opts: Sequence[str] = ()) -> float:
    """The time of a training step of a config, with that of SAD measured in turns: SAD's is 1.

    Both get as many clips, of as many frames of one size: those of ``step``, and on a CPU 4 clips
    of 6 frames of 144x72. The config keeps its backbone, losses and optimizer, and computes in
    float32, as SAD does.

    Args:
        name: of a config.
        opts: config keys and values to change in both.
    """
    device = devices.choose_device("auto")
    settings = {**_step_settings(device, quick=True), "SOLVER.AMP.ENABLED": False}
    del settings["MODEL.BACKBONE.DEPTH"]
    if device.type == "cpu":
        settings["INPUT.SIZE_TRAIN"] = "[144,72]"
    reference = NETWORKS["SAD"]
    seconds = in_turns(
        {file: TrainingStep(file, _config(file, settings, opts)) for file in (reference, name)},
        repeats=3,
        warm_up=1 if device.type == "cpu" else 3,
        wait=partial(devices.synchronize, device),
    )
    return seconds[name] / seconds[reference]


def _step_settings(device: torch.device, quick: bool) -> dict[str, Any]:
    """The config keys that make the work of a measured training step."""
    size = "50x 32 12 [288,144]"  # the paper's
    if device.type == "cpu":
        size = "18x 4 6 [96,48]" if quick else "50x 8 12 [144,72]"
    depth, clips, frames, pixels = size.split()
    return {
        "MODEL.BACKBONE.DEPTH": depth,
        "MODEL.BACKBONE.PRETRAIN": False,
        "MODEL.HEADS.NUM_CLASSES": 500,  # as in HITSZ-VCM
        "INPUT.SIZE_TRAIN": pixels,
        "INPUT.CLIP.LENGTH": frames,
        "SOLVER.IMS_PER_BATCH": clips,
        "SOLVER.BASE_LR": 1e-4,  # noise and random weights diverge at the paper's rate
        "CUDNN_BENCHMARK": True,
    }


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
    cfg = _config("HITSZ-VCM/STAR_R50.yml", settings, [*opts, "MODEL.DEVICE", "cpu"])
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
    cfg = _config("Synthetic/STAR_demo.yml", {"DATASETS.SYNTHETIC.TEST_IDS": 4}, opts)
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
