"""Skeleton extraction: what it takes beside the pose network, and whether its memory stays flat.

Runs in the pose environment, with an untrained network: how long it takes does not depend on the weights.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np
import torch
from PIL import Image

from fastreid_star.benchmark.figures import Figure
from fastreid_star.benchmark.options import Options
from fastreid_star.benchmark.process import MB, resident_memory
from fastreid_star.benchmark.timing import in_turns
from fastreid_star.data.io import read_frame
from fastreid_star.engine import device as devices
from fastreid_star.errors import UserError
from fastreid_star.pose.estimator import PoseEstimator, build_estimator
from fastreid_star.pose.extraction import Extraction
from fastreid_star.pose.frames import Frames, frames_of_folder

BATCH = 16
HRNET, SMALL = "td-hm_hrnet-w32_8xb64-210e_coco-256x192", "rtmpose-t_8xb256-420e_coco-256x192"


def figures(options: Options) -> Iterator[Figure]:
    """Skeleton extraction beside its pose network, and its memory over many crops. In the pose environment alone."""
    if importlib.util.find_spec("mmpose") is None:
        raise UserError(
            "the part pose needs mmpose: run `python tools/dev.py pose` once, then this with .venv-pose/bin/python"
        )
    yield overhead(options, HRNET, crops=2 * BATCH if options.quick else 6 * BATCH)
    yield memory(options, SMALL, crops=800 if options.quick else 10_000)


def overhead(options: Options, model: str, *, crops: int) -> Figure:
    """Crops a second of the whole extraction, from JPEG files to a store, beside those of the network alone."""
    network, estimator = untrained(model, options)
    frames = write_crops(options.folder / "crops", crops)
    prepared = [estimator.prepare(read_frame(frames.path(index))) for index in range(crops)]
    batches = [
        network_input(network, prepared[start : start + BATCH]) for start in range(0, crops, BATCH)
    ]
    made = iter(range(10**6))

    def extract() -> None:
        work = Extraction(
            frames, options.folder / f"store{next(made)}", estimator.describe(), batch_size=BATCH
        )
        work.run(estimator, workers=1, progress=False)
        work.finish()

    @torch.inference_mode()
    def run_network() -> None:
        for batch in batches:
            network(batch, None, mode="tensor")

    device = devices.choose_device(options.device)
    times = in_turns(
        {"extraction": extract, "network": run_network},
        repeats=options.rounds,
        synchronize=lambda: devices.synchronize(device),
        title=options.title("pose"),
    )
    rates = {name: crops / time.best for name, time in times.items()}
    return Figure.against(
        "pose_crops_per_s",
        rates["extraction"],
        "crops/s",
        rates["network"],
        f"the network alone on batches that are ready; {model}, {BATCH} at a time, decoded by one more process",
    )


def memory(options: Options, model: str, *, crops: int) -> Figure:
    """The resident memory at the end of a long extraction beside that after its first tenth."""
    _, estimator = untrained(model, options)
    frames = write_crops(options.folder / "few", min(crops, 500))
    again = -(-crops // len(frames))
    many = Frames(
        frames.root,
        [f"{k}/{key}" for k in range(again) for key in frames.keys],
        [*frames.paths] * again,
    )
    seen = []

    class Watched:
        """The estimator, with the process' memory noted after each batch."""

        prepare = estimator.prepare
        describe = estimator.describe

        @staticmethod
        def estimate(prepared):
            joints = estimator.estimate(prepared)
            seen.append(resident_memory())
            return joints

    work = Extraction(many, options.folder / "store", estimator.describe(), batch_size=BATCH)
    work.run(cast(PoseEstimator, Watched()), workers=1, progress=options.progress)
    work.finish()
    early = max(seen[: max(1, len(seen) // 10)])
    return Figure.against(
        "pose_memory_mb",
        max(seen) / MB,
        "MB",
        early / MB,
        f"the most during the first tenth of {len(many):,} crops; {model}, without the decoding process",
    )


def untrained(model: str, options: Options) -> tuple[torch.nn.Module, PoseEstimator]:
    """One of mmpose's networks with random weights, and our estimator with the same ones."""
    from fastreid_star.pose import mmpose_backend as backend

    device = devices.choose_device(options.device)
    torch.manual_seed(0)
    network = backend.init_model(
        backend.read_config(backend.config_path(model)), None, device=device
    )
    checkpoint = options.folder / f"{model}.pth"
    options.folder.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": network.state_dict()}, checkpoint)
    return network, build_estimator(
        "mmpose", model=model, checkpoint=str(checkpoint), device=device
    )


def network_input(network: torch.nn.Module, prepared: list) -> torch.Tensor:
    """A batch as the network itself takes it, on its device."""
    from mmengine.dataset import pseudo_collate

    return network.get_submodule("data_preprocessor")(pseudo_collate(prepared), False)["inputs"]


def write_crops(folder: Path, count: int) -> Frames:
    """Crops as large as HITSZ-VCM's are used, 72 x 144, as JPEG files."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 255, (18, 9, 3), np.uint8))
        coarse.resize((72, 144), Image.Resampling.BICUBIC).save(
            folder / f"{number}.jpg", quality=90
        )
    return frames_of_folder(folder)
