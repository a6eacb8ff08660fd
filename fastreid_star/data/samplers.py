"""The training batches: P identities x K clips x 2 modalities."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

from fastreid_star.data.clips import ClipRequest
from fastreid_star.errors import UserError
from fastreid_star.structures import Modality, Tracklet

# One independent stream of random numbers for each purpose. A request's seed has three numbers, and
# NumPy takes missing ones as 0, so a stream never equals a request's.
_IDENTITIES, _TRACKLETS = 1, 2


class CrossModalIdentitySampler(Sampler[list[ClipRequest]]):
    """Batches of P identities, K visible and K infrared tracklets of each.

    A batch is [visible; infrared]; both halves contain the same identities in the same order.
    Identities are drawn without replacement: a pass shuffles all N and cuts floor(N/P) batches.
    The tracklets of an identity and modality are drawn without replacement if there are K.

    The sampler is endless, and batch number b is a function of (seed, b) alone: :meth:`set_start`
    resumes a run at any batch. Each rank gets whole identities of the same global batch.

    Args:
        tracklets: the training set; requests refer to positions in it.
        num_identities: P, over all ranks.
        num_instances: K.
        seed: not negative.
        rank, world_size: number of this process, and of all processes.

    Raises:
        UserError: an identity with one modality only, P larger than the number of identities, or P
            that is not divisible by the number of ranks.
    """

    def __init__(
        self,
        tracklets: Sequence[Tracklet],
        *,
        num_identities: int,
        num_instances: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ):
        by_modality = {modality: _by_identity(tracklets, modality) for modality in Modality}
        visible, infrared = by_modality[Modality.VISIBLE], by_modality[Modality.INFRARED]
        self._check(visible.keys(), infrared.keys(), num_identities, num_instances, world_size)
        pids = sorted(visible)
        # visible half first
        self._tracklets = [[by_pid[pid] for pid in pids] for by_pid in (visible, infrared)]
        self.num_identities, self.num_instances = num_identities, num_instances
        self.seed, self.rank, self.world_size = seed, rank, world_size
        most = max(sum(map(len, half)) for half in self._tracklets)
        self.batches_per_epoch = math.ceil(most / (num_identities * num_instances))
        self._batches_per_pass = len(pids) // num_identities
        self._start = 0

    @staticmethod
    def _check(visible, infrared, num_identities: int, num_instances: int, world_size: int) -> None:
        lonely = sorted(set(visible) ^ set(infrared))
        if lonely:
            names = ", ".join(
                f"{pid} (only {'visible' if pid in visible else 'infrared'})" for pid in lonely[:5]
            )
            raise UserError(
                f"{len(lonely)} training identities have tracklets in one modality only: {names}"
                f"{' ...' if len(lonely) > 5 else ''}; lower DATASETS.MIN_FRAMES or remove them"
            )
        if len(visible) < 2:
            raise UserError(
                f"the training set has {len(visible)} identity: training needs at least 2"
            )
        if num_identities > len(visible):
            raise UserError(
                f"a batch of {num_identities} identities, but the training set has {len(visible)}: "
                f"set SOLVER.IMS_PER_BATCH to at most {2 * num_instances * len(visible)} "
                "(identities x DATALOADER.NUM_INSTANCE x 2 modalities)"
            )
        if num_identities % world_size:
            multiple = 2 * num_instances * world_size
            raise UserError(
                f"{num_identities} identities per batch do not divide among {world_size} "
                f"processes: set SOLVER.IMS_PER_BATCH to a multiple of {multiple}"
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
        """This rank's share of global batch `number`: 2 K P/world_size requests."""
        rng = np.random.default_rng((self.seed, number, 0, _TRACKLETS))
        identities = self._identities(number)
        share = self.num_identities // self.world_size
        mine = range(self.rank * share, (self.rank + 1) * share)
        requests, position = [], 0
        for half in self._tracklets:
            for place, identity in enumerate(identities):
                candidates = half[identity]
                repeat = len(candidates) < self.num_instances
                for chosen in rng.choice(len(candidates), self.num_instances, replace=repeat):
                    if place in mine:
                        seed = (self.seed, number, position)
                        requests.append(ClipRequest(candidates[chosen], seed))
                    position += 1
        return requests

    def _identities(self, number: int) -> np.ndarray:
        passes, place = divmod(number, self._batches_per_pass)
        rng = np.random.default_rng((self.seed, passes, 0, _IDENTITIES))
        order = rng.permutation(len(self._tracklets[0]))
        return order[place * self.num_identities : (place + 1) * self.num_identities]


def _by_identity(tracklets: Sequence[Tracklet], modality: Modality) -> dict[int, list[int]]:
    positions = defaultdict(list)
    for position, tracklet in enumerate(tracklets):
        if tracklet.modality == modality:
            positions[tracklet.pid].append(position)
    return positions
