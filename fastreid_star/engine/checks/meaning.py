"""Checks of a run that works, but whose results may not be what its user wants."""

from __future__ import annotations

from collections.abc import Iterator

from fastreid_star.data.build import join_tracklets
from fastreid_star.data.check import shared_identities
from fastreid_star.data.samplers import build_sampler
from fastreid_star.engine.checks.run import Problem, Run
from fastreid_star.engine.solver import resolve_schedule


def separation(run: Run) -> Iterator[Problem]:
    """A dataset of clips that trains and tests with the same identities."""
    cfg = run.cfg
    if not (run.training and run.video) or cfg.DATASETS.COMBINEALL:
        return
    both = set(map(str, cfg.DATASETS.NAMES)) & set(map(str, cfg.DATASETS.TESTS))
    for data in run.datasets(sorted(both)):
        for text in shared_identities(data.train, [*data.query, *data.gallery]):
            yield Problem(f"{data.folder}: {text}", fatal=False)


def clip_length(run: Run) -> Iterator[Problem]:
    """Clips that are longer than every tracklet, as of single images."""
    length = run.cfg.INPUT.CLIP.LENGTH
    data = run.datasets(run.dataset_names) if run.video else []
    lengths = [len(t) for d in data for part in (d.train, d.query, d.gallery) for t in part]
    if lengths and length > max(lengths):
        yield Problem(
            f"INPUT.CLIP.LENGTH is {length}, but the longest tracklet has {max(lengths)} frames: "
            f"clips repeat frames and take the time of {length}; set it to {max(lengths)} or less",
            fatal=False,
        )


def warm_up(run: Run) -> Iterator[Problem]:
    """A warm-up that is longer than the run."""
    cfg, data = run.cfg, run.datasets(run.cfg.DATASETS.NAMES)
    if not (run.training and run.video) or len(data) < len(set(map(str, cfg.DATASETS.NAMES))):
        return
    sampler = build_sampler(cfg, join_tracklets(data), seed=0, world_size=run.world_size)
    warm = resolve_schedule(cfg, sampler.batches_per_epoch).SOLVER.WARMUP_ITERS
    steps = cfg.SOLVER.MAX_EPOCH * sampler.batches_per_epoch
    if warm >= steps > 0:
        yield Problem(
            f"the warm-up has {warm} steps, the run has {steps}: SOLVER.BASE_LR is never reached; "
            "shorten SOLVER.WARMUP_ITERS or WARMUP_EPOCHS",
            fatal=False,
        )
