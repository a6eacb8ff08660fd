import itertools
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from fastreid_star.data.samplers import (
    CrossModalIdentitySampler,
    IdentitySampler,
    SecondViewSampler,
)
from fastreid_star.errors import UserError
from fastreid_star.structures import Modality, Tracklet


def make_tracklets(identities=10, visible=3, infrared=2):
    """In an order that has nothing to do with identities."""
    tracklets = [
        Tracklet(pid, 1, modality, "root", (f"{pid}/{modality}/{number}.jpg",))
        for pid in range(100, 100 + identities)
        for modality, count in ((Modality.VISIBLE, visible), (Modality.INFRARED, infrared))
        for number in range(count)
    ]
    return [tracklets[i] for i in np.random.default_rng(0).permutation(len(tracklets))]


TRACKLETS = make_tracklets()
KINDS = [CrossModalIdentitySampler, IdentitySampler, SecondViewSampler]


def sampler(tracklets=TRACKLETS, p=4, k=2, seed=0, kind=CrossModalIdentitySampler, **options):
    return kind(tracklets, num_identities=p, num_instances=k, seed=seed, **options)


def take(batches, count):
    return list(itertools.islice(batches, count))


@pytest.mark.parametrize(("p", "k"), [(4, 2), (3, 1), (10, 3), (1, 2)])
def test_composition(p, k):
    for batch in take(sampler(p=p, k=k), 20):
        assert len(batch) == 2 * p * k
        chosen = [TRACKLETS[request.index] for request in batch]
        half = p * k
        assert {t.modality for t in chosen[:half]} == {Modality.VISIBLE}
        assert {t.modality for t in chosen[half:]} == {Modality.INFRARED}
        pids = [t.pid for t in chosen]
        assert pids[:half] == pids[half:]  # the same identities in the same order
        assert pids[:half] == [pid for pid in pids[:half:k] for _ in range(k)]
        assert len(set(pids)) == p  # none twice


def test_tracklets_without_replacement_where_there_are_enough():
    """3 visible tracklets for 3 clips: each once. 2 infrared ones: some twice, at random."""
    patterns = set()
    for batch in take(sampler(p=5, k=3), 50):
        indices = [request.index for request in batch]
        assert len(set(indices[:15])) == 15
        patterns |= {tuple(Counter(indices[i : i + 3]).values()) for i in range(15, 30, 3)}
    assert {(3,), (2, 1)} <= patterns


@pytest.mark.parametrize("kind", KINDS)
def test_every_tracklet_gets_its_turn(kind):
    seen = {request.index for batch in take(sampler(kind=kind), 200) for request in batch}
    assert seen == set(range(len(TRACKLETS)))


def identities(batch):
    return [TRACKLETS[request.index].pid for request in batch[: len(batch) // 2 : 2]]


def test_identities_without_replacement_within_a_pass():
    """10 identities, 4 per batch: two batches per pass with 8 different identities."""
    batches = take(sampler(), 40)
    left_over = set()
    for first, second in zip(batches[::2], batches[1::2], strict=True):
        drawn = set(identities(first)) | set(identities(second))
        assert len(drawn) == 8
        left_over |= set(range(100, 110)) - drawn
    assert left_over == set(range(100, 110))


def test_length_of_an_epoch():
    assert sampler().batches_per_epoch == 4  # 30 visible tracklets, 8 a batch
    assert sampler(make_tracklets(visible=2, infrared=5)).batches_per_epoch == 7  # 50 infrared ones
    assert sampler(p=5, k=3).batches_per_epoch == 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_function_of_the_seed(kind):
    assert take(sampler(seed=3, kind=kind), 12) == take(sampler(seed=3, kind=kind), 12)
    assert take(sampler(seed=3, kind=kind), 12) != take(sampler(seed=4, kind=kind), 12)


@pytest.mark.parametrize("kind", KINDS)
def test_each_request_has_a_seed_of_its_own(kind):
    batches = take(sampler(seed=7, kind=kind), 10)
    seeds = [request.seed for batch in batches for request in batch]
    assert len(set(seeds)) == len(seeds)
    assert seeds[:2] == [(7, 0, 0), (7, 0, 1)]
    assert seeds[len(batches[0])] == (7, 1, 0)


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_share_one_global_batch(world_size):
    ranks = [sampler(rank=rank, world_size=world_size) for rank in range(world_size)]
    for whole, *parts in zip(take(sampler(), 9), *(take(rank, 9) for rank in ranks), strict=True):
        assert sorted(request for part in parts for request in part) == sorted(whole)
        pids = [{TRACKLETS[request.index].pid for request in part} for part in parts]
        assert sum(map(len, pids)) == 4  # whole identities, each on one rank
        for part in parts:
            assert len(part) == 16 // world_size
            tracklets = [TRACKLETS[request.index] for request in part]
            visible, infrared = tracklets[: len(part) // 2], tracklets[len(part) // 2 :]
            assert [t.pid for t in visible] == [t.pid for t in infrared]
            assert {t.modality for t in visible} == {Modality.VISIBLE}
            assert {t.modality for t in infrared} == {Modality.INFRARED}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("start", [0, 1, 37, 49])
def test_set_start_is_skipping(start, kind):
    resumed = sampler(seed=1, kind=kind)
    take(resumed, 50)
    resumed.set_start(start, seed=8)
    assert take(resumed, 5) == take(sampler(seed=8, kind=kind), start + 5)[start:]
    assert resumed.batch(0) == take(sampler(seed=8, kind=kind), 1)[0]


# --- visible clips twice


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_batch_has_each_visible_clip_again_with_another_seed(world_size):
    seeds = []
    for rank in range(world_size):
        place = {"rank": rank, "world_size": world_size}
        twice = sampler(kind=SecondViewSampler, **place).batch(5)
        once = sampler(**place).batch(5)
        n = len(once) // 2
        assert [*twice[:n], *twice[2 * n :]] == once  # the first views and infrared
        assert [request.index for request in twice[n : 2 * n]] == [r.index for r in once[:n]]
        assert [request.view for request in twice] == [0] * n + [1] * n + [0] * n
        seeds += [request.seed for request in twice]
    assert len(set(seeds)) == len(seeds) == 24  # on both ranks together
    assert {seed[:2] for seed in seeds} == {(0, 5)}


# --- identities x tracklets, regardless of modality -------------------------------------------------


def together(*args, **options):
    return sampler(*args, kind=IdentitySampler, **options)


def chosen(batch, tracklets=TRACKLETS):
    return [tracklets[request.index] for request in batch]


def test_a_batch_has_p_identities_and_k_different_tracklets_of_each():
    kinds = set()
    for batch in take(together(k=3), 30):
        pids = [tracklet.pid for tracklet in chosen(batch)]
        assert pids == [pid for pid in pids[::3] for _ in range(3)]
        assert len(set(pids)) == 4
        assert len({request.index for request in batch}) == 12
        of = [tracklet.modality for tracklet in chosen(batch)]
        kinds |= {tuple(sorted(of[place : place + 3])) for place in range(0, 12, 3)}
    assert {(1, 1, 2), (1, 2, 2), (2, 2, 2)} <= kinds, "modalities as they come"


def test_a_pass_has_each_tracklet_at_most_once():
    """10 identities with 5 tracklets each: 2 groups of 2, so at most 5 batches of 4 identities."""
    for seed in range(5):
        batches = take(together(seed=seed), 20)
        first = next(
            number
            for number in range(1, 20)
            if {r.index for r in batches[number]} & {r.index for b in batches[:number] for r in b}
        )
        assert first in (4, 5), "a pass ends where fewer than 4 identities have a group"
    assert together().batches_per_epoch == 5
    assert together(p=3).batches_per_epoch == 6


def test_identities_come_as_often_as_they_have_tracklets():
    many = make_tracklets(identities=2, visible=20, infrared=20)
    tracklets = [*TRACKLETS, *(replace(t, pid=t.pid + 100) for t in many)]
    batches = take(together(tracklets, p=2), 300)
    counts = Counter(t.pid for batch in batches for t in chosen(batch, tracklets))
    assert min(counts[200], counts[201]) > 5 * max(counts[pid] for pid in range(100, 110))


def test_few_tracklets_and_one_modality():
    lonely = [Tracklet(7, 1, Modality.INFRARED, "root", ("a.jpg",)), *TRACKLETS]
    batches = take(together(lonely, k=4), 30)
    seen = [pids for pids in ([t.pid for t in chosen(b, lonely)] for b in batches) if 7 in pids]
    assert seen
    assert all(pids.count(7) == 4 for pids in seen)


def test_ranks_share_the_identities_of_a_batch():
    ranks = [together(rank=rank, world_size=2) for rank in range(2)]
    for whole, *parts in zip(take(together(), 9), *(take(rank, 9) for rank in ranks), strict=True):
        assert parts[0] + parts[1] == whole
        assert len(parts[0]) == len(parts[1])


LONELY = [*TRACKLETS, Tracklet(7, 1, Modality.INFRARED, "root", ("a.jpg",))]
ONE = [t for t in TRACKLETS if t.pid == TRACKLETS[0].pid]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"p": 11}, r"11 identities, .* 10: .*IMS_PER_BATCH to at most 40"),
        ({"world_size": 3}, r"4 identities .* 3 processes: .* multiple of 12"),
        ({"tracklets": LONELY}, r"1 training identities .*: 7 \(only infrared\); lower"),
        ({"tracklets": ONE, "p": 1}, "1 identity: training needs at least 2"),
    ],
)
def test_lists_that_give_no_batch(options, message):
    with pytest.raises(UserError, match=message):
        sampler(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"p": 11}, r"11 identities, .* 10: .*IMS_PER_BATCH to at most 20 .*NUM_INSTANCE\)"),
        ({"world_size": 3}, r"4 identities .* 3 processes: .* multiple of 6"),
        ({"tracklets": ONE, "p": 1}, "1 identity: training needs at least 2"),
    ],
)
def test_lists_that_give_no_batch_of_both_modalities(options, message):
    with pytest.raises(UserError, match=message):
        together(**options)
