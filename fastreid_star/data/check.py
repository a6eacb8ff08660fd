"""Is a dataset whole: every frame decoded, every skeleton held against its frame, the counts against the published.

Nothing is written here and nothing shown but a progress bar: :mod:`fastreid_star.report.dataset` does that.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from dataclasses import dataclass, field

import fastreid.data.build as fastreid_build
from fastreid.data.datasets import DATASET_REGISTRY

from fastreid_star.data.build import is_video_dataset
from fastreid_star.data.check_frames import Problem, check_frames, unused_skeletons
from fastreid_star.data.datasets import HITSZVCM, SyntheticVCM, VideoDataset
from fastreid_star.data.datasets.hitsz_vcm import PUBLISHED
from fastreid_star.data.datasets.hitsz_vcm_files import TRUE_CAMERAS
from fastreid_star.data.progress import progress_bar
from fastreid_star.data.skeleton_stats import SkeletonStats
from fastreid_star.data.skeletons import SkeletonStore
from fastreid_star.errors import UserError
from fastreid_star.structures import Modality, Tracklet

LONG = 12  # frames: what the published protocols ask of a tracklet
WORDS = {"long": f"tracklets of at least {LONG} frames"}


@dataclass(frozen=True, slots=True)
class SubsetCounts:
    """How large a part of the dataset is, all tracklets counted, however short.

    Args:
        name: ``train infrared``, ``train``, ...
        tracklets, frames, identities, cameras: how many.
        long: tracklets of at least 12 frames.
        published: what each of these should be, by name; empty where nothing is known.
    """

    name: str
    tracklets: int
    frames: int
    identities: int
    long: int
    cameras: int
    published: dict[str, int] = field(default_factory=dict)

    @property
    def differences(self) -> list[str]:
        """``frames 7 instead of 8`` for every count that is not the published one."""
        return [
            f"{WORDS.get(name, name)} {getattr(self, name):,} instead of {count:,}"
            for name, count in self.published.items()
            if getattr(self, name) != count
        ]


@dataclass(slots=True)
class DatasetCheck:
    """What was found in a dataset.

    Args:
        name, folder: of the dataset.
        counts: of each split and modality, then of each split.
        tracklets, frames: how many there are, each once.
        checked: how many frames were looked at.
        decoded: they were decoded; False: only looked for.
        sizes: how many decoded frames have which (height, width).
        store: path of the skeleton store; empty: none was given.
        stored: how many skeletons it has.
        skeletons: by modality and camera.
        problems: in the order of the tracklets, then of the store.
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

    @property
    def differences(self) -> list[str]:
        """Every count that is not the published one."""
        return [f"{counts.name} {text}" for counts in self.counts for text in counts.differences]

    @property
    def lying(self) -> list[Modality]:
        """Modalities most of whose skeletons are wider than tall, though people stand."""
        return [modality for modality in Modality if self.of_modality(modality).lying_share > 0.5]

    @property
    def disordered(self) -> list[Modality]:
        """Modalities most of whose skeletons have no shoulders above hips above ankles, and do not lie."""
        return [
            m
            for m in Modality
            if self.of_modality(m).disordered_share > 0.5 and m not in self.lying
        ]

    @property
    def good(self) -> bool:
        """Nothing is missing, broken or other than published."""
        faults = any(problem.kind.is_fault for problem in self.problems)
        return not (faults or self.differences or self.lying or self.disordered)

    def of_modality(self, modality: Modality) -> SkeletonStats:
        """The skeletons of all its cameras."""
        stats = [stats for (own, _), stats in self.skeletons.items() if own == modality]
        return sum(stats, SkeletonStats())


def open_dataset(name: str, root: str = "", *, check_frames: bool = False) -> VideoDataset:
    """A registered dataset with all its tracklets, however short, whether their frames are there or not.

    Args:
        name: as in DATASETS.NAMES.
        root: as DATASETS.ROOT; empty: $FASTREID_DATASETS or ./datasets.
        check_frames: have the dataset see that some of them are.

    Raises:
        UserError: no such dataset of tracklets, or its lists cannot be read.
    """
    if not is_video_dataset(name):
        raise UserError(
            f"{name} is a dataset of images; only those of tracklets are checked, such as HITSZVCM"
        )
    dataset, root = DATASET_REGISTRY.get(name), root or fastreid_build._root
    if issubclass(dataset, SyntheticVCM) and not os.path.isdir(
        os.path.join(root, dataset.dataset_dir)
    ):
        # it would be drawn, which takes minutes and is not what was asked for
        raise UserError(
            f"no {dataset.dataset_dir} in {root}: a training run that names {name} draws it"
        )
    return dataset(root=root, min_frames=1, check_frames=check_frames)


def splits(dataset: VideoDataset) -> dict[str, list[Tracklet]]:
    """The tracklets by split: ``train`` and ``test``, or ``query`` and ``gallery`` where each has both modalities."""
    modalities = [
        {tracklet.modality for tracklet in part} for part in (dataset.query, dataset.gallery)
    ]
    if modalities[0] & modalities[1]:
        return {
            "train": list(dataset.train),
            "query": list(dataset.query),
            "gallery": list(dataset.gallery),
        }
    return {"train": list(dataset.train), "test": [*dataset.query, *dataset.gallery]}


def check_dataset(
    dataset: VideoDataset,
    store: SkeletonStore | None = None,
    *,
    decode: bool = True,
    every: int = 1,
    workers: int = 1,
    progress: bool = False,
) -> DatasetCheck:
    """Look at all frames and skeletons of a dataset.

    Memory holds the tracklets, the problems and, with a store, its keys; images pass through the workers.

    Args:
        dataset: with the tracklets that are to be checked.
        store: the skeletons that belong to it; None: skeletons are not checked.
        decode: read every frame; False: only see that its file is there and not empty.
        every: look at every `every`-th frame.
        workers: processes that read. With more than one, a script needs the usual ``if __name__ == "__main__"``.
        progress: show how long it takes.

    Raises:
        UserError: a worker died, or a store that cannot be read.
    """
    parts = splits(dataset)
    work = _distinct(parts)
    result = DatasetCheck(
        name=type(dataset).__name__,
        folder=os.path.abspath(dataset.folder),
        counts=count_subsets(parts, published_counts(dataset)),
        tracklets=len(work),
        frames=sum(len(tracklet) for _, tracklet in work),
        decoded=decode,
        store="" if store is None else os.path.abspath(store.path),
    )
    groups: dict[tuple[Modality, int], SkeletonStats] = defaultdict(SkeletonStats)
    with progress_bar("frames", -(-result.frames // every), shown=progress) as bar:
        for found in check_frames(work, store, decode=decode, every=every, workers=workers):
            result.checked += found.checked
            result.sizes.update(found.sizes)
            result.problems += found.problems
            for group, stats in found.skeletons.items():
                groups[group] += stats
            bar.update(found.checked)
    result.skeletons = dict(sorted(groups.items()))
    if store is not None:
        with progress_bar("skeletons without frames", None, shown=progress) as bar:
            keys = store.keys(bar.update)
        result.stored = len(keys)
        result.problems += unused_skeletons(keys, [tracklet for _, tracklet in work])
    return result


def _distinct(parts: dict[str, list[Tracklet]]) -> list[tuple[str, Tracklet]]:
    """Every tracklet once, with the subset it was first met in: a query may be in the gallery too."""
    met: dict[tuple, tuple[str, Tracklet]] = {}
    for split, tracklets in parts.items():
        for tracklet in tracklets:
            met.setdefault(
                (tracklet.root, tracklet.frames),
                (f"{split} {tracklet.modality.name.lower()}", tracklet),
            )
    return list(met.values())


# --- counts ------------------------------------------------------------------------------------------------------


def published_counts(dataset: VideoDataset) -> dict[str, dict[str, int]]:
    """What is known of a dataset's size, by name of the subset; empty for datasets that nobody has published."""
    if type(dataset) is not HITSZVCM:
        return {}
    known = {
        f"{split} {modality.name.lower()}": dict(
            zip(("tracklets", "frames", "identities", "long"), counts, strict=True)
        )
        for (split, modality), counts in PUBLISHED.items()
    }
    for split, cameras in TRUE_CAMERAS.items():
        halves = [known[f"{split} {modality.name.lower()}"] for modality in Modality]
        known[split] = {
            name: sum(half[name] for half in halves) for name in ("tracklets", "frames", "long")
        }
        known[split] |= {"identities": halves[0]["identities"], "cameras": cameras}
    return known


def count_subsets(
    parts: dict[str, list[Tracklet]], published: dict[str, dict[str, int]] | None = None
) -> list[SubsetCounts]:
    """The sizes of each split: of its two modalities, then of the whole."""
    counts = []
    for split, tracklets in parts.items():
        for modality in (*Modality, None):
            chosen = [t for t in tracklets if modality in (None, t.modality)]
            name = split if modality is None else f"{split} {modality.name.lower()}"
            counts.append(
                SubsetCounts(
                    name=name,
                    tracklets=len(chosen),
                    frames=sum(map(len, chosen)),
                    identities=len({t.pid for t in chosen}),
                    long=sum(len(t) >= LONG for t in chosen),
                    cameras=len({t.camid for t in chosen}),
                    published=(published or {}).get(name, {}),
                )
            )
    return counts
