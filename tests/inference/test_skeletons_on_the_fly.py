"""features and search extract the skeletons that a STAR model reads, once."""

import dataclasses
import io
import logging

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from fastreid_star.cli.main import run
from fastreid_star.data.folders import tracklets_at
from fastreid_star.data.skeletons import SkeletonStore
from fastreid_star.pose import on_the_fly
from fastreid_star.pose.on_the_fly import add_skeletons

from ..pose.movenet_files import tiny_files  # noqa: F401

CPU = torch.device("cpu")


@pytest.fixture
def weights(tiny_files, tmp_path, monkeypatch):  # noqa: F811
    """A small random network in the place where MoveNet's files are kept."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    (tmp_path / "torch" / "hub").mkdir(parents=True)
    tiny_files.rename(tmp_path / "torch" / "hub" / "checkpoints")


@pytest.fixture
def crops(tmp_path):
    """Three people: two visible tracklets, and an infrared one with a broken frame."""
    rng = np.random.default_rng(0)
    for name, frames in (("rgb/anna", 5), ("rgb/ben", 20), ("ir/who", 6)):
        folder = tmp_path / "crops" / name
        folder.mkdir(parents=True)
        for frame in range(1, frames + 1):
            image = rng.integers(0, 255, (8, 4, 1 if "ir" in name else 3), np.uint8)
            image = np.broadcast_to(image.repeat(8, 0).repeat(8, 1), (64, 32, 3))
            Image.fromarray(np.ascontiguousarray(image)).save(folder / f"{frame}.png")
    (tmp_path / "crops" / "ir" / "who" / "3.png").write_bytes(b"broken")
    return tmp_path / "crops"


@pytest.mark.usefixtures("weights")
def test_they_are_those_of_the_command(crops, tmp_path):
    run("skeletons", "--images", crops, "--output", tmp_path / "store", "--device", "cpu")
    store = SkeletonStore.open(tmp_path / "store")
    for tracklet in add_skeletons(tracklets_at([crops]), tmp_path / "cache", CPU):
        keys = [f"{tracklet.name}/{n}" for n in range(1, len(tracklet.images) + 1)]
        joints, there = store.read(keys)
        np.testing.assert_array_equal(np.isfinite(tracklet.skeletons).all((1, 2)), there)
        np.testing.assert_allclose(tracklet.skeletons[there], joints[there], atol=1e-3)
        assert (there == [key != "ir/who/3" for key in keys]).all()


@pytest.mark.usefixtures("weights")
def test_they_are_kept_until_a_file_changes(crops, tmp_path, monkeypatch):
    calls, estimate = [], on_the_fly.estimate
    monkeypatch.setattr(on_the_fly, "estimate", lambda t, e: calls.append(t.name) or estimate(t, e))
    estimator = on_the_fly.build_estimator(device=CPU)
    monkeypatch.setattr(on_the_fly, "build_estimator", lambda device: estimator)
    first = add_skeletons(tracklets_at([crops]), tmp_path / "cache", CPU)
    assert calls == ["ir/who", "rgb/anna", "rgb/ben"]
    again = add_skeletons(tracklets_at([crops]), tmp_path / "cache", CPU)
    assert len(calls) == 3
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one.skeletons, other.skeletons)
    Image.new("RGB", (32, 64)).save(crops / "rgb" / "anna" / "2.png")
    add_skeletons(tracklets_at([crops]), tmp_path / "cache", CPU)
    assert calls[3:] == ["rgb/anna"]
    zipped, doubled = io.BytesIO(), io.BytesIO()
    np.savez(zipped, joints=first[0].skeletons)
    np.save(doubled, first[0].skeletons.astype(np.float64))
    damages = (b"damaged", b"PK\3\4damaged", zipped.getvalue(), doubled.getvalue())
    for times, damage in enumerate(damages, start=1):
        for file in (tmp_path / "cache").iterdir():
            file.write_bytes(damage)
        add_skeletons(tracklets_at([crops]), tmp_path / "cache", CPU)
        assert len(calls) == 4 + 3 * times
    own = dataclasses.replace(first[0], skeletons=np.zeros((6, 17, 3), np.float32))
    assert add_skeletons([own], tmp_path / "cache", CPU) == [own]


@pytest.mark.usefixtures("weights")
def test_a_cache_that_cannot_be_written(crops, tmp_path, caplog):
    (tmp_path / "file").touch()
    with caplog.at_level(logging.WARNING, logger="fastreid_star"):
        found = add_skeletons(tracklets_at([crops]), tmp_path / "file" / "cache", CPU)
    assert caplog.text.count("the skeletons are not kept") == 1
    assert all(np.isfinite(tracklet.skeletons[0]).all() for tracklet in found)


@pytest.mark.usefixtures("weights")
def test_a_video(tmp_path):
    path = tmp_path / "a.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (32, 64))
    for frame in np.random.default_rng(0).integers(0, 255, (19, 8, 4, 3), np.uint8):
        writer.write(frame.repeat(8, 0).repeat(8, 1))
    writer.release()
    (tracklet,) = add_skeletons(tracklets_at([path], "visible"), tmp_path / "cache", CPU)
    assert tracklet.skeletons.shape == (19, 17, 3)
    assert np.isfinite(tracklet.skeletons).all()
    assert len(np.unique(tracklet.skeletons, axis=0)) > 10


def test_without_weights_there_is_one_warning(crops, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    tracklets = tracklets_at([crops])
    with caplog.at_level(logging.WARNING, logger="fastreid_star"):
        assert add_skeletons(tracklets, tmp_path / "cache", CPU) == tracklets
    assert caplog.text.count("skeletons --fetch") == 1
    assert not (tmp_path / "cache").exists()


@pytest.mark.usefixtures("weights")
def test_features_and_search(runs, crops, tmp_path):
    """The features are those with a store; a model without skeletons extracts nothing."""
    common = ["--workers", 0, "--device", "cpu"]
    star = ["--run", runs / "STAR", *common]
    run("features", crops / "rgb", *star, "--output", tmp_path / "fly.npz")
    assert len(list((tmp_path / "fly.npz.skeletons").iterdir())) == 2
    run("skeletons", "--images", crops / "rgb", "--output", tmp_path / "store", "--device", "cpu")
    with_store = ["--skeletons", tmp_path / "store"]
    run("features", crops / "rgb", *star, *with_store, "--output", tmp_path / "store.npz")
    fly, store = (np.load(tmp_path / f"{name}.npz")["features"] for name in ("fly", "store"))
    np.testing.assert_allclose(fly, store, atol=1e-4)

    run("features", crops / "rgb", *star, "--gallery", tmp_path / "gallery")
    run("search", tmp_path / "gallery", crops / "ir", *star, "--json", tmp_path / "lists.json")
    assert len(list((tmp_path / "gallery.skeletons").iterdir())) == 2 + 1
    run("features", crops, "--run", runs / "SAD", *common, "--output", tmp_path / "sad.npz")
    assert not (tmp_path / "sad.npz.skeletons").exists()
