import pickle
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from fastreid_star.data.clips import ClipDataset, ClipRequest, collate_clips, segment_indices
from fastreid_star.data.datasets import HITSZVCM
from fastreid_star.data.skeletons import SkeletonStore, write_skeleton_store
from fastreid_star.data.transforms import Compose, HorizontalFlip, PadCrop, RandomErasing, Resize

AUGMENT = Compose([Resize((24, 12)), PadCrop(3), HorizontalFlip(), RandomErasing()])


@pytest.mark.parametrize(
    ("n", "length", "expected"),
    [
        (24, 12, [0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22]),
        (12, 4, [0, 3, 6, 9]),
        (
            13,
            12,
            [0, 2, 4, 6, 8, 10, 12, 12, 12, 12, 12, 12],
        ),  # segments of 2; the last five are padding
        (10, 4, [0, 3, 6, 9]),  # the last segment is 9, 9, 9
        (7, 3, [0, 3, 6]),
        (5, 8, [0, 1, 2, 3, 4, 4, 4, 4]),
        (1, 3, [0, 0, 0]),
        (48, 1, [0]),
    ],
)
def test_segments_by_hand(n, length, expected):
    assert segment_indices(n, length).tolist() == expected


@given(n=st.integers(1, 60), length=st.integers(1, 20), seed=st.integers(0, 1000))
def test_segments(n, length, seed):
    size = -(-n // length)
    for rng in (None, np.random.default_rng(seed)):
        indices = segment_indices(n, length, rng)
        assert len(indices) == length
        assert (np.diff(indices) >= 0).all()
        for segment, index in enumerate(indices):
            frames = range(segment * size, (segment + 1) * size)
            assert index in [min(frame, n - 1) for frame in frames]


def test_training_reaches_every_frame():
    drawn = np.stack([segment_indices(10, 4, np.random.default_rng(seed)) for seed in range(200)])
    assert [sorted(set(column)) for column in drawn.T.tolist()] == [
        [0, 1, 2],
        [3, 4, 5],
        [6, 7, 8],
        [9],
    ]
    assert len(set(map(tuple, drawn[:, :3].tolist()))) == 27  # the segments are drawn independently


def test_no_frames():
    with pytest.raises(ValueError, match="tracklet of 0"):
        segment_indices(0, 4)


@pytest.fixture
def data(vcm_root):
    return HITSZVCM(vcm_root)


@pytest.fixture
def store(data, tmp_path):
    """Every joint of frame f is at (f, 2 f) with the score f/100; of the first tracklet, frame 4 is missing."""
    frames = [
        (t.key(i), i + 1) for t in data.train for i in range(len(t)) if (t, i) != (data.train[0], 3)
    ]
    joints = np.stack(
        [np.tile(np.array([f, 2 * f, f / 100], np.float32), (17, 1)) for _, f in frames]
    )
    write_skeleton_store(tmp_path / "store", [key for key, _ in frames], joints)
    return SkeletonStore.open(tmp_path / "store")


def test_item_in_testing(data, store):
    dataset = ClipDataset(data.train, length=4, transform=Resize((32, 8)), store=store)
    item = dataset[0]
    assert set(item) == {
        *("images", "skeletons", "has_skeleton", "targets"),
        *("camids", "modality", "index", "replaced"),
    }
    assert (item["images"].shape, item["images"].dtype) == ((4, 3, 32, 8), torch.uint8)
    assert (item["skeletons"].shape, item["skeletons"].dtype) == ((4, 17, 3), torch.float32)
    # the frames 1, 4, 7, 10 of the tracklet, by their color: red is 10 x frame
    assert item["images"][:, 0].float().mean((1, 2)).div(10).round().tolist() == [1, 4, 7, 10]
    assert item["has_skeleton"].tolist() == [True, False, True, True]
    # frames of 16 x 8 became 32 x 8
    assert item["skeletons"][:, 3, 0].tolist() == [1, 0, 7, 10]
    assert item["skeletons"][:, 3, 1].tolist() == [4.5, 0, 28.5, 40.5]
    torch.testing.assert_close(item["skeletons"][:, 3, 2], torch.tensor([0.01, 0, 0.07, 0.1]))
    assert [item[key] for key in ("targets", "camids", "modality", "index", "replaced")] == [
        1,
        1,
        2,
        0,
        0,
    ]


def test_item_without_a_store(data):
    item = ClipDataset(data.train, length=3, transform=Resize((16, 8)))[2]
    assert not item["has_skeleton"].any()
    assert not item["skeletons"].any()
    assert item["skeletons"].shape == (3, 17, 3)
    assert item["modality"] == 1


def test_a_transform_is_given_joints_of_one_kind_with_and_without_a_store(data, store):
    kinds = []

    def note(clip, rng):
        kinds.append((clip.joints.dtype, clip.joints.shape, clip.present.dtype))
        return Resize((16, 8))(clip, rng)

    for one in (None, store):
        ClipDataset(data.train, length=3, transform=note, store=one)[2]
    assert kinds == [(np.float32, (3, 17, 3), bool)] * 2


def test_a_store_for_each_root(data, store):
    with_store = ClipDataset(
        data.train, length=3, transform=Resize((16, 8)), store={data.train[0].root: store}
    )
    assert with_store[1]["has_skeleton"].all()
    other = ClipDataset(data.train, length=3, transform=Resize((16, 8)), store={"elsewhere": store})
    assert not other[1]["has_skeleton"].any()


def test_labels_and_classes(data):
    build = partial(ClipDataset, data.train, length=3, transform=Resize((16, 8)))
    assert build().num_classes == 3
    labeled = build(pid_to_label={1: 2, 2: 1, 3: 0})
    assert labeled.num_classes == 3
    assert labeled[0]["targets"] == 2


def test_item_in_training_is_a_function_of_its_seed(data, store):
    dataset = ClipDataset(data.train, length=4, transform=AUGMENT, store=store)
    first, again = dataset[ClipRequest(0, (0, 1, 2))], dataset[ClipRequest(0, (0, 1, 2))]
    other = dataset[ClipRequest(0, (0, 1, 3))]
    assert all(
        torch.equal(first[key], again[key]) for key in ("images", "skeletons", "has_skeleton")
    )
    assert not torch.equal(first["images"], other["images"])


def test_a_stand_in_frame_brings_its_own_skeleton(make_vcm, store):
    data = HITSZVCM(make_vcm())
    for index in (0, 3):
        with open(data.train[1].path(index), "wb"):
            pass
    item = ClipDataset(data.train, length=4, transform=Resize((16, 8)), store=store)[
        1
    ]  # frames 1, 5, 9, 13
    assert item["replaced"] == 1
    assert item["images"][0, 0].float().mean().div(10).round() == 2
    assert item["skeletons"][0, 0, 0] == 2
    assert item["has_skeleton"].all()


def test_collate(data):
    dataset = ClipDataset(data.train, length=3, transform=Resize((16, 8)))
    batch = collate_clips([dataset[0], dataset[2]])
    assert batch["images"].shape == (2, 3, 3, 16, 8)
    assert (batch["has_skeleton"].shape, batch["has_skeleton"].dtype) == ((2, 3), torch.bool)
    for key in ("targets", "camids", "modality", "index", "replaced"):
        assert (batch[key].shape, batch[key].dtype) == ((2,), torch.int64)
    assert batch["modality"].tolist() == [2, 1]
    assert batch["index"].tolist() == [0, 2]


@pytest.mark.parametrize("training", [True, False])
def test_the_same_with_and_without_workers(data, store, training):
    dataset = ClipDataset(
        data.train, length=4, transform=AUGMENT if training else Resize((24, 12)), store=store
    )
    items = [ClipRequest(i, (5, i)) if training else i for i in range(len(dataset))]
    batches = [items[i : i + 3] for i in range(0, len(items), 3)]
    load = partial(DataLoader, dataset, batch_sampler=batches, collate_fn=collate_clips)
    for alone, together in zip(load(num_workers=0), load(num_workers=2), strict=True):
        assert alone.keys() == together.keys()
        assert all(torch.equal(alone[key], together[key]) for key in alone)


def test_dataset_is_picklable(data, store):
    dataset = ClipDataset(data.train, length=4, transform=AUGMENT, store=store)
    request = ClipRequest(1, (3,))
    assert torch.equal(
        pickle.loads(pickle.dumps(dataset))[request]["images"], dataset[request]["images"]
    )
