"""One loader process against decoding and resizing alone, and its memory over thousands of clips."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from typing import cast

import numpy as np
import torch
from fastreid.config import CfgNode
from PIL import Image
from torch.utils.data import DataLoader
from tqdm import tqdm

from fastreid_star.benchmark.figures import Figure
from fastreid_star.benchmark.options import Options
from fastreid_star.benchmark.process import MB, own_memory
from fastreid_star.benchmark.timing import in_turns
from fastreid_star.data.build import build_clip_train_loader
from fastreid_star.data.clips import ClipDataset, ClipRequest, collate_clips, segment_indices
from fastreid_star.data.datasets.synthetic import SyntheticOptions, write_synthetic_vcm
from fastreid_star.data.samplers import CrossModalIdentitySampler
from fastreid_star.engine.defaults import load_config

DATASET = SyntheticOptions(train_ids=8, test_ids=2, tracklets=2, frames=24, size=(256, 128))
SIZE = (288, 144)  # what the paper's networks see
CLIPS = 16


def figures(options: Options) -> Iterator[Figure]:
    """One loader process against decoding and resizing the same JPEGs, and its memory over thousands of clips."""
    made, resized, moved, note = rates(options, batches=2 if options.quick else 4)
    yield Figure.against(
        "loader_frames_per_s", made, "frames/s", resized, f"decoding and resizing alone; {note}"
    )
    yield Figure.against(
        "loader_frames_per_s_of_pixels",
        made,
        "frames/s",
        moved,
        "decoding, resizing, padding, cropping, erasing, mirroring and turning the channels to the front, alone",
    )
    clips = 400 if options.quick else 4000
    first, last = worker_memory(options, clips=clips)
    yield Figure.against(
        "loader_worker_memory_mb",
        last / MB,
        "MB",
        first / MB,
        f"the same process in the second tenth of {clips} clips; the value is that of the last tenth",
    )


def config(options: Options, **settings) -> CfgNode:
    """STAR's config for the made dataset, which is written when it is first asked for."""
    root = options.folder / "loader"
    write_synthetic_vcm(root / "SyntheticVCM", DATASET)
    settings = {
        "MODEL.DEVICE": "cpu",
        "DATASETS.ROOT": root,
        "DATASETS.NAMES": ("SyntheticVCM",),
        "DATALOADER.NUM_WORKERS": 0,
        "INPUT.SIZE_TRAIN": list(SIZE),
        "SOLVER.IMS_PER_BATCH": CLIPS,
        **{f"DATASETS.SYNTHETIC.{key.upper()}": value for key, value in DATASET.to_dict().items()},
        **settings,
    }
    path = options.configs / "HITSZ-VCM" / "STAR_R50.yml"
    return load_config(str(path), [str(part) for pair in settings.items() for part in pair])


def frame_files(loader: DataLoader, requests: Sequence[ClipRequest]) -> list[list[str]]:
    """The JPEGs that the loader opens for these clips."""
    files, dataset = [], cast(ClipDataset, loader.dataset)
    for request in requests:
        tracklet = dataset.tracklets[request.index]
        chosen = segment_indices(len(tracklet), dataset.length, np.random.default_rng(request.seed))
        files.append([tracklet.path(index) for index in chosen])
    return files


def decode(path: str, size: tuple[int, int]) -> np.ndarray:
    """A JPEG at the size wanted, uint8 ``[H, W, 3]``, as few calls as it takes."""
    with Image.open(path) as image:
        return np.asarray(image.resize(size[::-1], Image.Resampling.BILINEAR))


def move_pixels(frames: np.ndarray, padding: int = 10) -> np.ndarray:
    """What the augmentations do to the pixels of a clip ``[T, H, W, 3]``, without drawing what.

    One shift, rectangles in half of the frames, one mirror image, channels first.
    """
    height, width = frames.shape[1:3]
    shifted = np.zeros_like(frames)
    shifted[:, : height - padding, : width - padding] = frames[:, padding:, padding:]
    shifted[::2, height // 4 : height // 2, width // 4 : 3 * width // 4] = (124, 116, 104)
    return np.ascontiguousarray(shifted[:, :, ::-1].transpose(0, 3, 1, 2))


def rates(
    options: Options, *, batches: int, size: tuple[int, int] = SIZE
) -> tuple[float, float, float, str]:
    """Frames a second of the loader, of decoding and resizing, and of that with the augmentations' pixel moves.

    All three work in this process, on one thread as a loader's worker does, and on the same files in every round.

    Args:
        batches: a side's work in a round.
        size: height and width of the frames.
    """
    loader = build_clip_train_loader(config(options, **{"INPUT.SIZE_TRAIN": list(size)}), seed=0)
    sampler = iter(cast(CrossModalIdentitySampler, loader.batch_sampler))
    requests = [next(sampler) for _ in range(batches)]
    files = [clip for batch in requests for clip in frame_files(loader, batch)]

    def load() -> None:
        for batch in requests:
            collate_clips([loader.dataset[request] for request in batch])

    def resize() -> None:
        for clip in files:
            for path in clip:
                decode(path, size)

    def resize_and_move() -> None:
        for clip in files:
            move_pixels(np.stack([decode(path, size) for path in clip]))

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        sides = {"loader": load, "decode and resize": resize, "with the moves": resize_and_move}
        times = in_turns(sides, repeats=options.rounds, title=options.title("loader"))
    finally:
        torch.set_num_threads(threads)
    frames = sum(map(len, files))
    original, wanted = ("x".join(map(str, pair)) for pair in (DATASET.size, size))
    note = f"{frames} JPEGs of {original} to {wanted}; {times['loader']}"
    loading, decoding, moving = (frames / times[name].best for name in sides)
    return loading, decoding, moving, note


def supply(options: Options) -> float:
    """Frames a second of one loader process at the size of the step's frames: a short look."""
    loader = build_clip_train_loader(
        config(options, **{"INPUT.SIZE_TRAIN": list(options.work.size)}), seed=0
    )
    sampler = iter(cast(CrossModalIdentitySampler, loader.batch_sampler))
    requests = next(sampler)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        times = in_turns(
            {"load": lambda: collate_clips([loader.dataset[r] for r in requests])}, repeats=3
        )
    finally:
        torch.set_num_threads(threads)
    return len(requests) * cast(ClipDataset, loader.dataset).length / times["load"].best


def worker_memory(options: Options, *, clips: int, size: tuple[int, int] = SIZE) -> tuple[int, int]:
    """The most bytes that one worker process holds in the second tenth of `clips`, and in the last.

    The first tenth fills what is filled once: caches, the allocator's arenas, what is batched ahead.
    """
    cfg = config(options, **{"DATALOADER.NUM_WORKERS": 1, "INPUT.SIZE_TRAIN": list(size)})
    loader = build_clip_train_loader(cfg, seed=0)
    others = {process.pid for process in multiprocessing.active_children()}
    batches = iter(loader)
    (worker,) = (
        process.pid for process in multiprocessing.active_children() if process.pid not in others
    )
    assert worker is not None
    tenth = max(1, clips // CLIPS // 10)
    held = []
    for _ in tqdm(
        range(10 * tenth), desc="worker's memory", disable=not options.progress, leave=False
    ):
        next(batches)
        held.append(own_memory(worker))
    return max(held[tenth : 2 * tenth]), max(held[-tenth:])
