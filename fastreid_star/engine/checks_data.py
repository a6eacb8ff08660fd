"""What a look into the data tells before a run: it is there, it is of one kind, and batches can be made of it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

import numpy as np

from fastreid_star.data.build import build_sampler, join_tracklets, open_store, shown_with
from fastreid_star.data.io import BrokenImage, read_frame
from fastreid_star.data.skeleton_stats import what_is_wrong
from fastreid_star.data.skeletons import SkeletonStore
from fastreid_star.engine.checks_config import milestones
from fastreid_star.engine.job import Check, Job, Problem
from fastreid_star.engine.solver import resolve_schedule
from fastreid_star.errors import UserError
from fastreid_star.structures import Tracklet

SAMPLE = (
    20  # tracklets looked up, of thousands: a folder that is missing shows, and it takes no time
)


def datasets(job: Job) -> Iterator[Problem]:
    """Datasets that cannot be opened."""
    for outcome in job.opened.values():
        if isinstance(outcome, UserError):
            yield Problem(str(outcome))


def frames(job: Job) -> Iterator[Problem]:
    """Tracklets whose files are not where the lists say."""
    for data in job.datasets(job.dataset_names):
        for split, tracklets in _splits(job, data):
            sample = spread(tracklets, SAMPLE)
            gone = [
                t
                for t in sample
                if not any(os.path.isfile(t.path(index)) for index in (0, len(t) // 2, -1))
            ]
            if gone:
                yield Problem(
                    f"{len(gone)} of {len(sample)} {split} tracklets looked up in {data.folder} have no images, such "
                    f"as {gone[0].path(0)}: copy what is missing; tools/check_dataset.py names it all"
                )


def stores(job: Job) -> Iterator[Problem]:
    """Skeleton stores that cannot be opened, know nothing of the data, or are of frames of another size."""
    for data in job.datasets(job.dataset_names):
        try:
            store = open_store(job.cfg, data)
        except UserError as error:
            yield Problem(str(error))
            continue
        if store is not None:
            splits = _splits(job, data)
            yield from misplaced(
                store, [tracklet for _, whole in splits for tracklet in spread(whole, SAMPLE)]
            )
            store.close()


def misplaced(store: SkeletonStore, sample: list[Tracklet]) -> Iterator[Problem]:
    """Skeletons of which most cannot be of their frames."""
    found = []
    for tracklet in sample:
        joints, present = store.read([tracklet.key(0)])
        try:
            size = read_frame(tracklet.path(0)).shape[:2] if present[0] else None
        except (BrokenImage, OSError):  # is looked for elsewhere
            size = None
        if size is not None:
            found.append(what_is_wrong(joints[0, :, :2].astype(np.float64), np.array(size)))
    wrong = [text for text in found if text]
    if len(wrong) > len(found) / 2:
        text = f"{len(wrong)} of {len(found)} skeletons looked up in {store.path} do not fit their frames; the first: "
        yield Problem(f"{text}{wrong[0]} See tools/check_dataset.py", fatal=False)


def batches(job: Job) -> Iterable[Problem]:
    """Fewer identities than a batch takes, milestones inside the warm-up, or no other skeletons to show."""
    cfg, names = job.cfg, job.cfg.DATASETS.NAMES
    data = job.datasets(names)
    if not job.training or not data or len(data) < len(names):
        return ()
    tracklets = join_tracklets(data)
    sampler = build_sampler(cfg, tracklets, seed=0, world_size=job.world_size)
    if not any(problem.fatal for problem in milestones(job)):
        resolve_schedule(cfg, sampler.batches_per_epoch)
    return _others("SKELETONS_TRAIN", cfg, tracklets)


def test_skeletons(job: Job) -> Iterator[Problem]:
    """No other skeletons to show in testing."""
    for data in job.datasets(job.cfg.DATASETS.TESTS):
        yield from _others("SKELETONS_TEST", job.cfg, [*data.query, *data.gallery])


CHECKS: tuple[Check, ...] = (datasets, frames, stores, batches, test_skeletons)


def spread(tracklets: list[Tracklet], count: int) -> list[Tracklet]:
    """At most `count` of them, from the first to the last."""
    if len(tracklets) <= count:
        return tracklets
    return [tracklets[round(position)] for position in np.linspace(0, len(tracklets) - 1, count)]


def _splits(job: Job, data) -> list[tuple[str, list[Tracklet]]]:
    """The parts of a dataset that the run reads."""
    read = []
    if job.training and data in job.datasets(job.cfg.DATASETS.NAMES):
        read.append(("training", list(data.train)))
    if data in job.datasets(job.cfg.DATASETS.TESTS):
        read.append(("test", [*data.query, *data.gallery]))
    return read


def _others(key: str, cfg, tracklets: list[Tracklet]) -> Iterable[Problem]:
    value = cfg.DATASETS[key]
    if value == "other":
        shown_with(key, value, cfg.DATASETS.SKELETONS or None, tracklets)
    return ()
