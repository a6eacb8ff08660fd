"""Batches with an auxiliary half: their cameras, their ranks; and clips of random frames."""

import itertools
from collections import Counter

import numpy as np
import pytest

from fastreid_star.data.clips import frame_indices
from fastreid_star.data.pairs import AuxiliarySampler, PairSampler, as_auxiliary, build_pairs
from fastreid_star.data.samplers import CrossModalIdentitySampler, IdentitySampler
from fastreid_star.engine.configs import load_config
from fastreid_star.errors import UserError
from fastreid_star.structures import Modality, Tracklet


def tracklets(pids, camera_of, count=1):
    return [
        Tracklet(pid, camera_of(pid), modality, "", (f"{pid}/{modality}/{n}.jpg",))
        for pid in pids
        for modality in Modality
        for n in range(count)
    ]


PRIMARY = tracklets(range(10), lambda pid: pid % 2, count=2)
# camera 0 has eight identities, camera 1 four, camera 2 two, which are too few
AUXILIARY = as_auxiliary(tracklets(range(50, 64), lambda pid: (pid >= 58) + (pid >= 62)))
CAMERAS = {tracklet.pid: tracklet.camid for tracklet in AUXILIARY}


def sampler(rank=0, world_size=1, pairs=False, k=2):
    size = {"num_identities": 4, "num_instances": k, "rank": rank, "world_size": world_size}
    base = CrossModalIdentitySampler(PRIMARY, seed=0, **size)
    return AuxiliarySampler(base, AUXILIARY, offset=len(PRIMARY), pairs=pairs, **size)


def test_the_auxiliary_half_has_two_cameras_of_four_identities():
    everything = [*PRIMARY, *AUXILIARY]
    drawn = Counter()
    base = CrossModalIdentitySampler(PRIMARY, seed=0, num_identities=4, num_instances=2)
    for requests, own in itertools.islice(zip(sampler(), base, strict=True), 50):
        assert requests[:16] == own
        half = [everything[request.index] for request in requests[16:]]
        assert len(half) == 16
        assert [int(t.modality) for t in half] == [2] * 8 + [1] * 8
        assert [t.pid for t in half[:8]] == [t.pid for t in half[8:]]
        assert len({t.pid for t in half}) == 8
        assert Counter(t.camid for t in half[:4]) in ({0: 4}, {1: 4})
        assert {t.camid for t in half} == {0, 1}
        assert len({request.seed for request in requests}) == 32
        drawn.update(t.pid for t in half[:8])
    assert set(drawn) == {pid for pid, camera in CAMERAS.items() if camera < 2}
    one = Counter(
        everything[requests[8].index].camid for requests in itertools.islice(sampler(k=1), 300)
    )
    assert 1.5 < one[0] / one[1] < 2.7, (
        "a camera of eight identities comes twice as often as of four"
    )


def test_the_ranks_share_a_batch_and_it_can_start_anywhere():
    whole = list(itertools.islice(sampler(), 6))
    shares = [list(itertools.islice(sampler(rank, 2), 6)) for rank in (0, 1)]
    for requests, *parts in zip(whole, *shares, strict=True):
        assert [len(part) for part in parts] == [16, 16]
        assert sorted(requests) == sorted([*parts[0], *parts[1]])
    later = sampler()
    later.set_start(4)
    assert list(itertools.islice(later, 2)) == whole[4:]
    assert later.batches_per_epoch == 3  # 20 tracklets of a modality, 8 in a batch


def test_clips_of_a_pair_have_one_seed():
    everything = [*PRIMARY, *AUXILIARY]
    for requests in itertools.islice(sampler(pairs=True), 5):
        visible, infrared = requests[16:24], requests[24:]
        assert [r.seed for r in visible] == [r.seed for r in infrared]
        assert [everything[r.index].pid for r in visible] == [
            everything[r.index].pid for r in infrared
        ]


def test_an_auxiliary_set_that_gives_no_batch_is_refused():
    base = CrossModalIdentitySampler(PRIMARY, seed=0, num_identities=9, num_instances=1)
    size = {"num_identities": 9, "num_instances": 1, "offset": 0, "pairs": False}
    with pytest.raises(UserError, match=r"no camera has the 9 identities.*at most 8"):
        AuxiliarySampler(base, AUXILIARY, **size)
    with pytest.raises(UserError, match="1 of its identities have tracklets in one modality"):
        AuxiliarySampler(base, AUXILIARY[1:], **size)
    with pytest.raises(UserError, match=r"identity 0 has \[1, 1\] and \[1\] frames under camera 0"):
        PairSampler(base, PRIMARY[1:], num_instances=1)


def test_batches_that_mix_the_modalities_have_no_pairs():
    size = {"num_identities": 4, "num_instances": 1}
    mixed = IdentitySampler(PRIMARY, seed=0, **size)
    cfg = load_config(opts=["DATALOADER.PAIRS", "True"])
    with pytest.raises(UserError, match="need batches of both modalities"):
        build_pairs(cfg, mixed, PRIMARY, [], num_identities=4, rank=0, world_size=1)


def test_random_frames_are_in_order_and_all_have_their_turn():
    drawn = [frame_indices(9, 4, np.random.default_rng(s), sampling="random") for s in range(300)]
    assert all(len(set(frames.tolist())) == 4 for frames in drawn)
    assert all((np.diff(frames) > 0).all() for frames in drawn)
    assert len({tuple(frames.tolist()) for frames in drawn}) > 100  # of 126
    short = frame_indices(3, 5, np.random.default_rng(0), sampling="random")
    assert len(short) == 5
    assert (np.diff(short) >= 0).all()
    assert set(short.tolist()) <= {0, 1, 2}


def test_test_frames_are_at_equal_distances():
    assert frame_indices(13, 5, sampling="random").tolist() == [0, 2, 5, 7, 10]
    assert frame_indices(2, 4, sampling="random").tolist() == [0, 0, 1, 1]
    assert frame_indices(13, 5).tolist() == [0, 3, 6, 9, 12]
