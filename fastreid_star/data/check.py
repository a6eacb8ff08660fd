"""Checks of a dataset: its lists, the number of its tracklets, every frame and every skeleton."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import fastreid.data.build as fastreid_build
from fastreid.config import CfgNode

from fastreid_star.data.build import find_video_dataset
from fastreid_star.data.check_frames import Problem, check_frames, unused_skeletons
from fastreid_star.data.datasets import VideoDataset
from fastreid_star.data.datasets.base import LONG as LONG
from fastreid_star.data.datasets.base import SubsetCounts, count_subsets, splits
from fastreid_star.data.io import progress_bar
from fastreid_star.data.skeleton_stats import SkeletonStats
from fastreid_star.data.skeletons import SkeletonStore
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
        counts16: histogram of frames of 16 bits, as in :class:`Found`; empty: there are none.
        store: path of the skeleton store; empty without store.
        stored: number of its skeletons.
        skeletons: sums over the skeletons by modality and camera.
        problems: with single frames and skeletons, in the order of the tracklets.
        list_problems: with the lists.
        about: what the dataset says of itself; empty: nothing.
    """

    name: str
    folder: str
    counts: list[SubsetCounts]
    tracklets: int
    frames: int
    checked: int = 0
    decoded: bool = True
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    counts16: Counter[int] = field(default_factory=Counter)
    store: str = ""
    stored: int = 0
    skeletons: dict[tuple[Modality, int], SkeletonStats] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    list_problems: list[str] = field(default_factory=list)
    about: str = ""

    @property
    def disordered(self) -> list[Modality]:
        """Modalities in which most skeletons have their joints in an implausible order."""
        stats = {modality: self.of_modality(modality) for modality in Modality}
        return [modality for modality, s in stats.items() if s.disordered > s.found / 2]

    @property
    def good(self) -> bool:
        """Whether nothing is missing or broken and the counts are the published ones."""
        faults = any(problem.kind.is_fault for problem in self.problems)
        differ = any(counts.differences for counts in self.counts)
        return not (faults or differ or self.disordered or self.list_problems)

    def of_modality(self, modality: Modality) -> SkeletonStats:
        """The sums over the skeletons of all cameras of a modality."""
        stats = [stats for (own, _), stats in self.skeletons.items() if own == modality]
        return sum(stats, SkeletonStats())


def open_dataset(
    name: str, root: str = "", *, check_frames: bool = False, cfg: CfgNode | None = None
) -> VideoDataset:
    """A registered dataset with all its tracklets, including short ones.

    Args:
        name: as in DATASETS.NAMES.
        root: as DATASETS.ROOT; empty: $FASTREID_DATASETS or ./datasets.
        check_frames: whether the dataset checks that images exist.
        cfg: its keys of the dataset are used, and DATASETS.ROOT if `root` is empty.

    Raises:
        UserError: the dataset is unknown, contains images, or cannot be read.
    """
    dataset = find_video_dataset(name)
    options = {} if cfg is None else dataset.arguments(cfg)
    root = root or (cfg.DATASETS.ROOT if cfg is not None else "") or fastreid_build._root
    return dataset(root=root, min_frames=1, check_frames=check_frames, **options)


def check_dataset(
    dataset: VideoDataset,
    store: SkeletonStore | None = None,
    *,
    decode: bool = True,
    every: int = 1,
    workers: int = 1,
    progress: bool = False,
    camera_filter: bool | None = None,
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
        camera_filter: as TEST.CAMERA_FILTER; None: True, unless the dataset lists its queries.

    Raises:
        UserError: a worker ended, or the store cannot be read.
    """
    parts = splits(dataset)
    work = _distinct(parts)
    tested = [*dataset.query, *dataset.gallery]
    if camera_filter is None:
        camera_filter = not any(hasattr(tracklet, "role") for tracklet in tested)
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
            *evaluation_problems(tested, camera_filter=camera_filter),
            *shared_identities(dataset.train, tested),
            *dataset.warnings,
        ],
        about=dataset.about,
    )
    groups: dict[tuple[Modality, int], SkeletonStats] = defaultdict(SkeletonStats)
    with progress_bar("frames", -(-result.frames // every), shown=progress) as bar:
        checks = check_frames(work, store, decode=decode, every=every, workers=workers)
        for (_, tracklet), found in zip(work, checks, strict=True):
            result.checked += found.checked
            result.sizes.update(found.sizes)
            result.counts16.update(found.counts)
            result.problems += found.problems
            if store is not None:
                groups[tracklet.modality, tracklet.camid] += found.skeletons
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
    infrared, visible = ({t.pid for t in tracklets if t.modality == m} for m in Modality)
    lonely, both = sorted(infrared ^ visible), infrared & visible
    problems = []
    if lonely and both:
        problems.append(
            f"{len(lonely)} training identities have tracklets in one modality only, such as "
            f"{lonely[0]}: remove them from the lists"
        )
    if len(both) < 2:
        problems.append(
            "training needs 2 or more identities with tracklets in both modalities, but the "
            f"training set has {len(both)}"
        )
    return problems


def evaluation_problems(tracklets: Sequence[Tracklet], *, camera_filter: bool) -> list[str]:
    """Why these test lists do not allow an evaluation, one line each; empty if they do.

    Args:
        tracklets: of query and gallery; one with a `role` is only in that list.
        camera_filter: as TEST.CAMERA_FILTER.
    """
    problems = []
    for modality in Modality:
        query = [t for t in tracklets if t.modality == modality and _is(t, "query")]
        gallery = [t for t in tracklets if t.modality != modality and _is(t, "gallery")]
        problems += unmatched(
            f"{modality.name.lower()} queries",
            [(tracklet.pid, tracklet.camid) for tracklet in query],
            [(tracklet.pid, tracklet.camid) for tracklet in gallery],
            other_camera=camera_filter,
            cure="set TEST.CAMERA_FILTER False",
        )
    return problems


def _is(tracklet: Tracklet, role: str) -> bool:
    return getattr(tracklet, "role", role) == role


def unmatched(
    what: str,
    query: Sequence[tuple[int, int]],
    gallery: Sequence[tuple[int, int]],
    *,
    other_camera: bool,
    cure: str,
) -> list[str]:
    """One line if no query has a match in the gallery; else empty.

    Args:
        what: the queries, for the message.
        query, gallery: identity and camera of each entry.
        other_camera: only entries of another camera count.
        cure: what to do if other cameras are missing.
    """
    cameras = defaultdict(set)
    for pid, camid in gallery:
        cameras[pid].add(camid)
    if not any(pid in cameras for pid, _ in query):
        return [
            f"the {len(query)} {what} have no identity in common with their gallery "
            f"({len(gallery)} entries), so nothing can be evaluated: check the lists"
        ]
    if other_camera and not any(cameras.get(pid, set()) - {camid} for pid, camid in query):
        return [
            f"all correct matches of the {len(query)} {what} are from the query's own camera, "
            f"which is left out: {cure}"
        ]
    return []


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
