"""Checks of a dataset: its lists, the number of its tracklets, every frame and every skeleton."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import fastreid.data.build as fastreid_build
from fastreid.data.datasets import DATASET_REGISTRY

from fastreid_star.data.build import is_video_dataset
from fastreid_star.data.check_frames import Problem, check_frames, unused_skeletons
from fastreid_star.data.datasets import SyntheticVCM, VideoDataset
from fastreid_star.data.datasets.base import LONG as LONG
from fastreid_star.data.datasets.base import SubsetCounts, count_subsets, splits
from fastreid_star.data.io import progress_bar
from fastreid_star.data.skeleton_stats import SkeletonStats
from fastreid_star.data.skeletons import SkeletonStore
from fastreid_star.errors import UserError
from fastreid_star.structures import Modality, Tracklet


@dataclass(slots=True)
class DatasetCheck:
    """The result of :func:`check_dataset`.

    Args:
        name, folder: of the dataset.
        counts: of each split and modality, then of each split.
        tracklets, frames: numbers of different tracklets and of their frames.
        checked: number of frames that were checked.
        decoded: whether they were decoded; False: only their files were looked up.
        sizes: number of decoded frames by (height, width).
        store: path of the skeleton store; empty without store.
        stored: number of its skeletons.
        skeletons: sums over the skeletons by modality and camera.
        problems: with single frames and skeletons, in the order of the tracklets.
        list_problems: with the lists, which prevent a training or an evaluation.
    """

    name: str
    folder: str
    counts: list[SubsetCounts]
    tracklets: int
    frames: int
    checked: int = 0
    decoded: bool = True
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    store: str = ""
    stored: int = 0
    skeletons: dict[tuple[Modality, int], SkeletonStats] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    list_problems: list[str] = field(default_factory=list)

    @property
    def differences(self) -> list[str]:
        """Every count that differs from the published one."""
        return [f"{counts.name} {text}" for counts in self.counts for text in counts.differences]

    @property
    def lying(self) -> list[Modality]:
        """Modalities in which most skeletons are wider than tall, although people stand."""
        return [m for m in Modality if self.of_modality(m).lying_share > 0.5]

    @property
    def disordered(self) -> list[Modality]:
        """Modalities in which most skeletons have their joints in an implausible order."""
        return [
            m
            for m in Modality
            if self.of_modality(m).disordered_share > 0.5 and m not in self.lying
        ]

    @property
    def good(self) -> bool:
        """Whether nothing is missing or broken and the counts are the published ones."""
        faults = any(problem.kind.is_fault for problem in self.problems)
        whole = self.differences or self.lying or self.disordered or self.list_problems
        return not (faults or whole)

    def of_modality(self, modality: Modality) -> SkeletonStats:
        """The sums over the skeletons of all cameras of a modality."""
        stats = [stats for (own, _), stats in self.skeletons.items() if own == modality]
        return sum(stats, SkeletonStats())


def open_dataset(name: str, root: str = "", *, check_frames: bool = False) -> VideoDataset:
    """A registered dataset with all its tracklets, including short ones.

    Args:
        name: as in DATASETS.NAMES.
        root: as DATASETS.ROOT; empty: $FASTREID_DATASETS or ./datasets.
        check_frames: whether the dataset checks that images exist.

    Raises:
        UserError: the dataset is unknown, contains images, or cannot be read.
    """
    if not is_video_dataset(name):
        raise UserError(f"{name} is a dataset of images: give a dataset of tracklets, as HITSZVCM")
    dataset, root = DATASET_REGISTRY.get(name), root or fastreid_build._root
    written = issubclass(dataset, SyntheticVCM)
    if written and not os.path.isdir(os.path.join(root, dataset.dataset_dir)):
        raise UserError(f"no {dataset.dataset_dir} in {root}: a training run with {name} writes it")
    return dataset(root=root, min_frames=1, check_frames=check_frames)


def check_dataset(
    dataset: VideoDataset,
    store: SkeletonStore | None = None,
    *,
    decode: bool = True,
    every: int = 1,
    workers: int = 1,
    progress: bool = False,
) -> DatasetCheck:
    """Check the lists, frames and skeletons of a dataset.

    Memory holds the tracklets, the problems and the keys of the store, but no images.

    Args:
        dataset: see :func:`open_dataset`.
        store: its skeletons; None: they are not checked.
        decode: decode every frame; False: only check that its file exists and is not empty.
        every: check only every `every`-th frame.
        workers: number of processes that read.
        progress: show a progress bar.

    Raises:
        UserError: a worker ended, or the store cannot be read.
    """
    parts = splits(dataset)
    work = _distinct(parts)
    result = DatasetCheck(
        name=type(dataset).__name__,
        folder=os.path.abspath(dataset.folder),
        counts=count_subsets(parts, dataset.published),
        tracklets=len(work),
        frames=sum(len(tracklet) for _, tracklet in work),
        decoded=decode,
        store="" if store is None else os.path.abspath(store.path),
        list_problems=[
            *training_problems(dataset.train),
            *evaluation_problems([*dataset.query, *dataset.gallery]),
            *shared_identities(dataset.train, [*dataset.query, *dataset.gallery]),
        ],
    )
    groups: dict[tuple[Modality, int], SkeletonStats] = defaultdict(SkeletonStats)
    with progress_bar("frames", -(-result.frames // every), shown=progress) as bar:
        for found in check_frames(work, store, decode=decode, every=every, workers=workers):
            result.checked += found.checked
            result.sizes.update(found.sizes)
            result.problems += found.problems
            if store is not None:
                groups[found.group] += found.skeletons
            bar.update(found.checked)
    result.skeletons = dict(sorted(groups.items()))
    if store is not None:
        keys = store.keys()
        result.stored = len(keys)
        result.problems += unused_skeletons(keys, [tracklet for _, tracklet in work])
    return result


def _distinct(parts: dict[str, list[Tracklet]]) -> list[tuple[str, Tracklet]]:
    """Every tracklet once, with its subset; a query may also be in the gallery."""
    found: dict[tuple, tuple[str, Tracklet]] = {}
    for split, tracklets in parts.items():
        for tracklet in tracklets:
            subset = f"{split} {tracklet.modality.name.lower()}"
            found.setdefault((tracklet.root, tracklet.frames), (subset, tracklet))
    return list(found.values())


def training_problems(tracklets: Sequence[Tracklet]) -> list[str]:
    """Why these lists do not allow a training, one line each; empty if they do."""
    seen = {m: {t.pid for t in tracklets if t.modality == m} for m in Modality}
    lonely = sorted(seen[Modality.INFRARED] ^ seen[Modality.VISIBLE])
    both = seen[Modality.INFRARED] & seen[Modality.VISIBLE]
    problems = []
    if lonely and both:
        problems.append(
            f"{len(lonely)} training identities have tracklets in one modality only, such as "
            f"{lonely[0]}: remove them from the lists"
        )
    if len(both) < 2:
        problems.append(
            f"training needs 2 or more identities with tracklets in both modalities, but the "
            f"training set has {len(both)}"
        )
    return problems


def shared_identities(train: Sequence[Tracklet], test: Sequence[Tracklet]) -> list[str]:
    """One line if identities of the test set are in the training set too; else empty."""
    tested = {tracklet.pid for tracklet in test}
    shared = tested & {tracklet.pid for tracklet in train}
    if not shared:
        return []
    return [
        f"{len(shared)} of {len(tested)} test identities are in the training set too, such as "
        f"{min(shared)}: the results will be too good; check the lists"
    ]


def evaluation_problems(
    tracklets: Sequence[Tracklet], *, camera_filter: bool | None = None
) -> list[str]:
    """Why these test lists do not allow an evaluation, one line each; empty if they do.

    Args:
        tracklets: of query and gallery; one with a `role` is only in that list.
        camera_filter: TEST.CAMERA_FILTER; None: the value is not known, as in a check of the data
            alone, and a missing second camera is not a problem if queries and gallery are listed.
    """
    listed = any(hasattr(tracklet, "role") for tracklet in tracklets)
    filtered = not listed if camera_filter is None else camera_filter
    problems = []
    for modality, other in (Modality, tuple(Modality)[::-1]):
        query = [t for t in tracklets if t.modality == modality and _is(t, "query")]
        gallery = [t for t in tracklets if t.modality == other and _is(t, "gallery")]
        names = f"{modality.name.lower()} queries and {other.name.lower()} gallery tracklets"
        cameras: dict[int, set[int]] = defaultdict(set)
        for tracklet in gallery:
            cameras[tracklet.pid].add(tracklet.camid)
        if not any(t.pid in cameras for t in query):
            problems.append(
                f"the {len(query)} {names} ({len(gallery)}) have no identity in common, so nothing "
                "can be evaluated: the test set needs identities in both modalities"
            )
        elif filtered and not any(cameras.get(t.pid, set()) - {t.camid} for t in query):
            problems.append(
                f"all correct matches of the {names} are from the query's own camera, which "
                "TEST.CAMERA_FILTER removes: set TEST.CAMERA_FILTER False"
            )
    return problems


def _is(tracklet: Tracklet, role: str) -> bool:
    return getattr(tracklet, "role", role) == role
