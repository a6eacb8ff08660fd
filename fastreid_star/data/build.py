"""Builds datasets, skeleton stores and loaders from a config."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import fastreid.data.build as fastreid_build
import torch
from fastreid.data.datasets import DATASET_REGISTRY
from torch.utils.data import DataLoader

from fastreid_star.data.clips import ClipDataset, OtherTracklets, collate_clips
from fastreid_star.data.datasets import VideoDataset
from fastreid_star.data.pairs import as_auxiliary, build_pairs
from fastreid_star.data.samplers import build_sampler, identities_per_batch
from fastreid_star.data.silhouettes import require_shapes
from fastreid_star.data.skeletons import SkeletonStore
from fastreid_star.data.transforms import build_transforms
from fastreid_star.data.workers import TIMEOUT, one_line, one_thread, ready_to_fork, waiting
from fastreid_star.errors import UserError
from fastreid_star.structures import Tracklet

logger = logging.getLogger(__name__)


def is_video_dataset(name: str) -> bool:
    """Whether the dataset registered as `name` holds tracklets rather than images.

    Raises:
        UserError: no dataset has this name.
    """
    known = list(DATASET_REGISTRY._obj_map)
    if name not in known:
        lower = {other.lower(): other for other in known}
        near = [lower[match] for match in difflib.get_close_matches(str(name).lower(), lower, n=3)]
        video = ", ".join(filter(is_video_dataset, known))
        hint = f"did you mean {' or '.join(near)}?" if near else f"choose one of {video}"
        raise UserError(f"no dataset is named {name!r} (DATASETS.NAMES, DATASETS.TESTS): {hint}")
    found = DATASET_REGISTRY.get(name)
    return isinstance(found, type) and issubclass(found, VideoDataset)


def find_video_dataset(name: str) -> Any:
    """The class registered as `name`, a subclass of :class:`VideoDataset` that takes a `root`.

    Raises:
        UserError: no dataset has this name, or it holds images.
    """
    if not is_video_dataset(name):
        raise UserError(f"{name} is a dataset of images: name one of tracklets, such as HITSZVCM")
    return DATASET_REGISTRY.get(name)


def all_video(names: Iterable[str], key: str = "NAMES") -> bool:
    """Whether these datasets hold tracklets; False: images.

    Args:
        names: as in DATASETS.NAMES or DATASETS.TESTS.
        key: name of the config key, for the message.

    Raises:
        UserError: the list is empty, or contains both kinds.
    """
    kinds = {is_video_dataset(name) for name in names}
    if len(kinds) != 1:
        raise UserError(
            f"DATASETS.{key} must name datasets of one kind, video or image, but is {tuple(names)}"
        )
    return kinds == {True}


def build_dataset(cfg, name: str, **kwargs) -> VideoDataset:
    """The video dataset registered as `name`, from DATASETS.ROOT, $FASTREID_DATASETS or ./datasets.

    Args:
        cfg: DATASETS is read.
        name: as in DATASETS.NAMES or DATASETS.TESTS.
        kwargs: passed to the dataset.

    Raises:
        UserError: the dataset is unknown, contains images, or cannot be read.
    """
    dataset = find_video_dataset(name)
    root = cfg.DATASETS.ROOT or fastreid_build._root
    kwargs.update(dataset.arguments(cfg), min_frames=cfg.DATASETS.MIN_FRAMES)
    kwargs.update(without=cfg.DATASETS.WITHOUT_FRAMES)
    return dataset(root=root, **kwargs)


def open_store(cfg, dataset: VideoDataset) -> SkeletonStore | None:
    """The skeleton store of DATASETS.SKELETONS; None if the key is empty.

    Raises:
        UserError: it cannot be opened, or has none of the frames of a split.
    """
    if not cfg.DATASETS.SKELETONS:
        return None
    path = dataset.path(cfg.DATASETS.SKELETONS)
    store = SkeletonStore.open(path)
    test = [*dataset.query, *dataset.gallery]
    for split, tracklets in (("training", dataset.train), ("test", test)):
        sample = [tracklet.key(0) for tracklet in tracklets[:: max(1, len(tracklets) // 100)]]
        known = sum(key in store for key in sample)
        found = f"knows {known or 'none'} of {len(sample)} {split} frames that were looked up"
        if sample and not known:
            raise UserError(
                f"skeleton store {path} {found}, such as {sample[0]}: it was made for other data; "
                "extract skeletons for these data, or set DATASETS.SKELETONS ''"
            )
        if known < len(sample):
            logger.warning("Skeleton store %s %s", path, found)
    store.close()  # each process opens its own: a handle must not cross a fork
    return store


def build_clip_train_loader(
    cfg, *, seed: int, rank: int = 0, world_size: int = 1, pin_memory: bool = False
) -> DataLoader:
    """An endless loader of training batches from DATASETS.NAMES, by DATALOADER.SAMPLER_TRAIN.

    ``.dataset`` is a :class:`ClipDataset` with ``num_classes``, ``.batch_sampler`` an
    :class:`EndlessSampler` with ``batches_per_epoch`` and ``set_start``. With DATASETS.AUXILIARY,
    as many clips of those datasets follow; their labels are negative.

    Args:
        cfg: DATASETS, INPUT, DATALOADER and SOLVER.IMS_PER_BATCH are read.
        seed: of all batches and samples.
        rank, world_size: number of this process, and of all processes.
        pin_memory: use page-locked memory, from which a GPU copies faster.

    Raises:
        UserError: the config or the data are invalid.
    """
    identities = identities_per_batch(cfg)
    transform = build_transforms(cfg, is_train=True)
    tracklets, stores, shapes = _load_train(cfg, cfg.DATASETS.NAMES, show=rank == 0)
    extra, more, shapes_too = _load_train(cfg, cfg.DATASETS.AUXILIARY, show=rank == 0)
    auxiliary = as_auxiliary(extra)
    place = {"rank": rank, "world_size": world_size}
    sampler = build_sampler(cfg, tracklets, seed=seed, **place)
    batches = build_pairs(cfg, sampler, tracklets, auxiliary, num_identities=identities, **place)
    pids = sorted({tracklet.pid for tracklet in tracklets})
    labels = {pid: label for label, pid in enumerate(pids)}
    labels.update((tracklet.pid, tracklet.pid) for tracklet in auxiliary)
    tracklets, stores = tracklets + auxiliary, {**stores, **more}
    dataset = ClipDataset(
        tracklets,
        length=cfg.INPUT.CLIP.TRAIN_LENGTH or cfg.INPUT.CLIP.LENGTH,
        transform=transform,
        **shown_with("SKELETONS_TRAIN", cfg.DATASETS.SKELETONS_TRAIN, stores or None, tracklets),
        pid_to_label=labels,
        sampling=cfg.INPUT.CLIP.SAMPLING,
        shapes={**shapes, **shapes_too} or None,
    )
    return _loader(cfg, dataset, batches, pin_memory)


def build_clip_test_loader(
    cfg,
    name: str,
    *,
    data: VideoDataset | None = None,
    rank: int = 0,
    world_size: int = 1,
    pin_memory: bool = False,
) -> DataLoader:
    """A loader of the test tracklets of one dataset: all of the query, then all of the gallery.

    Each rank gets a contiguous share of the batches of a single process. The features are therefore
    bit for bit the same for any number of processes (a convolution may round differently in a
    batch of another size). ``.dataset.tracklets`` are all tracklets; `index` refers to them. For
    TEST.RERANK.TEMPORAL, the halves of all tracklets follow.

    Args:
        cfg: DATASETS, INPUT, DATALOADER and TEST are read.
        name: as in DATASETS.TESTS.
        data: the dataset of this name, if it is open already.
        rank, world_size, pin_memory: as for training.

    Raises:
        UserError: the config or the data are invalid.
    """
    transform = build_transforms(cfg, is_train=False)
    data = data or build_dataset(cfg, name)
    if rank == 0:
        data.show_test()
    tracklets, store = [*data.query, *data.gallery], open_store(cfg, data)
    dataset = ClipDataset(
        tracklets,
        length=cfg.INPUT.CLIP.LENGTH,
        transform=transform,
        **shown_with("SKELETONS_TEST", cfg.DATASETS.SKELETONS_TEST, store, tracklets),
        halves=cfg.TEST.RERANK.TEMPORAL,
        sampling=cfg.INPUT.CLIP.SAMPLING,
    )
    size = max(1, cfg.TEST.IMS_PER_BATCH)
    batches = [range(len(dataset))[start : start + size] for start in range(0, len(dataset), size)]
    share = -(-len(batches) // world_size)
    return _loader(cfg, dataset, batches[rank * share : (rank + 1) * share], pin_memory)


class DeviceLoader:
    """Moves the tensors of a loader to a device; labels for bookkeeping stay on the host.

    An error in a worker process, or a killed worker, is raised as a one-line :class:`UserError`.

    Args:
        loader: of dicts; entries that are not tensors are passed unchanged.
        device: the target.

    Attributes:
        replaced: number of broken frames so far that were replaced by a neighbor.
    """

    host_keys = frozenset({"modality", "view", "camids", "index", "replaced"})

    def __init__(self, loader: DataLoader, device: torch.device):
        self.loader, self.device = loader, device
        if getattr(loader, "num_workers", 0) and not loader.timeout:
            loader.timeout = TIMEOUT  # nobody waits for ever
        self.replaced = 0

    @property
    def dataset(self):
        return self.loader.dataset

    @property
    def batch_sampler(self):
        return self.loader.batch_sampler

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        batches = iter(self.loader)
        while True:
            try:
                with waiting():
                    batch = next(batches)
            except StopIteration:
                return
            except (UserError, RuntimeError, ConnectionError, EOFError) as error:
                line = one_line(error) if getattr(self.loader, "num_workers", 0) else None
                if line is None:
                    raise
                raise line from error
            if "replaced" in batch:
                self.replaced += int(batch["replaced"].sum())
            yield {
                key: value.to(self.device, non_blocking=True)
                if isinstance(value, torch.Tensor) and key not in self.host_keys
                else value
                for key, value in batch.items()
            }


def join_tracklets(datasets: Iterable[VideoDataset]) -> list[Tracklet]:
    """The training tracklets of all datasets, with different identities and cameras."""
    tracklets: list[Tracklet] = []
    pids = camids = 0  # added to those of the next dataset
    for data in datasets:
        tracklets += [replace(t, pid=t.pid + pids, camid=t.camid + camids) for t in data.train]
        pids = 1 + max((t.pid for t in tracklets), default=-1)
        camids = 1 + max((t.camid for t in tracklets), default=-1)
    return tracklets


def _load_train(
    cfg, names: Sequence[str], *, show: bool
) -> tuple[list[Tracklet], dict[str, SkeletonStore], dict[str, str]]:
    """The training tracklets of these datasets, and for each root a store and a shape folder."""
    datasets: list[VideoDataset] = []
    stores: dict[str, SkeletonStore] = {}
    shapes: dict[str, str] = {}
    for name in names:
        combine = cfg.DATASETS.COMBINEALL and name in cfg.DATASETS.NAMES
        data = build_dataset(cfg, name, combineall=combine)
        if show:
            data.show_train()
        store = open_store(cfg, data)
        if store is not None:
            stores.update({tracklet.root: store for tracklet in data.train})
        if cfg.DATASETS.SHAPES:
            folder = data.path(cfg.DATASETS.SHAPES)
            data.write_shapes(folder)
            require_shapes(folder, data.train)
            shapes.update({tracklet.root: folder for tracklet in data.train})
        datasets.append(data)
    return join_tracklets(datasets), stores, shapes


def shown_with(key: str, value: str, store, tracklets: list[Tracklet]) -> dict:
    """The arguments of :class:`ClipDataset` that choose the skeletons of a clip.

    Args:
        key, value: DATASETS.SKELETONS_TRAIN or DATASETS.SKELETONS_TEST.
        store: of these tracklets, or None.
        tracklets: of the clips.

    Raises:
        UserError: an unknown value, or ``other`` without other skeletons.
    """
    if value not in ("own", "other", "none"):
        raise UserError(f"DATASETS.{key} is {value!r}: choose one of own, other, none")
    if value == "other" and store is None:
        raise UserError(
            f"DATASETS.{key} other shows the skeletons of other clips: set DATASETS.SKELETONS"
        )
    return {
        "store": None if value == "none" else store,
        "skeletons_of": OtherTracklets(tracklets) if value == "other" else None,
    }


def _loader(cfg, dataset: ClipDataset, batch_sampler, pin_memory: bool) -> DataLoader:
    workers = cfg.DATALOADER.NUM_WORKERS
    ready_to_fork()
    return DataLoader(
        dataset,
        batch_sampler=batch_sampler,
        num_workers=workers,
        collate_fn=collate_clips,
        worker_init_fn=one_thread,
        persistent_workers=workers > 0,
        pin_memory=pin_memory,
        # starting an iteration must not advance the global generator, which a resumed run restores
        generator=torch.Generator(),
    )
