"""What the network looked at: its own weights are shown, and Grad-CAM follows its definition."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fastreid.modeling.backbones.vision_transformer import VisionTransformer

from fastreid_star.data.clips import collate_clips
from fastreid_star.modeling.backbones import TwoStreamBackbone
from fastreid_star.report import plots
from fastreid_star.report.explain import (
    NAMES,
    attention,
    blend,
    constant_weights,
    explain_clips,
    gradcam,
    sample_weights,
    similarity_maps,
    target_layer,
    untrained,
    weight_charts,
)

EXPONENTS = [0.7, 1.0, 3.0, 5.0, 7.0]


def test_attention_is_drawn_on_the_joints_that_received_it(star):
    clips = [star.album.clip(0), star.album.clip(20)]
    seen = explain_clips(star.model, [clip.item for clip in clips])
    found = attention(star.model, star.album, {"query": 0, "match": 20})
    assert [one["role"] for one in found] == ["query", "match"]
    for row, one in enumerate(found):
        assert one["updates"] == pytest.approx(seen["frame_updates"][row])
        received = seen["joint_attention"][row]
        radii = [float(r) for r in re.findall(r' r="([\d.]+)"', one["picture"].overlay)]
        expected = 0.055 * 32 * np.sqrt(np.minimum(np.sort(received), 2) / 2).flatten()
        np.testing.assert_allclose(radii, expected, atol=0.006)


def test_a_clip_without_a_skeleton_has_no_circles_and_is_in_no_spread(star, monkeypatch):
    item = star.ranking.dataset[2]
    lost = {**item, "has_skeleton": torch.zeros(3, dtype=torch.bool)}
    weights = explain_clips(star.model, [lost])
    assert not any(values.any() for values in weights.values())
    items = {0: star.ranking.dataset[0], 1: lost}
    sample = sample_weights(star.model, items)
    assert all(len(values) == 1 for values in sample.values())
    assert sample_weights(star.model, {0: lost}) == {}


def test_charts_compare_the_trained_and_the_untrained_network(star, monkeypatch):
    drawn = {}
    monkeypatch.setattr(
        plots, "ranges", lambda groups, names, title, **_: drawn.update({title: (groups, names)})
    )
    trained = sample_weights(star.model, star.ranking.dataset)
    fresh = untrained(star.run.cfg, star.model)
    random = sample_weights(fresh, star.ranking.dataset)
    assert all(len(values) == len(star.ranking.tracklets) for values in trained.values())
    weight_charts(trained, random, EXPONENTS)
    assert len(drawn) == 5
    groups, names = drawn["Body parts (13)"]
    assert names == ["head", "torso", "arms", "legs"]
    np.testing.assert_allclose(groups["trained"], trained["part_weights"])
    groups, names = drawn["Correction of the frames (7)"]
    assert names == ["frame 1", "frame 2", "frame 3"]
    np.testing.assert_allclose(groups["untrained"], random["frame_updates"])
    groups, names = drawn["Joint attention (10)"]
    assert (len(names), names[0]) == (17, "nose")
    np.testing.assert_allclose(groups["trained"], trained["joint_attention"].mean(1))
    exponents = np.random.default_rng(0).uniform(size=(4, 5))
    weight_charts({"exponent_weights": exponents}, {"exponent_weights": exponents}, EXPONENTS)
    groups, names = drawn["Exponents (13)"]
    assert names[0] == "p = 0.7"
    np.testing.assert_allclose(groups["trained"], exponents)
    assert not torch.equal(next(fresh.parameters()), next(star.model.parameters()))


def test_a_network_with_fewer_parts_has_fewer_charts():
    weights = {"joint_attention": np.ones((4, 3, 17))}
    assert len(weight_charts(weights, weights, EXPONENTS)) == 1
    assert weight_charts({}, {}, EXPONENTS) == []


def test_a_gate_that_does_not_depend_on_its_input_is_named():
    rng = np.random.default_rng(0)
    weights = {
        "part_weights": 0.5 + 0.001 * rng.normal(size=(50, 4)),
        "frame_updates": rng.uniform(size=(50, 3)),
        "exponent_weights": np.full((50, 5), 0.2),
    }
    weights["exponent_weights"][:, 4] = rng.uniform(0.1, 0.3, 50)  # one of five depends
    (sentence,) = constant_weights(weights)
    assert sentence.startswith(NAMES["part_weights"])
    assert "10 %" in sentence, "the criterion"


def by_definition(model, clip, feature):
    """The mean gradients of the channels weigh the last maps; negative values count as 0."""
    batch = model.move_skeletons(collate_clips([clip.item]))
    visible = model.frame_modality(batch, len(clip.frames))
    maps = model.backbone(model.preprocess(batch["images"], visible), visible)
    maps = maps.detach().requires_grad_()
    outputs = {"is_visible": visible, "frames": model.pool_frames(maps).unflatten(0, (1, -1))}
    model.encode_clip(outputs, batch, False)
    found = F.normalize(model.heads(outputs["clip"]))[0]
    similarity = F.cosine_similarity(found, feature, dim=0)
    (gradient,) = torch.autograd.grad(similarity, maps)
    cam = (gradient.mean((2, 3), keepdim=True) * maps).sum(1).clamp(min=0)
    return cam.detach(), float(similarity.detach())


@pytest.mark.parametrize("run", ["star", "sad"])
def test_grad_cam_follows_its_definition(run, request):
    e = request.getfixturevalue(run)
    features = e.ranking.features
    kinds = set()
    for position in range(16):
        clip = e.album.clip(position)
        maps, similarity = similarity_maps(e.model, clip, features[20])
        cam, expected = by_definition(e.model, clip, features[20])
        assert similarity == pytest.approx(expected, abs=1e-5)
        assert similarity == pytest.approx(float(features[position] @ features[20]), abs=1e-5)
        resized = F.interpolate(cam[:, None], (32, 16), mode="bilinear")[:, 0]
        kinds.add(bool(cam.any()))
        np.testing.assert_allclose(maps, resized / max(resized.max(), 1e-12), atol=1e-4)
    assert True in kinds, "no clip has a similarity that anything contributes to"
    assert not any(module._forward_hooks for module in e.model.modules())
    assert not any(p.requires_grad for p in e.model.parameters()), "cuDNN's LSTM refuses gradients"


class Parts(torch.nn.Module):
    """Features of two parts: the mean of the last maps in the upper and in the lower half."""

    def __init__(self):
        super().__init__()
        self.backbone = torch.nn.Module()
        self.backbone.spatial_dims = (2, 3)
        self.backbone.non_local = torch.nn.ModuleDict()
        self.backbone.stages = torch.nn.ModuleList(torch.nn.Conv2d(3, 3, 1) for _ in range(4))
        self.requires_grad_(False)

    def forward(self, batch):
        maps = self.backbone.stages[3](batch["images"].flatten(0, 1))
        return torch.stack([half.mean((0, 2, 3)) for half in maps.chunk(2, dim=2)])[None]


def test_grad_cam_of_parts_has_their_distance(star):
    """The gradient of minus the mean distance, by hand: the cosine of the flattened parts has another one."""
    torch.manual_seed(0)
    model, clip = Parts(), star.album.clip(0)
    batch = collate_clips([clip.item])
    found = model({"images": batch["images"].float()})[0]
    feature = found + torch.tensor([[3.0, 0, 4], [0, 2, 0]])
    maps, similarity = similarity_maps(model, clip, feature)
    assert similarity == pytest.approx(-(5 + 2) / 2, abs=1e-4)
    last = model.backbone.stages[3](batch["images"].float().flatten(0, 1))
    weights = torch.tensor([[0.6, 0, 0.8], [0, 1, 0]]).mean(0)  # times the same area for each
    cam = (last * weights[:, None, None]).sum(1).clamp(min=0)
    np.testing.assert_allclose(maps, cam / cam.max(), atol=1e-4)
    assert replace(star.ranking, features=feature[None]).measure.startswith("similarity (minus")
    assert star.ranking.measure == "cosine similarity"


def test_the_tokens_of_a_transformer_become_maps():
    torch.manual_seed(0)
    size = {"img_size": (32, 16), "stride_size": 8, "patch_size": 8, "embed_dim": 12}
    net = VisionTransformer(**size, depth=4, num_heads=2)
    backbone = TwoStreamBackbone(net, (32, 16))
    layer, to_maps = target_layer(backbone)
    assert layer is backbone.stages[2]
    tokens = torch.arange(9.0).view(1, 9, 1).expand(2, 9, 12)  # the class token, then 4 x 2 patches
    maps = to_maps(tokens)
    assert maps.shape == (2, 12, 4, 2)
    assert maps[0, 0].tolist() == [[1, 2], [3, 4], [5, 6], [7, 8]]


def test_a_map_is_gray_where_nothing_contributes_and_red_where_most_does(star):
    frame = np.full((8, 4, 3), (10, 120, 200), np.uint8)
    heat = np.zeros((8, 4), np.float32)
    heat[:4] = 1
    picture = np.asarray(blend(frame, heat)).astype(int)
    assert len(set(picture[-1, 0].tolist())) == 1
    red, green, blue = picture[0, 0]
    assert red > max(green, blue)
    similarity, shown = gradcam(
        star.model, star.album.clip(0), star.ranking.features[20], height=40, about="a run"
    )
    assert shown.height == 40
    assert "a run" in shown.alt
    features = star.ranking.features
    assert similarity == pytest.approx(float(features[0] @ features[20]), abs=1e-5)
