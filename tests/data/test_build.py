import itertools

import numpy as np
import pytest
import torch
from fastreid.config import get_cfg
from fastreid.data.datasets import DATASET_REGISTRY
from torch.utils.data import DataLoader

from fastreid_star.data.build import (
    DeviceLoader,
    build_clip_test_loader,
    build_clip_train_loader,
    build_dataset,
    is_video_dataset,
    open_store,
)
from fastreid_star.data.datasets import HITSZVCM
from fastreid_star.data.skeletons import write_skeleton_store
from fastreid_star.errors import UserError


@pytest.fixture
def cfg(vcm_root):
    cfg = get_cfg()
    cfg.DATASETS.ROOT = str(vcm_root)
    cfg.DATASETS.NAMES = cfg.DATASETS.TESTS = ("HITSZVCM",)
    cfg.INPUT.SIZE_TRAIN = cfg.INPUT.SIZE_TEST = [16, 8]
    cfg.INPUT.CLIP.LENGTH = 4
    cfg.INPUT.PADDING.ENABLED = cfg.INPUT.FLIP.ENABLED = cfg.INPUT.REA.ENABLED = True
    cfg.DATALOADER.NUM_WORKERS, cfg.DATALOADER.NUM_INSTANCE = 0, 2
    cfg.SOLVER.IMS_PER_BATCH, cfg.TEST.IMS_PER_BATCH = 8, 3
    return cfg


def take(loader, count):
    return list(itertools.islice(loader, count))


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_names_of_datasets(cfg):
    assert is_video_dataset("HITSZVCM")
    assert not is_video_dataset("Market1501")
    with pytest.raises(UserError, match=r"'HITSZ_VCM'.*did you mean HITSZVCM"):
        build_dataset(cfg, "HITSZ_VCM")
    with pytest.raises(UserError, match=r"'qqqqqq'.*choose one of HITSZVCM"):
        is_video_dataset("qqqqqq")
    with pytest.raises(UserError, match="Market1501 is a dataset of images"):
        build_dataset(cfg, "Market1501")


def test_train_loader(cfg):
    loader = build_clip_train_loader(cfg, seed=0)
    assert loader.dataset.num_classes == 3
    assert loader.batch_sampler.batches_per_epoch == 2  # 6 tracklets of a modality, 2 x 2 a batch
    for batch in take(loader, 5):
        assert batch["images"].shape == (8, 4, 3, 16, 8)
        assert batch["modality"].tolist() == [2] * 4 + [1] * 4
        assert batch["targets"].max() < 3
        assert batch["targets"][:4].tolist() == batch["targets"][4:].tolist()


def test_training_clips_may_have_another_length(cfg):
    cfg.INPUT.CLIP.TRAIN_LENGTH = 2
    assert take(build_clip_train_loader(cfg, seed=0), 1)[0]["images"].shape[1] == 2
    assert next(iter(build_clip_test_loader(cfg, "HITSZVCM")))["images"].shape[1] == 4


def test_train_loader_does_not_depend_on_workers_or_ranks(cfg):
    alone = take(build_clip_train_loader(cfg, seed=0), 4)
    ranks = [
        take(build_clip_train_loader(cfg, seed=0, rank=rank, world_size=2), 4) for rank in (0, 1)
    ]
    cfg.DATALOADER.NUM_WORKERS = 2
    assert all(map(equal, alone, take(build_clip_train_loader(cfg, seed=0), 4)))
    assert not any(map(equal, alone, take(build_clip_train_loader(cfg, seed=1), 4)))
    for whole, *parts in zip(alone, *ranks, strict=True):
        clips = torch.cat([part["images"] for part in parts]).flatten(1).tolist()
        assert sorted(clips) == sorted(whole["images"].flatten(1).tolist())


def test_train_loader_can_be_taken_up_anywhere(cfg):
    cfg.DATALOADER.NUM_WORKERS = 2
    loader = build_clip_train_loader(cfg, seed=0)
    expected = take(loader, 5)[3:]
    loader.batch_sampler.set_start(3)
    assert all(map(equal, take(loader, 2), expected))


def test_loaders_leave_the_global_generator_alone(cfg):
    state = torch.get_rng_state()
    take(build_clip_train_loader(cfg, seed=0), 2)
    take(build_clip_test_loader(cfg, "HITSZVCM"), 2)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("clips", "instances"), [(10, 2), (8, 0)])
def test_batch_that_is_not_whole(cfg, clips, instances):
    cfg.SOLVER.IMS_PER_BATCH, cfg.DATALOADER.NUM_INSTANCE = clips, instances
    with pytest.raises(UserError, match=f"SOLVER.IMS_PER_BATCH {clips} is not identities x"):
        build_clip_train_loader(cfg, seed=0)


def test_several_datasets_keep_their_identities_apart(cfg, monkeypatch):
    class Second(HITSZVCM):
        pass

    monkeypatch.setitem(DATASET_REGISTRY._obj_map, "Second", Second)
    cfg.DATASETS.NAMES = ("HITSZVCM", "Second")
    dataset = build_clip_train_loader(cfg, seed=0).dataset
    assert dataset.num_classes == 6
    assert len(dataset) == 24
    one, two = dataset.tracklets[:12], dataset.tracklets[12:]
    assert not {t.pid for t in one} & {t.pid for t in two}
    assert not {t.camid for t in one} & {t.camid for t in two}
    assert {dataset[i]["targets"] for i in range(24)} == set(range(6))


@pytest.mark.parametrize("world_size", [1, 2, 5])
def test_test_loader_shows_each_tracklet_once_and_in_order(cfg, world_size):
    loaders = [
        build_clip_test_loader(cfg, "HITSZVCM", rank=r, world_size=world_size)
        for r in range(world_size)
    ]
    batches = [batch for loader in loaders for batch in loader]
    assert [len(loader) for loader in loaders] == [len(list(loader)) for loader in loaders]
    assert torch.cat([batch["index"] for batch in batches]).tolist() == list(range(8))
    assert torch.cat([batch["modality"] for batch in batches]).tolist() == [1] * 4 + [2] * 4
    # identities, not labels
    assert torch.cat([batch["targets"] for batch in batches]).tolist() == [4, 4, 5, 5] * 2
    # the same batches for any number of processes
    assert [batch["index"].tolist() for batch in batches] == [[0, 1, 2], [3, 4, 5], [6, 7]]
    assert [t.pid for t in loaders[0].dataset.tracklets] == [4, 4, 5, 5] * 2


def test_device_loader(cfg):
    loader = build_clip_test_loader(cfg, "HITSZVCM")
    moved = DeviceLoader(loader, torch.device("meta"))
    assert len(moved) == len(loader)
    assert moved.dataset is loader.dataset
    assert moved.batch_sampler is loader.batch_sampler
    for batch in moved:
        there = {key for key, value in batch.items() if value.device.type == "meta"}
        assert there == {"images", "skeletons", "has_skeleton", "crop_sizes", "targets"}


# --- controls: other skeletons, no pixels ---


@pytest.fixture
def with_skeletons(cfg, tmp_path):
    """The config with a store in which the score of a joint encodes pid, modality and camera."""
    data = build_dataset(cfg, "HITSZVCM")
    tracklets = [*data.train, *data.query, *data.gallery]
    keys = [tracklet.key(index) for tracklet in tracklets for index in range(len(tracklet))]
    joints = np.concatenate(
        [
            np.full((len(t), 17, 3), 100 * t.pid + 10 * int(t.modality) + t.camid, np.float32)
            for t in tracklets
        ]
    )
    write_skeleton_store(tmp_path / "store", keys, joints)
    cfg.DATASETS.SKELETONS = str(tmp_path / "store")
    return cfg


def whose(batch):
    """(pid, modality) of the skeletons shown."""
    scores = batch["skeletons"][:, 0, 0, 2].long()
    return scores // 100, scores // 10 % 10


def test_own_skeletons_by_default(with_skeletons):
    for loader in (
        build_clip_test_loader(with_skeletons, "HITSZVCM"),
        take(build_clip_train_loader(with_skeletons, seed=0), 3),
    ):
        for batch in loader:
            pid, modality = whose(batch)
            labels = batch["targets"] if isinstance(loader, DataLoader) else batch["targets"] + 1
            assert torch.equal(pid, labels)
            assert torch.equal(modality, batch["modality"])


def test_a_relative_path_starts_in_the_folder_of_the_dataset(cfg, make_vcm, tmp_path):
    cfg.DATASETS.ROOT = str(make_vcm(images=False))
    data = HITSZVCM(cfg.DATASETS.ROOT, check_frames=False)
    assert open_store(cfg, data) is None
    keys = [tracklet.key(0) for tracklet in (*data.train, *data.query, *data.gallery)]
    write_skeleton_store(tmp_path / "HITSZ-VCM" / "joints", keys, np.ones((len(keys), 17, 3)))
    cfg.DATASETS.SKELETONS = "joints"
    assert keys[0] in open_store(cfg, data)
    cfg.DATASETS.SKELETONS = "none"
    with pytest.raises(UserError, match="does not exist"):
        open_store(cfg, data)


def test_skeletons_of_others(with_skeletons):
    with_skeletons.DATASETS.SKELETONS_TEST = "other"
    shown = {}
    for _ in range(2):
        for batch in build_clip_test_loader(with_skeletons, "HITSZVCM"):
            pid, modality = whose(batch)
            assert (pid != batch["targets"]).all()
            assert torch.equal(modality, batch["modality"])
            assert batch["has_skeleton"].all()
            for index, score in zip(
                batch["index"].tolist(), batch["skeletons"][:, 0, 0, 2].tolist(), strict=True
            ):
                assert shown.setdefault(index, score) == score, "always the same one"
    with_skeletons.DATASETS.SKELETONS_TRAIN = "other"
    donors = {}
    for batch in take(build_clip_train_loader(with_skeletons, seed=0), 20):
        assert (whose(batch)[0] - 1 != batch["targets"]).all()
        for index, pid in zip(batch["index"].tolist(), whose(batch)[0].tolist(), strict=True):
            donors.setdefault(index, set()).add(pid)
    assert all(len(pids) == 2 for pids in donors.values()), (
        "drawn anew, so that none gives its receiver away"
    )
    with_skeletons.DATASETS.SKELETONS = ""
    with pytest.raises(UserError, match=r"set DATASETS\.SKELETONS"):
        build_clip_train_loader(with_skeletons, seed=0)


def test_a_store_of_one_split_is_refused_and_a_thin_one_is_mentioned(
    with_skeletons, tmp_path, caplog
):
    data = build_dataset(with_skeletons, "HITSZVCM")
    keys = [tracklet.key(index) for tracklet in data.train for index in range(len(tracklet))]
    write_skeleton_store(tmp_path / "train", keys, np.ones((len(keys), 17, 3), np.float32))
    with_skeletons.DATASETS.SKELETONS = str(tmp_path / "train")
    with pytest.raises(UserError, match="knows none of 8 test frames"):
        open_store(with_skeletons, data)
    keys += [data.query[0].key(0)]
    write_skeleton_store(tmp_path / "thin", keys, np.ones((len(keys), 17, 3), np.float32))
    with_skeletons.DATASETS.SKELETONS = str(tmp_path / "thin")
    open_store(with_skeletons, data)
    assert "knows 1 of 8 test frames" in caplog.text


def test_no_skeletons(with_skeletons):
    with_skeletons.DATASETS.SKELETONS_TEST = "none"
    for batch in build_clip_test_loader(with_skeletons, "HITSZVCM"):
        assert not batch["has_skeleton"].any()
        assert not batch["skeletons"].any()
    with_skeletons.DATASETS.SKELETONS_TEST = "yours"
    with pytest.raises(
        UserError, match=r"DATASETS\.SKELETONS_TEST is 'yours': choose one of own, other, none"
    ):
        build_clip_test_loader(with_skeletons, "HITSZVCM")


def test_blank_frames_keep_their_skeletons(with_skeletons):
    seen = take(build_clip_train_loader(with_skeletons, seed=0), 1)[0]
    with_skeletons.INPUT.BLANK, with_skeletons.INPUT.REA.ENABLED = True, False
    blank = take(build_clip_train_loader(with_skeletons, seed=0), 1)[0]
    assert seen["images"].any()
    assert not blank["images"].any()
    assert torch.equal(blank["skeletons"][..., 2], seen["skeletons"][..., 2])
    assert not any(
        batch["images"].any() for batch in build_clip_test_loader(with_skeletons, "HITSZVCM")
    )
