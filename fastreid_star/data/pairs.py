"""Batches of aligned pairs, and batches with a second half from an auxiliary set.

Both change the batches of another sampler. What they draw is a function of the seeds of its
requests, so a run resumes as exactly as without them.

P identities of a batch, K clips of each in each modality.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from fastreid.config import CfgNode
from torch.utils.data import Sampler

from fastreid_star.data.clips import ClipRequest
from fastreid_star.data.samplers import CrossModalIdentitySampler
from fastreid_star.errors import UserError
from fastreid_star.structures import Modality, Tracklet

# Streams of random numbers beside those of the other sampler, of skeletons and of requests.
_PAIRS, _AUXILIARY = 4, 5


class _Following(Sampler[list[ClipRequest]]):
    """Batches that follow from those of `base`, whose length of an epoch and start they have."""

    def __init__(self, base: Any):
        self.base = base

    @property
    def batches_per_epoch(self) -> int:
        return self.base.batches_per_epoch

    def set_start(self, batch: int, *, seed: int | None = None) -> None:
        """See :class:`~fastreid_star.data.samplers.CrossModalIdentitySampler`."""
        self.base.set_start(batch, seed=seed)

    def __iter__(self) -> Iterator[list[ClipRequest]]:
        return map(self.follow, self.base)

    def follow(self, requests: list[ClipRequest]) -> list[ClipRequest]:
        """The batch in place of `requests`, which are [visible; infrared]."""
        raise NotImplementedError(f"{type(self).__name__} does not implement follow()")


class PairSampler(_Following):
    """The identities of another sampler, with pairs of tracklets that are aligned frame by frame.

    A pair is a visible and an infrared tracklet of one identity and camera, the n-th of each. Each
    identity has K pairs, of different cameras if it has K. Both clips of a pair have the same seed:
    they show the same frames, with the same crop and flip.

    Args:
        base: a sampler of [visible; infrared] batches.
        tracklets: the training set of `base`.
        num_instances: K.

    Raises:
        UserError: the tracklets are not pairs.
    """

    def __init__(self, base: Any, tracklets: Sequence[Tracklet], *, num_instances: int):
        super().__init__(base)
        self._pids = [tracklet.pid for tracklet in tracklets]
        self._pairs = _pairs(tracklets)
        self.num_instances = num_instances

    def follow(self, requests: list[ClipRequest]) -> list[ClipRequest]:
        visible = requests[: len(requests) // 2]
        chosen: list[tuple[int, int]] = []
        for request in visible[:: self.num_instances]:
            pid = self._pids[request.index]
            rng = np.random.default_rng((*request.seed[:2], abs(pid), _PAIRS))
            cameras = self._pairs[pid]
            repeat = len(cameras) < self.num_instances
            for camera in rng.choice(list(cameras), self.num_instances, replace=repeat).tolist():
                pairs = cameras[camera]
                chosen.append(pairs[rng.integers(len(pairs))])
        seeds = [request.seed for request in visible]
        return [
            ClipRequest(pair[side], seed)
            for side in (0, 1)
            for pair, seed in zip(chosen, seeds, strict=True)
        ]


class AuxiliarySampler(_Following):
    """The batches of another sampler, each followed by as many clips of an auxiliary set.

    The second half has K cameras with P identities each, and one visible and one infrared tracklet
    of each identity: [visible; infrared], too. A camera is drawn as often as it has identities. An
    identity belongs to the camera of its first visible tracklet.

    Args:
        base: a sampler of [visible; infrared] batches.
        auxiliary: the tracklets; requests refer to positions in them, plus `offset`.
        offset: number of training tracklets.
        num_identities, num_instances: P over all ranks, and K.
        pairs: the tracklets of an identity are a pair, see :class:`PairSampler`.
        rank, world_size: number of this process, and of all processes.

    Raises:
        UserError: an identity with one modality only, no camera with P identities, or tracklets
            that are not pairs.
    """

    def __init__(
        self,
        base: Any,
        auxiliary: Sequence[Tracklet],
        *,
        offset: int,
        num_identities: int,
        num_instances: int,
        pairs: bool,
        rank: int = 0,
        world_size: int = 1,
    ):
        super().__init__(base)
        self._tracklets: list[dict[int, list[int]]] = [defaultdict(list), defaultdict(list)]
        cameras: dict[int, list[int]] = defaultdict(list)
        for position, tracklet in enumerate(auxiliary):
            visible = tracklet.modality == Modality.VISIBLE
            if visible and tracklet.pid not in self._tracklets[0]:
                cameras[tracklet.camid].append(tracklet.pid)
            self._tracklets[0 if visible else 1][tracklet.pid].append(position)
        lonely = self._tracklets[0].keys() ^ self._tracklets[1].keys()
        if lonely:
            raise UserError(
                f"DATASETS.AUXILIARY: {len(lonely)} of its identities have tracklets in one "
                "modality only; lower DATASETS.MIN_FRAMES or remove them"
            )
        self._cameras = [pids for pids in cameras.values() if len(pids) >= num_identities]
        if not self._cameras:
            raise UserError(
                f"DATASETS.AUXILIARY: no camera has the {num_identities} identities of a batch "
                f"(at most {max(map(len, cameras.values()), default=0)}): lower "
                "SOLVER.IMS_PER_BATCH"
            )
        self._pairs = PairSampler(None, auxiliary, num_instances=1) if pairs else None
        self._offset, self._size = offset, (num_identities, num_instances)
        share = num_identities // world_size
        self._mine = slice(rank * share, (rank + 1) * share)

    def follow(self, requests: list[ClipRequest]) -> list[ClipRequest]:
        seed, number = requests[0].seed[:2]
        count, cameras = self._size
        rng = np.random.default_rng((seed, number, 0, _AUXILIARY))
        sizes = np.array([len(pids) for pids in self._cameras])
        repeat = len(sizes) < cameras
        drawn = rng.choice(len(sizes), cameras, replace=repeat, p=sizes / sizes.sum())
        pids = np.stack([rng.choice(self._cameras[c], count, replace=False) for c in drawn])
        first = 2 * count * cameras  # the seeds of the primary half end before
        seeds = (first + np.arange(2 * pids.size)).reshape(2, *pids.shape)[..., self._mine]
        mine = pids[:, self._mine].ravel().tolist()
        chosen = [
            ClipRequest(int(rng.choice(half[pid])), (seed, number, position))
            for half, positions in zip(self._tracklets, seeds, strict=True)
            for pid, position in zip(mine, positions.ravel().tolist(), strict=True)
        ]
        if self._pairs is not None:
            chosen = self._pairs.follow(chosen)
        moved = [request._replace(index=request.index + self._offset) for request in chosen]
        return [*requests, *moved]


def build_pairs(
    cfg: CfgNode,
    sampler: Any,
    tracklets: Sequence[Tracklet],
    auxiliary: Sequence[Tracklet],
    *,
    num_identities: int,
    rank: int,
    world_size: int,
) -> Any:
    """The batches of `sampler`, changed by DATALOADER.PAIRS and followed by the auxiliary set's.

    Args:
        cfg: DATALOADER is read.
        sampler: of `tracklets`.
        auxiliary: tracklets whose positions follow those of `tracklets`; may be empty.
        num_identities: P over all ranks.
        rank, world_size: number of this process, and of all processes.

    Raises:
        UserError: see :class:`PairSampler` and :class:`AuxiliarySampler`; or `sampler` mixes the
            modalities.
    """
    instances, pairs = cfg.DATALOADER.NUM_INSTANCE, cfg.DATALOADER.PAIRS
    if (pairs or auxiliary) and type(sampler) is not CrossModalIdentitySampler:
        raise UserError(
            "DATALOADER.PAIRS and DATASETS.AUXILIARY need batches of both modalities, one view "
            "each: set DATALOADER.SAMPLER_TRAIN TrainingSampler"
        )
    if pairs:
        sampler = PairSampler(sampler, tracklets, num_instances=instances)
    if auxiliary:
        sampler = AuxiliarySampler(
            sampler,
            auxiliary,
            offset=len(tracklets),
            num_identities=num_identities,
            num_instances=instances,
            pairs=pairs,
            rank=rank,
            world_size=world_size,
        )
    return sampler


def as_auxiliary(tracklets: Sequence[Tracklet]) -> list[Tracklet]:
    """The tracklets with the identities -1, -2, ...: they are no classes."""
    numbers = {pid: -1 - n for n, pid in enumerate(sorted({t.pid for t in tracklets}))}
    return [replace(tracklet, pid=numbers[tracklet.pid]) for tracklet in tracklets]


def _pairs(tracklets: Sequence[Tracklet]) -> dict[int, dict[int, list[tuple[int, int]]]]:
    """The positions of both tracklets of each pair, by identity and camera."""
    found: dict[tuple[int, int], tuple[list[int], list[int]]] = {}
    for position, tracklet in enumerate(tracklets):
        sides = found.setdefault((tracklet.pid, tracklet.camid), ([], []))
        sides[0 if tracklet.modality == Modality.VISIBLE else 1].append(position)
    pairs: dict[int, dict[int, list[tuple[int, int]]]] = defaultdict(dict)
    for (pid, camera), (visible, infrared) in found.items():
        lengths = [[len(tracklets[position]) for position in side] for side in (visible, infrared)]
        if lengths[0] != lengths[1]:
            raise UserError(
                f"DATALOADER.PAIRS True needs visible and infrared tracklets that are aligned, but "
                f"identity {pid} has {lengths[0]} and {lengths[1]} frames under camera {camera}: "
                "set it to False for this dataset"
            )
        pairs[pid][camera] = list(zip(visible, infrared, strict=True))
    return dict(pairs)
