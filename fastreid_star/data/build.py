"""From the config to datasets, skeleton stores and loaders. Nothing here knows which device there is."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterable, Iterator
from dataclasses import replace

import fastreid.data.build as fastreid_build
import torch
from fastreid.data.datasets import DATASET_REGISTRY
from torch.utils.data import DataLoader

from fastreid_star.data.clips import ClipDataset, OtherTracklets, collate_clips
from fastreid_star.data.datasets import VideoDataset
from fastreid_star.data.samplers import CrossModalIdentitySampler
from fastreid_star.data.skeletons import SkeletonStore
from fastreid_star.data.transforms import build_transforms
from fastreid_star.data.workers import one_thread, ready_to_fork, why_lost
from fastreid_star.errors import UserError
from fastreid_star.structures import Tracklet

logger = logging.getLogger(__name__)


def is_video_dataset(name: str) -> bool:
    """Whether the dataset registered as `name` holds tracklets rather than images.

    Raises:
        UserError: no dataset has this name.
    """
    found = _look_up(name)
    return isinstance(found, type) and issubclass(found, VideoDataset)


def all_video(names: Iterable[str], key: str = "NAMES") -> bool:
    """Whether these datasets hold tracklets; False: images.

    Args:
        names: as in DATASETS.NAMES or DATASETS.TESTS.
        key: which of them, for the message.

    Raises:
        UserError: there are none, or of both kinds.
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
        cfg: DATASETS is read; a class with ``options_from_config(cfg)`` gets its result as `options`.
        name: as in DATASETS.NAMES or DATASETS.TESTS.
        kwargs: passed on to the dataset.

    Raises:
        UserError: no such dataset, one of images, or the dataset's own complaints.
    """
    if not is_video_dataset(name):
        raise UserError(
            f"{name} is a dataset of images; clips need one of tracklets, such as HITSZVCM"
        )
    dataset = _look_up(name)
    if hasattr(dataset, "options_from_config"):
        kwargs["options"] = dataset.options_from_config(cfg)
    root = cfg.DATASETS.ROOT or fastreid_build._root
    return dataset(root=root, min_frames=cfg.DATASETS.MIN_FRAMES, **kwargs)


def open_store(cfg, dataset: VideoDataset) -> SkeletonStore | None:
    """The skeleton store that DATASETS.SKELETONS names, None where it is empty.

    Raises:
        UserError: it cannot be opened, or knows none of the frames of a split.
    """
    if not cfg.DATASETS.SKELETONS:
        return None
    path = dataset.path(cfg.DATASETS.SKELETONS)
    store = SkeletonStore.open(path)
    for split, tracklets in (
        ("training", dataset.train),
        ("test", [*dataset.query, *dataset.gallery]),
    ):
        sample = [tracklet.key(0) for tracklet in tracklets[:: max(1, len(tracklets) // 100)]]
        known = sum(key in store for key in sample)
        if sample and not known:
            raise UserError(
                f"skeleton store {path} knows none of {len(sample)} {split} frames that were looked up, such as "
                f"{sample[0]}: it was made for other data; make one for these, or set DATASETS.SKELETONS ''"
            )
        if known < len(sample):
            logger.warning(
                "%s has skeletons for %d of %d %s frames looked up", path, known, len(sample), split
            )
    store.close()  # each process opens its own: a handle must not cross a fork
    return store


def build_clip_train_loader(
    cfg, *, seed: int, rank: int = 0, world_size: int = 1, pin_memory: bool = False
) -> DataLoader:
    """An endless loader of training batches [visible; infrared] over the datasets of DATASETS.NAMES.

    ``.dataset`` is a :class:`ClipDataset` with ``num_classes``, ``.batch_sampler`` a
    :class:`CrossModalIdentitySampler` with ``batches_per_epoch`` and ``set_start``.

    Args:
        cfg: DATASETS, INPUT, DATALOADER and SOLVER.IMS_PER_BATCH are read.
        seed: of every batch and sample.
        rank, world_size: this process and how many there are.
        pin_memory: hand out batches in page-locked memory, from which a GPU copies faster.

    Raises:
        UserError: whatever is wrong with the config or the data.
    """
    identities_per_batch(cfg)
    transform = build_transforms(cfg, is_train=True)
    tracklets, stores = _load_train(cfg, show=rank == 0)
    pids = sorted({tracklet.pid for tracklet in tracklets})
    dataset = ClipDataset(
        tracklets,
        length=_clip_length(cfg),
        transform=transform,
        **shown_with("SKELETONS_TRAIN", cfg.DATASETS.SKELETONS_TRAIN, stores, tracklets),
        pid_to_label={pid: label for label, pid in enumerate(pids)},
    )
    sampler = build_sampler(cfg, tracklets, seed=seed, rank=rank, world_size=world_size)
    return _loader(cfg, dataset, sampler, pin_memory)


def identities_per_batch(cfg) -> int:
    """P, over all processes: SOLVER.IMS_PER_BATCH is P x DATALOADER.NUM_INSTANCE x 2 modalities.

    Raises:
        UserError: it is not.
    """
    clips, instances = cfg.SOLVER.IMS_PER_BATCH, cfg.DATALOADER.NUM_INSTANCE
    if instances < 1 or clips < 1 or clips % (2 * instances):
        raise UserError(
            f"SOLVER.IMS_PER_BATCH {clips} is not identities x DATALOADER.NUM_INSTANCE {instances} x 2 modalities: "
            f"set it to a multiple of {2 * max(1, instances)}"
        )
    return clips // (2 * instances)


def build_sampler(
    cfg, tracklets: list[Tracklet], *, seed: int, rank: int = 0, world_size: int = 1
) -> CrossModalIdentitySampler:
    """The sampler of training batches; see :func:`build_clip_train_loader` for the arguments.

    Raises:
        UserError: no batch of this size can be made of these tracklets.
    """
    return CrossModalIdentitySampler(
        tracklets,
        num_identities=identities_per_batch(cfg),
        num_instances=cfg.DATALOADER.NUM_INSTANCE,
        seed=seed,
        rank=rank,
        world_size=world_size,
    )


def build_clip_test_loader(
    cfg, name: str, *, rank: int = 0, world_size: int = 1, pin_memory: bool = False
) -> DataLoader:
    """A loader of the test tracklets of one dataset: the query, then the gallery, each of them once.

    The batches are those of one process, and each rank gets a contiguous run of them, the last ones perhaps fewer or
    none: so a tracklet's feature is the same bit for bit, however many processes there are (a convolution may round
    otherwise in a batch of another size). ``.dataset.tracklets`` are all of them; `index` in a batch counts in it.

    Args:
        cfg: DATASETS, INPUT, DATALOADER and TEST.IMS_PER_BATCH are read.
        name: as in DATASETS.TESTS.
        rank, world_size, pin_memory: as for training.

    Raises:
        UserError: whatever is wrong with the config or the data.
    """
    transform = build_transforms(cfg, is_train=False)
    data = build_dataset(cfg, name)
    if rank == 0:
        data.show_test()
    tracklets = [*data.query, *data.gallery]
    dataset = ClipDataset(
        tracklets,
        length=_clip_length(cfg),
        transform=transform,
        **shown_with(
            "SKELETONS_TEST", cfg.DATASETS.SKELETONS_TEST, open_store(cfg, data), tracklets
        ),
    )
    size = max(1, cfg.TEST.IMS_PER_BATCH)
    batches = [range(len(dataset))[start : start + size] for start in range(0, len(dataset), size)]
    share = -(-len(batches) // world_size)
    return _loader(cfg, dataset, batches[rank * share : (rank + 1) * share], pin_memory)


class DeviceLoader:
    """A loader whose tensors are on a device; what only bookkeeping reads stays on the host.

    A :class:`UserError` from a worker process arrives as the one line it was; a worker that is killed is one too.

    Args:
        loader: of dicts; their tensors are moved, the rest is handed on.
        device: where to.

    Attributes:
        replaced: how many broken frames of the batches so far were replaced by a neighbor.
    """

    host_keys = frozenset({"modality", "camids", "index", "replaced"})

    def __init__(self, loader: DataLoader, device: torch.device):
        self.loader, self.device = loader, device
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
                batch = next(batches)
            except StopIteration:
                return
            except UserError as error:  # torch puts the worker's traceback in front of the message
                raise UserError(
                    str(error).strip().splitlines()[-1].rpartition("UserError: ")[2]
                ) from None
            except (RuntimeError, ConnectionError, EOFError) as error:
                line = why_lost(error) if getattr(self.loader, "num_workers", 0) else None
                if line is None:
                    raise
                raise UserError(line) from error
            if "replaced" in batch:
                self.replaced += int(batch["replaced"].sum())
            yield {
                key: value.to(self.device, non_blocking=True)
                if isinstance(value, torch.Tensor) and key not in self.host_keys
                else value
                for key, value in batch.items()
            }


def _look_up(name: str):
    try:
        return DATASET_REGISTRY.get(name)
    except (KeyError, TypeError):  # an entry of the list may be a list itself
        known = list(DATASET_REGISTRY._obj_map)
        lower = {other.lower(): other for other in known}
        near = [lower[match] for match in difflib.get_close_matches(str(name).lower(), lower, n=3)]
        video = [
            n for n in known if isinstance(DATASET_REGISTRY.get(n), type) and is_video_dataset(n)
        ]
        hint = (
            f"did you mean {' or '.join(near)}?"
            if near
            else f"those of tracklets are {', '.join(video)}"
        )
        raise UserError(
            f"no dataset is named {name!r} (DATASETS.NAMES, DATASETS.TESTS): {hint}"
        ) from None


def join_tracklets(datasets: Iterable[VideoDataset]) -> list[Tracklet]:
    """The training tracklets of all datasets, identities and cameras of each kept apart."""
    tracklets: list[Tracklet] = []
    for data in datasets:
        if not tracklets:
            tracklets = list(data.train)
            continue
        pids, camids = 1 + max(t.pid for t in tracklets), 1 + max(t.camid for t in tracklets)
        tracklets += [replace(t, pid=t.pid + pids, camid=t.camid + camids) for t in data.train]
    return tracklets


def _load_train(cfg, *, show: bool) -> tuple[list[Tracklet], dict[str, SkeletonStore] | None]:
    """The training tracklets of all datasets, and a store for each root."""
    datasets: list[VideoDataset] = []
    stores: dict[str, SkeletonStore] = {}
    for name in cfg.DATASETS.NAMES:
        data = build_dataset(cfg, name, combineall=cfg.DATASETS.COMBINEALL)
        if show:
            data.show_train()
        store = open_store(cfg, data)
        if store is not None:
            stores.update({tracklet.root: store for tracklet in data.train})
        datasets.append(data)
    return join_tracklets(datasets), stores or None


def shown_with(key: str, value: str, store, tracklets: list[Tracklet]) -> dict:
    """The arguments of :class:`ClipDataset` that say whose skeletons a clip is shown with.

    Args:
        key, value: of DATASETS: SKELETONS_TRAIN or SKELETONS_TEST.
        store: of these tracklets; None: there is none.
        tracklets: that are shown.

    Raises:
        UserError: no such value, or other clips' skeletons are asked for and cannot be had.
    """
    if value == "own":
        return {"store": store}
    if value == "none":
        return {"store": None}
    if value == "other":
        if store is None:
            raise UserError(
                f"DATASETS.{key} other shows the skeletons of other clips: DATASETS.SKELETONS must name some"
            )
        return {"store": store, "skeletons_of": OtherTracklets(tracklets)}
    raise UserError(f"DATASETS.{key} is {value!r}: choose one of own, other, none")


def _clip_length(cfg) -> int:
    if cfg.INPUT.CLIP.LENGTH < 1:
        raise UserError(
            f"INPUT.CLIP.LENGTH is {cfg.INPUT.CLIP.LENGTH}: a clip has at least one frame"
        )
    return cfg.INPUT.CLIP.LENGTH


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
        # Its own generator: starting an iteration must not move the global one, which a resumed run restores.
        generator=torch.Generator(),
    )
