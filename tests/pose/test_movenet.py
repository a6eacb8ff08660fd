"""MoveNet's network, decoder and crops; the trained network where its files are."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fastreid_star.cli.main import run
from fastreid_star.coco import LEFT_RIGHT, NUM_JOINTS
from fastreid_star.data.skeletons import SkeletonStore
from fastreid_star.pose.estimator import build_estimator
from fastreid_star.pose.extraction import extract_share, finish
from fastreid_star.pose.frames import frames_of_folder
from fastreid_star.pose.movenet import PrepareCrop, has_onnx, in_onnxruntime, in_torch
from fastreid_star.pose.movenet_network import MoveNet, mirror
from fastreid_star.pose.movenet_weights import load_movenet

from .checks.markers import SIZES, find, odd_crops, plant
from .movenet_files import TINY, needs_weights, random_network, tiny_files  # noqa: F401

CPU = torch.device("cpu")
VALUES = Path(__file__).with_name("movenet_values.npz")


def noise(count, side=64, seed=0):
    """Smooth random images, uint8 [N, 3, side, side]."""
    coarse = np.random.default_rng(seed).integers(0, 256, (count, 3, side // 8, side // 8))
    return coarse.repeat(8, 2).repeat(8, 3).astype(np.uint8)


def runtimes(network):
    """What runs the network: PyTorch, and onnxruntime where it is installed."""
    found = [in_torch(network, CPU, None)]
    return [*found, in_onnxruntime(network)] if has_onnx() else found


@needs_weights
@pytest.mark.parametrize(("model", "factor"), [("thunder", 3), ("lightning", 2)])
def test_trained_network_equals_the_original(model, factor):
    """movenet_values.npz: crops of 80x80, and what TensorFlow.js computes for them with the published graph."""
    values = np.load(VALUES)
    network, _ = load_movenet(model)
    crops = values["crops"].repeat(factor, axis=1).repeat(factor, axis=2)
    border = (network.size - crops.shape[1]) // 2
    crops = np.pad(crops, ((0, 0), (border, border), (border, border), (0, 0)))
    images = np.ascontiguousarray(crops.transpose(0, 3, 1, 2))
    y, x, scores = np.moveaxis(values[model], 2, 0)
    for runtime in runtimes(network):
        joints = runtime(images)
        np.testing.assert_allclose(joints[..., 0], x * network.size - 0.5, atol=0.01)
        np.testing.assert_allclose(joints[..., 1], y * network.size - 0.5, atol=0.01)
        np.testing.assert_allclose(joints[..., 2], scores, atol=1e-4)


@needs_weights
def test_trained_network_finds_the_same_person_in_any_crop():
    """The joints of a person stay where they are if the crop is larger, has a border, or is mirrored."""
    crop = np.load(VALUES)["crops"][1]
    estimator = build_estimator(device=CPU)

    def distance(image, back):
        joints = back(estimator.estimate([estimator.prepare(image)])[0])
        return np.median(np.linalg.norm((joints - reference)[sure, :2], axis=1))

    reference = estimator.estimate([estimator.prepare(crop)])[0]
    sure = reference[:, 2] > 0.3
    assert sure.sum() >= 10

    def unmirror(joints):
        return joints[list(LEFT_RIGHT)] * [-1, 1, 1] + [crop.shape[1] - 1, 0, 0]

    larger = crop.repeat(2, axis=0).repeat(2, axis=1)
    wider = np.pad(crop, ((0, 0), (11, 0), (0, 0)), mode="edge")
    assert distance(larger, lambda joints: joints / 2 - 0.25) < 2
    assert distance(wider, lambda joints: joints - [11, 0, 0]) < 2
    assert distance(crop[:, ::-1], unmirror) < 2
    assert distance(crop[:, ::-1], lambda joints: joints) > 4, "the check can fail"


def test_decoder_by_hand():
    """Two people: the prior prefers the second; of two peaks of a joint, the one near the predicted place is taken."""
    network = MoveNet(**TINY)  # maps of 16 x 16 cells of 4 pixels
    maps = {name: torch.zeros(1, n, 16, 16) for name, n in {"center": 1, "heatmap": 17}.items()}
    maps |= {name: torch.zeros(1, 34, 16, 16) for name in ("regress", "offset")}
    network.prior[:, :8] = 0.5
    maps["center"][0, 0, 5, 4], maps["center"][0, 0, 6, 9] = 0.9, 0.6
    joint = 7
    maps["regress"][0, 2 * joint : 2 * joint + 2, 6, 9] = torch.tensor([3.0, -2.0])  # y 9, x 7
    maps["heatmap"][0, joint, 9, 8], maps["heatmap"][0, joint, 3, 1] = 0.4, 0.8
    maps["offset"][0, 2 * joint : 2 * joint + 2, 9, 8] = torch.tensor([0.25, 0.5])
    with torch.no_grad():
        found = network.decode(maps)[0, joint]
        # 0.4 / (1 + 1.8) = 0.143; 0.8 / (sqrt(6^2 + 6^2) + 1.8) = 0.078
        torch.testing.assert_close(found, torch.tensor([4 * 8.5 - 0.5, 4 * 9.25 - 0.5, 0.4]))
        maps["heatmap"][0, joint, 9, 8] = 0.2  # 0.071
        found = network.decode(maps)[0, joint]
        torch.testing.assert_close(found, torch.tensor([4 * 1 - 0.5, 4 * 3 - 0.5, 0.8]))
        network.prior[:] = 1  # now the first person is taken: its joint is expected at y 5, x 4
        found = network.decode(maps)[0, joint]
        torch.testing.assert_close(found[2], torch.tensor(0.8))


def test_mirrored_maps_by_hand():
    """Maps of a person and of the mirrored person, whose left joints are right ones."""
    rng, side = np.random.default_rng(0), 16
    places = torch.from_numpy(rng.uniform(0, side, (NUM_JOINTS, 2))).float()  # y, x in cells
    mirrored = places[list(LEFT_RIGHT)] * torch.tensor([1, -1]) + torch.tensor([0, side])

    def maps_of(places, center):
        maps = {"center": torch.zeros(1, 1, side, side), "heatmap": torch.zeros(1, 17, side, side)}
        maps |= {name: torch.full((1, 34, side, side), 0.5) for name in ("regress", "offset")}
        maps["center"][0, 0, center[0], center[1]] = 1
        maps["regress"][0, :, center[0], center[1]] = (places - torch.tensor(center)).flatten()
        for joint, (y, x) in enumerate(places.floor().int().tolist()):
            maps["heatmap"][0, joint, y, x] = 0.5
            maps["offset"][0, 2 * joint : 2 * joint + 2, y, x] = places[joint] % 1
        return maps

    wanted = maps_of(places, [6, 3])
    found = mirror(maps_of(mirrored, [6, side - 1 - 3]))
    assert found.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], msg=name)


def test_the_flip_test_treats_both_sides_alike(monkeypatch):
    network, images = random_network(flip_test=True), torch.from_numpy(noise(2))
    monkeypatch.setattr(network, "decode", lambda maps: maps)
    with torch.no_grad():
        maps, again = network(images), mirror(network(images.flip(-1)))
        without = network.maps(images.float())
    for name in maps:
        torch.testing.assert_close(again[name], maps[name])
        assert (without[name] - maps[name]).abs().max() > 0.01, "the mirrored image matters"


def test_files_are_read_as_they_were_written(tiny_files):  # noqa: F811
    network, files = load_movenet("thunder", str(tiny_files / "movenet-thunder.json"))
    assert [file.name for file in files] == ["movenet-thunder.json", "movenet-thunder.bin"]
    for name, value in random_network().state_dict().items():
        torch.testing.assert_close(network.state_dict()[name], value, rtol=0, atol=0)


def test_a_batch_changes_nothing_in_both_runtimes():
    network, images = random_network(), noise(16)
    together = in_torch(network, CPU, None)(images)
    assert len(np.unique(together[..., 0].round())) > 10, "the joints differ"
    for one in runtimes(network):
        alone = np.concatenate([one(images[i : i + 1]) for i in range(16)])
        np.testing.assert_allclose(alone, together, atol=1e-3)
        np.testing.assert_allclose(one(images), together, atol=1e-3)


def test_mixed_precision_and_the_flip_test_run_in_torch(tiny_files):  # noqa: F811
    crops = odd_crops(3)
    plain = build_estimator(checkpoint=str(tiny_files), device=CPU)
    mixed = build_estimator(checkpoint=str(tiny_files), device=CPU, dtype="bfloat16")
    both = build_estimator(checkpoint=str(tiny_files), device=CPU, flip_test=True)
    assert "onnxruntime" not in mixed.describe()["versions"]
    assert (mixed.describe()["dtype"], both.describe()["flip_test"]) == ("bfloat16", True)
    prepared = [plain.prepare(crop) for crop in crops]
    scores = [one.estimate(prepared)[..., 2] for one in (plain, mixed, both)]
    assert all(np.isfinite(values).all() for values in scores)
    assert np.abs(scores[1] - scores[0]).mean() < 0.1
    assert np.abs(scores[2] - scores[0]).max() > 0.01


def test_markers_come_back_to_their_pixels(tiny_files):  # noqa: F811
    """Crops of odd sizes; a stand-in for the network finds colored blobs in its input of 256 x 256."""
    estimator, prepare = build_estimator(checkpoint=str(tiny_files), device=CPU), PrepareCrop(256)

    def perfect(images):
        joints = np.ones((len(images), NUM_JOINTS, 3), np.float32)
        joints[..., :2] = [find(image.transpose(1, 2, 0).astype(float)) for image in images]
        return joints

    estimator._run = perfect
    crops, points = zip(
        *(plant(*size) for size in (*SIZES, (40, 100), (31, 77), (640, 301), (257, 256))),
        strict=True,
    )
    prepared = [prepare(crop) for crop in crops]
    assert {crop.image.shape for crop in prepared} == {(3, 256, 256)}
    assert np.abs(estimator.estimate(prepared)[..., :2] - points).max() < 1
    assert prepare(np.full((1000, 1, 3), 255, np.uint8)).image.any(), "a crop of one column"


def test_skeletons_of_a_folder_resumed_byte_for_byte(tiny_files, tmp_path, monkeypatch):  # noqa: F811
    from PIL import Image

    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1000000000")
    crops = tmp_path / "crops"
    crops.mkdir()
    for number, crop in enumerate(odd_crops(9)):
        Image.fromarray(crop).save(crops / f"{number}.png")
    options = ["--images", crops, "--checkpoint", tiny_files, "--device", "cpu", "--workers", 0]
    run("skeletons", *options, "--batch-size", 2, "--output", tmp_path / "whole")
    store = SkeletonStore.open(tmp_path / "whole")
    joints, there = store.read([str(number) for number in range(9)])
    assert there.all()
    assert store.meta["plan"]["model"] == "movenet-thunder"
    assert ("onnxruntime" in store.meta["plan"]["versions"]) == has_onnx()
    assert "MoveNet" in store.meta["plan"]["several_people"]

    estimator = build_estimator(checkpoint=str(tiny_files), device=CPU)
    alone = estimator.estimate([estimator.prepare(odd_crops(9)[8])])[0]
    np.testing.assert_allclose(joints[8], alone, atol=1e-3)

    for share in ((0, 2), (1, 2)):  # two calls, each with a network that is built anew
        again = build_estimator(checkpoint=str(tiny_files), device=CPU)
        frames, output = frames_of_folder(crops), tmp_path / "halves"
        size = {"batch_size": 2, "part": 2, "workers": 0, "progress": False}
        extract_share(frames, output, again, share=share, **size)
    assert finish(frames, output)
    whole, halves = (np.load(tmp_path / name / "skeletons.npy") for name in ("whole", "halves"))
    assert whole.tobytes() == halves.tobytes()
