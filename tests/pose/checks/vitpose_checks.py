"""ViTPose behind the interface: random weights in small networks, a perfect stand-in, and mmpose's UDP beside it."""

import functools
import json
import os
import shutil
import types

import numpy as np
import torch
from markers import SIZES, find, odd_crops, plant, refused
from safetensors.torch import load_file, save_file
from transformers import (
    VitPoseBackboneConfig,
    VitPoseConfig,
    VitPoseForPoseEstimation,
    VitPoseImageProcessor,
)

from fastreid_star.coco import NUM_JOINTS
from fastreid_star.pose import mmpose, vitpose
from fastreid_star.pose.estimator import build_estimator

with mmpose.importable():
    from mmpose.codecs import UDPHeatmap
    from mmpose.datasets.transforms import GetBBoxCenterScale, TopdownAffine

CPU = torch.device("cpu")
CODEC = UDPHeatmap((192, 256), (48, 64), sigma=2)


@functools.lru_cache
def published(folder, experts=1, classic=False):
    """A folder as on the hub, with a network of the real architecture, small and with random weights."""
    torch.manual_seed(experts)
    backbone = VitPoseBackboneConfig(
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_experts=experts,
        part_features=12,
        out_indices=[2],
    )
    config = VitPoseConfig(
        backbone_config=backbone, num_labels=NUM_JOINTS, use_simple_decoder=not classic
    )
    network = VitPoseForPoseEstimation(config)
    with torch.no_grad():
        for weight in network.backbone.parameters():
            if weight.dim() > 1:
                weight.mul_(4)  # features that differ from place to place
        if classic:  # maps with peaks, not plains
            network.head.conv.weight.mul_(8)
            network.head.conv.bias.sub_(0.3)
    path = folder / f"vitpose-{experts}-{'classic' if classic else 'simple'}"
    network.save_pretrained(path)
    VitPoseImageProcessor().save_pretrained(path)
    return path


def build(path, **options):
    return build_estimator("vitpose", checkpoint=str(path), device=CPU, **options)


def check_networks_end_to_end(folder):
    for path in (published(folder), published(folder, classic=True), published(folder, experts=3)):
        estimator = build(path)
        assert not estimator._model.training
        prepared = [estimator.prepare(crop) for crop in odd_crops(16)]
        joints = estimator.estimate(prepared)
        assert joints.shape == (16, NUM_JOINTS, 3)
        assert joints.dtype == np.float32
        assert np.isfinite(joints).all()
        assert joints[..., 2].min() >= 0
        assert joints[..., 2].max() <= 1
        assert (joints[..., :2].std(axis=1) > 3).all()
        assert (joints[..., :2].std(axis=0) > 3).all()
        alone = np.concatenate([estimator.estimate([one]) for one in prepared])
        assert np.abs(alone - joints).max() < 1e-3
        mirrored = build(path, flip_test=True).estimate(prepared)
        assert not np.allclose(mirrored, joints)
        half = build(path, dtype="bfloat16").estimate(prepared)
        assert not np.array_equal(half, joints)
        assert np.median(np.abs(half - joints)[..., 2]) < 0.05


def check_the_experts_for_coco_are_asked(folder):
    path = published(folder, experts=3)
    estimator = build(path)
    prepared = [estimator.prepare(odd_crops(1)[0])]
    joints = estimator.estimate(prepared)
    changed = {0: False, 2: False}
    for expert in changed:
        other = build(path)
        with torch.no_grad():
            for name, weight in other._model.named_parameters():
                if f"experts.{expert}." in name:
                    weight.add_(1)
        changed[expert] = not np.array_equal(other.estimate(prepared), joints)
    assert changed == {0: True, 2: False}


def check_description(folder):
    path = folder / "elsewhere" / "vitpose-1-simple"
    shutil.copytree(published(folder), path)
    said = build(published(folder), flip_test=True).describe()
    assert json.loads(json.dumps(said)) == said == build(path, flip_test=True).describe()
    assert (said["model"], said["checkpoint"]) == ("vitpose-1-simple", "model.safetensors")
    assert (said["input_size"], said["flip_test"]) == ([192, 256], True)
    settings = json.loads((path / "preprocessor_config.json").read_text())
    changed = json.dumps({**settings, "image_mean": [0.5, 0.5, 0.5]})
    (path / "preprocessor_config.json").write_text(changed)
    after = build(path, flip_test=True).describe()
    assert {key for key in said if said[key] != after[key]} == {"config_sha256"}


class Perfect(torch.nn.Module):
    """Stands in for the network: UDP's heatmaps of where the blobs are in its input."""

    def forward(self, images):
        mean, std = (
            torch.tensor(x).view(3, 1, 1) for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        )
        pixels = ((images * std + mean) * 255).permute(0, 2, 3, 1).numpy()
        assert pixels.min() > -1e-3
        assert pixels.max() < 255.01
        return types.SimpleNamespace(heatmaps=heatmaps([find(image) for image in pixels]))


def heatmaps(points):
    return torch.from_numpy(
        np.stack([CODEC.encode(np.float32(one)[None])["heatmaps"] for one in points])
    )


def check_blobs_are_found_where_they_are(folder):
    for flip_test in (False, True):
        estimator = build(published(folder), flip_test=flip_test)
        estimator._model = Perfect()
        planted = [plant(*size, seed) for seed, size in enumerate(SIZES)]
        joints = estimator.estimate([estimator.prepare(image) for image, _ in planted])
        off = joints[..., :2] - np.stack([points for _, points in planted])
        assert np.abs(off).max() < 0.3
        assert np.abs(off.mean(axis=(0, 1))).max() < 0.02
        assert np.abs(joints[..., 2] - 1).max() < 0.15


def check_the_central_person_is_taken(folder):
    estimator = build(published(folder))
    prepared = [
        estimator.prepare(np.zeros((192, 90, 3), np.uint8))
    ]  # half of the input's width: from 48 to 144
    central = np.random.default_rng(0).uniform([92, 60], [104, 200], (NUM_JOINTS, 2))
    at_the_edge = central * [0, 1] + [[56, 0]]
    for heights, expected in (((0.7, 0.8), 0), ((0.4, 0.9), 1)):
        people = [
            height * heatmaps([points])
            for height, points in zip(heights, (central, at_the_edge), strict=True)
        ]
        found = []
        for maps in (torch.maximum(*people), people[expected]):
            estimator._model = lambda images, maps=maps: types.SimpleNamespace(heatmaps=maps)
            found.append(estimator.estimate(prepared))
        assert np.abs(found[0] - found[1])[..., :2].max() < 0.2
        assert np.array_equal(found[0][..., 2], found[1][..., 2])


def check_the_input_is_mmposes(folder):
    for width, height in SIZES:
        crop = odd_crops(1)[0].repeat(3, axis=0).repeat(3, axis=1)[:height, :width]
        crop = np.pad(
            crop, ((0, height - crop.shape[0]), (0, width - crop.shape[1]), (0, 0)), mode="edge"
        )
        ours = vitpose.PrepareCrop(192, 256)(crop)
        box = {"img": crop, "bbox": np.array([[0, 0, width, height]], np.float32)}
        theirs = TopdownAffine((192, 256), use_udp=True)(GetBBoxCenterScale()(box))
        image = ours.image.permute(1, 2, 0).numpy()
        assert (
            np.abs(image.astype(int) - theirs["img"]).max() <= 1
        )  # their matrix has float32's digits
        assert np.allclose(ours.box, theirs["input_scale"])
        corner = theirs["input_center"] - theirs["input_scale"] / 2
        assert np.allclose(ours.corner, corner, atol=1e-4)
        assert np.isclose(ours.share, width / theirs["input_scale"][0])


def check_joints_are_mmposes(folder):
    rng = np.random.default_rng(0)
    points = rng.uniform([4, 4], [188, 252], (8, NUM_JOINTS, 2))
    clean = heatmaps(points)
    maps = clean * torch.rand(8, NUM_JOINTS, 1, 1) + 0.02 * torch.randn(clean.shape)
    cells, scores = vitpose.find_joints(maps)
    close = 0
    for index in range(8):
        theirs, heights = CODEC.decode(maps[index].numpy())
        theirs = theirs[0] / [192, 256] * [47, 63]
        highest = maps[index].flatten(1).argmax(1).numpy()
        highest = np.stack([highest % 48, highest // 48], axis=1)
        refined = (np.abs(theirs - highest) < 1.99).all(axis=1)  # mmpose takes any step
        assert np.abs(cells[index].numpy() - theirs)[refined].max() < 1e-3
        assert np.abs(cells[index].numpy() - highest).max() <= 2
        assert np.array_equal(scores[index].numpy(), heights[0])
        close += refined.sum()
    assert close > 0.95 * 8 * NUM_JOINTS


def check_folders_that_are_refused(folder):
    good = published(folder)

    def copy(name):
        path = folder / name
        shutil.copytree(good, path)
        return path

    def refuses(path, *words):
        refused(lambda: build(path), str(path), *words)

    refused(lambda: build_estimator("vitpose", device=CPU), "--checkpoint", "usyd-community")
    refused(lambda: build(good, model="base"), "has no --model")
    refuses(folder / "nowhere", "does not exist")

    class Touch:
        def __reduce__(self):
            return os.system, (f"touch {folder}/ran",)

    path = copy("pickle")
    (path / "model.safetensors").unlink()
    torch.save({"weights": Touch()}, path / "pytorch_model.bin")
    refuses(path, "no model.safetensors")
    assert not (folder / "ran").exists()

    path = copy("damaged")
    (path / "model.safetensors").write_bytes((good / "model.safetensors").read_bytes()[:1000])
    refuses(path, "cannot be read", "download it again")

    weights = load_file(good / "model.safetensors")
    bias = "head.conv.bias"
    fewer = {key: value for key, value in weights.items() if key != bias}
    for content, words in (
        (fewer, f"missing ({bias})"),
        ({**weights, "other": torch.ones(1)}, "unexpected (other)"),
        ({**weights, bias: torch.ones(16)}, f"mismatched ({bias})"),
    ):
        path = copy(words.split()[0])
        save_file(content, path / "model.safetensors", metadata={"format": "pt"})
        refuses(path, f"1 weights are {words}")

    path = copy("hands")
    settings = json.loads((path / "config.json").read_text())
    settings["id2label"] = {str(index): f"J{index}" for index in range(21)}
    settings["label2id"] = {f"J{index}": index for index in range(21)}
    (path / "config.json").write_text(json.dumps(settings))
    refuses(path, "finds 21 joints")
