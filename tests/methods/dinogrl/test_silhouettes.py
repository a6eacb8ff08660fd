"""Learned silhouettes in a store, their IoU, and the small transformer that they can start from."""

import numpy as np
import pytest
import torch

from fastreid_star.data.build import build_clip_test_loader
from fastreid_star.data.clips import frame_indices
from fastreid_star.data.silhouettes import on_body, read_silhouette, write_silhouette
from fastreid_star.data.skeletons import SkeletonStore
from fastreid_star.methods.dinogrl.pretrain import read_frames, save_network, train_on_skeletons
from fastreid_star.methods.dinogrl.silhouettes import (
    compare_silhouettes,
    cut_into_clips,
    intersection_over_union,
    store_silhouettes,
)
from fastreid_star.modeling.backbones.dinov2 import Dinov2
from fastreid_star.modeling.layers.frozen_tokens import FrozenTokens
from fastreid_star.structures import Modality, Tracklet

from .test_model import build, config


def test_clips_of_cut_tracklets_show_each_frame_once():
    frames = tuple(f"{number}.jpg" for number in range(7))
    whole = [Tracklet(1, 2, Modality.VISIBLE, "root", frames)] * 2
    cut = cut_into_clips(whole, 3)
    assert [len(tracklet) for tracklet in cut] == [3, 3, 1] * 2
    assert frame_indices(3, 3).tolist() == [0, 1, 2]  # a test clip shows all of them
    shown = [tracklet.key(index) for tracklet in cut[:3] for index in range(len(tracklet))]
    assert shown == [str(number) for number in range(7)]


def test_iou_by_hand():
    found, true = np.array([True, True, False, False]), np.array([True, False, True, False])
    assert intersection_over_union(found, true) == pytest.approx(1 / 3)
    assert intersection_over_union(found & False, true & False) == 1


def test_stored_silhouettes_are_those_of_the_frames_of_the_test_clips(tiny_root, tmp_path):
    model = build(tmp_path)
    dataset = build_clip_test_loader(config(tiny_root, tmp_path), "SyntheticVCM").dataset
    keys = store_silhouettes(model, dataset, tmp_path / "found")
    assert set(keys) == {"visible", "infrared"}
    assert sum(map(len, keys.values())) == len(dataset) * 3
    assert model.training  # as before
    item = dataset[1]
    tracklet = dataset.tracklets[1]
    inputs = {"images": item["images"][None], "modality": torch.tensor([item["modality"]])}
    maps, _ = model.silhouettes(inputs)
    expected = torch.nn.functional.interpolate(maps, (32, 16), mode="bilinear")[0] > 0.5
    for number, index in enumerate((0, 4, 8)):
        mask = read_silhouette(tmp_path / "found", tracklet.key(index))
        assert np.array_equal(mask, expected[number].numpy())
    # half of a true silhouette of twice the size is found
    for name, frames in keys.items():
        for key in frames:
            true = np.zeros((64, 32), bool)
            true[:, :16] = True
            write_silhouette(tmp_path / "true", key, true)
            half = np.zeros((32, 16), bool)
            half[: 16 if name == "visible" else 32, :8] = True
            write_silhouette(tmp_path / "half", key, half)
    found = compare_silhouettes(tmp_path / "half", tmp_path / "true", keys)
    assert found == pytest.approx({"visible": 0.5, "infrared": 1.0}, abs=0.02)


def test_patches_on_a_limb_by_hand():
    joints = torch.tensor([0.125, 0.4]).expand(1, 17, 2).clone()  # x and y in heights of the frame
    joints[0, 15, 1] = 0.6  # one ankle: a limb of a fifth of the height
    found = on_body(joints, (40, 20), (10, 5))[0, 0]
    expected = torch.zeros(10, 5)
    expected[4:6, 1] = 1  # centers at x 0.15; those at 0.05, and at y 0.35 and 0.65, are far
    assert torch.equal(found, expected)


def test_a_small_transformer_learns_where_the_bodies_are(tiny_root, tmp_path):
    cfg = config(tiny_root, tmp_path)
    loader = build_clip_test_loader(cfg, "SyntheticVCM")
    store = SkeletonStore.open(tiny_root / "SyntheticVCM" / "skeletons")
    images, joints = read_frames(loader.dataset.tracklets, store, (32, 16), every=4)
    assert images.shape[1:] == (3, 32, 16)
    assert joints.shape == (len(images), 17, 2)
    shares = on_body(joints, (32, 16), (8, 4)).mean()
    torch.manual_seed(0)
    network, lines = Dinov2.of_size("tiny", (8, 4)), []
    loss = train_on_skeletons(
        network, images, joints, steps=100, batch=8, rate=2e-3, report=lines.append
    )
    blind = -(shares * shares.log() + (1 - shares) * (1 - shares).log())
    assert loss < 0.8 * blind
    assert len(lines) == 1
    save_network(network, tmp_path / "vit.pth")
    tokens = FrozenTokens.build(str(tmp_path / "vit.pth"), (8, 4))
    assert torch.equal(tokens.network.norm.weight, network.norm.weight)
