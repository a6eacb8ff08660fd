"""The training batches: P identities x K clips, of each modality or of both together."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Sampler

from fastreid_star.data.clips import ClipRequest
from fastreid_star.errors import UserError
from fastreid_star.structures import Modality, Tracklet

# One independent stream of random numbers for each purpose. A request's seed has three numbers, and
# NumPy takes missing ones as 0, so a stream never equals a request's.
_IDENTITIES, _TRACKLETS = 1, 2


class EndlessSampler(Sampler[list[ClipRequest]]):
    """Batches without an end: batch number b is a function of (seed, b) alone.

    :meth:`set_start` resumes a run at any batch. Each rank gets whole identities of the same global
    batch.

    Attributes:
        modalities: in how many modalities an identity has K clips each in a batch.
        groups: how many times K clips an identity has in a batch, and `kinds`, in words.
        batches_per_epoch: set by a subclass.

    Args:
        num_identities: P, over all ranks.
        num_instances: K.
        seed: not negative.
        rank, world_size: number of this process, and of all processes.
    """

    modalities = groups = 1
    kinds = ""
    batches_per_epoch: int

    def __init__(
        self,
        *,
        num_identities: int,
        num_instances: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ):
        self.num_identities, self.num_instances = num_identities, num_instances
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self._start = 0

    def _check(self, known: int) -> None:
        """Raise a UserError where `known` identities give no batch."""
        clips = self.groups * self.num_instances
        if known < 2:
            raise UserError(f"the training set has {known} identity: training needs at least 2")
        if self.num_identities > known:
            raise UserError(
                f"a batch of {self.num_identities} identities, but the training set has {known}: "
                f"set SOLVER.IMS_PER_BATCH to at most {clips * known} "
                f"(identities x DATALOADER.NUM_INSTANCE{self.kinds})"
            )
        if self.num_identities % self.world_size:
            raise UserError(
                f"{self.num_identities} identities per batch do not divide among "
                f"{self.world_size} processes: set SOLVER.IMS_PER_BATCH to a multiple of "
                f"{clips * self.world_size}"
            )

    def set_start(self, batch: int, *, seed: int | None = None) -> None:
        """Begin the next iteration at this global batch number, as if earlier ones had been drawn.

        Args:
            batch: counted from 0 since the start of the run.
            seed: of the resumed run, if it differs from this sampler's.
        """
        self._start = batch
        self.seed = self.seed if seed is None else seed

    def __iter__(self) -> Iterator[list[ClipRequest]]:
        number = self._start
        while True:
            yield self.batch(number)
            number += 1

    def batch(self, number: int) -> list[ClipRequest]:
        """This rank's share of global batch `number`."""
        raise NotImplementedError(f"{type(self).__name__} does not implement batch()")

    @property
    def _mine(self) -> range:
        """The places of this rank's identities in the global batch."""
        share = self.num_identities // self.world_size
        return range(self.rank * share, (self.rank + 1) * share)


class CrossModalIdentitySampler(EndlessSampler):
    """Batches of P identities, K visible and K infrared tracklets of each.

    A batch is [visible; infrared]; both halves contain the same identities in the same order.
    Identities are drawn without replacement: a pass shuffles all N and cuts floor(N/P) batches.
    The tracklets of an identity and modality are drawn without replacement if there are K.

    Args:
        tracklets: the training set; requests refer to positions in it.
        options: see :class:`EndlessSampler`.

    Raises:
        UserError: an identity with one modality only, P larger than the number of identities, or P
            that is not divisible by the number of ranks.
    """

    modalities = groups = 2
    kinds = " x 2 modalities"

    def __init__(self, tracklets: Sequence[Tracklet], **options: int):
        super().__init__(**options)
        both = (Modality.VISIBLE, Modality.INFRARED)
        visible, infrared = (_by_identity(tracklets, modality) for modality in both)
        self._check_pairs(visible.keys(), infrared.keys())
        self._check(len(visible))
        pids = sorted(visible)
        # visible half first
        self._tracklets = [[by_pid[pid] for pid in pids] for by_pid in (visible, infrared)]
        most = max(sum(map(len, half)) for half in self._tracklets)
        self.batches_per_epoch = math.ceil(most / (self.num_identities * self.num_instances))
        self._batches_per_pass = len(pids) // self.num_identities

    @staticmethod
    def _check_pairs(visible, infrared) -> None:
        lonely = sorted(set(visible) ^ set(infrared))
        if lonely:
            names = ", ".join(
                f"{pid} (only {'visible' if pid in visible else 'infrared'})" for pid in lonely[:5]
            )
            raise UserError(
                f"{len(lonely)} training identities have tracklets in one modality only: {names}"
                f"{' ...' if len(lonely) > 5 else ''}; lower DATASETS.MIN_FRAMES or remove them"
            )

    def batch(self, number: int) -> list[ClipRequest]:
        """This rank's share of global batch `number`: 2 K P/world_size requests."""
        rng = np.random.default_rng((self.seed, number, 0, _TRACKLETS))
        identities = self._identities(number)
        requests, position = [], 0
        for half in self._tracklets:
            for place, identity in enumerate(identities):
                candidates = half[identity]
                repeat = len(candidates) < self.num_instances
                for chosen in rng.choice(len(candidates), self.num_instances, replace=repeat):
                    if place in self._mine:
                        seed = (self.seed, number, position)
                        requests.append(ClipRequest(candidates[chosen], seed))
                    position += 1
        return requests

    def _identities(self, number: int) -> np.ndarray:
        passes, place = divmod(number, self._batches_per_pass)
        rng = np.random.default_rng((self.seed, passes, 0, _IDENTITIES))
        order = rng.permutation(len(self._tracklets[0]))
        return order[place * self.num_identities : (place + 1) * self.num_identities]


class SecondViewSampler(CrossModalIdentitySampler):
    """Batches of :class:`CrossModalIdentitySampler` with a second view of each visible clip.

    A batch is [visible; the same tracklets again; infrared]. The second view has frames, crop and
    flip of its own. Augmentations find it by the `view` of its request.
    """

    groups = 3
    kinds = " x 3 (visible twice, infrared once)"

    def batch(self, number: int) -> list[ClipRequest]:
        """This rank's share of global batch `number`: 3 K P/world_size requests."""
        requests = super().batch(number)
        visible, infrared = requests[: len(requests) // 2], requests[len(requests) // 2 :]
        offset = 2 * self.num_identities * self.num_instances  # seeds that no other request has
        again = [
            ClipRequest(index, (*seed[:2], seed[2] + offset), view=1) for index, seed, _ in visible
        ]
        return [*visible, *again, *infrared]


class IdentitySampler(EndlessSampler):
    """Batches of P identities with K tracklets each, regardless of modality.

    As fast-reid's NaiveIdentitySampler. A pass deals the tracklets of each identity, shuffled, into
    groups of K; those left over sit out this pass, and an identity with fewer than K tracklets has
    one group, drawn with replacement. A batch takes a group of each of P random identities that
    have one, until fewer than P have one. So nearly every tracklet has its turn once in a pass.

    Args:
        tracklets: the training set; requests refer to positions in it.
        options: see :class:`EndlessSampler`.

    Raises:
        UserError: P larger than the number of identities, or P that is not divisible by the number
            of ranks.
    """

    def __init__(self, tracklets: Sequence[Tracklet], **options: int):
        super().__init__(**options)
        self._tracklets = _by_identity(tracklets)
        self._check(len(self._tracklets))
        groups = (max(len(of) // self.num_instances, 1) for of in self._tracklets.values())
        self.batches_per_epoch = sum(groups) // self.num_identities
        self._pass: list[list[np.ndarray]]  # the batches of the current pass
        self._restart()

    def set_start(self, batch: int, *, seed: int | None = None) -> None:
        super().set_start(batch, seed=seed)
        self._restart()

    def batch(self, number: int) -> list[ClipRequest]:
        """This rank's share of global batch `number`: K P/world_size requests, by identity."""
        if number < self._first:
            self._restart()
        while number >= self._first + len(self._pass):
            self._first += len(self._pass)
            self._passes += 1
            self._pass = self._draw(self._passes)
        first = self._mine[0] * self.num_instances
        groups = self._pass[number - self._first][self._mine[0] : self._mine[-1] + 1]
        indices = np.concatenate(groups).tolist()
        return [
            ClipRequest(index, (self.seed, number, position))
            for position, index in enumerate(indices, start=first)
        ]

    def _restart(self) -> None:
        self._first, self._passes, self._pass = 0, 0, self._draw(0)

    def _draw(self, number: int) -> list[list[np.ndarray]]:
        """The batches of a pass: P groups of K positions each."""
        rng = np.random.default_rng((self.seed, number, 0, _IDENTITIES))
        size, groups = self.num_instances, {}
        for pid in sorted(self._tracklets):
            positions = np.array(self._tracklets[pid])
            if len(positions) < size:
                positions = rng.choice(positions, size)
            dealt = rng.permutation(positions)[: len(positions) // size * size]
            groups[pid] = list(dealt.reshape(-1, size))
        batches = []
        while len(groups) >= self.num_identities:
            chosen = rng.choice(list(groups), self.num_identities, replace=False).tolist()
            batches.append([groups[pid].pop() for pid in chosen])
            groups = {pid: of for pid, of in groups.items() if of}
        return batches


def _by_identity(
    tracklets: Sequence[Tracklet], modality: Modality | None = None
) -> dict[int, list[int]]:
    """Positions of the tracklets of each identity, of one modality or of both."""
    positions = defaultdict(list)
    for position, tracklet in enumerate(tracklets):
        if modality in (None, tracklet.modality):
            positions[tracklet.pid].append(position)
    return positions


# DATALOADER.SAMPLER_TRAIN: fast-reid's default, and its P identities x K
SAMPLERS = {
    "TrainingSampler": CrossModalIdentitySampler,
    "NaiveIdentitySampler": IdentitySampler,
    "SecondViewSampler": SecondViewSampler,
}


def identities_per_batch(cfg) -> int:
    """P over all processes: SOLVER.IMS_PER_BATCH is P x DATALOADER.NUM_INSTANCE x 2 modalities, x 3
    with a second view, or x 1 where the sampler does not distinguish the modalities.

    Raises:
        UserError: it is not divisible, or clips have no such sampler.
    """
    clips, instances = cfg.SOLVER.IMS_PER_BATCH, cfg.DATALOADER.NUM_INSTANCE
    kind = sampler_class(cfg)
    if instances < 1 or clips < 1 or clips % (kind.groups * instances):
        raise UserError(
            f"SOLVER.IMS_PER_BATCH {clips} is not identities x DATALOADER.NUM_INSTANCE {instances}"
            f"{kind.kinds}: set it to a multiple of {kind.groups * max(1, instances)}"
        )
    return clips // (kind.groups * instances)


def sampler_class(cfg) -> type[EndlessSampler]:
    """The sampler that DATALOADER.SAMPLER_TRAIN names.

    Raises:
        UserError: clips have no such sampler.
    """
    name = cfg.DATALOADER.SAMPLER_TRAIN
    if name not in SAMPLERS:
        raise UserError(
            f"DATALOADER.SAMPLER_TRAIN is {name}: for clips choose TrainingSampler (identities x "
            "NUM_INSTANCE x 2 modalities), SecondViewSampler (with each visible clip twice) or "
            "NaiveIdentitySampler (identities x NUM_INSTANCE)"
        )
    return SAMPLERS[name]


def build_sampler(
    cfg, tracklets: Sequence[Tracklet], *, seed: int, rank: int = 0, world_size: int = 1
) -> EndlessSampler:
    """The sampler of the training batches; the other arguments are those of the loader.

    Raises:
        UserError: these tracklets do not give a batch of this size.
    """
    sampler: Any = sampler_class(cfg)
    return sampler(
        tracklets,
        num_identities=identities_per_batch(cfg),
        num_instances=cfg.DATALOADER.NUM_INSTANCE,
        seed=seed,
        rank=rank,
        world_size=world_size,
    )
