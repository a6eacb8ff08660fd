"""Grad-CAM of a similarity: against its definition worked out with autograd, and what it leaves behind."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fastreid.modeling.backbones.vision_transformer import VisionTransformer

from fastreid_star.data.clips import collate_clips
from fastreid_star.modeling.two_stream import TwoStreamBackbone
from fastreid_star.report.gradcam import explain, overlay, similarity_maps, target_layer


def by_definition(model, clip, feature):
    """The channels' mean gradients weigh the last maps; what is negative does not count. [T, h, w]."""
    batch = collate_clips([clip.item])
    visible = model.frame_modality(batch["modality"], len(clip.frames))
    images = model.preprocess(batch["images"], visible)
    maps = model.backbone(images, visible).detach().requires_grad_()
    frames = model.pool_frames(maps).unflatten(0, (1, -1))
    found = F.normalize(model.heads(model.clip_feature(frames, batch)[0]))[0]
    similarity = F.cosine_similarity(found, feature, dim=0)
    (gradient,) = torch.autograd.grad(similarity, maps)
    cam = (gradient.mean((2, 3), keepdim=True) * maps).sum(1).clamp(min=0)
    return cam.detach().numpy(), float(similarity.detach())


@pytest.mark.parametrize("run", ["star", "sad"])
def test_it_is_what_grad_cam_is(run, request):
    evaluated = request.getfixturevalue(run)
    features = evaluated.ranking.features
    kinds = set()
    for position in range(12):
        clip = evaluated.album.clip(position)
        maps, similarity = similarity_maps(evaluated.model, clip, features[20])
        cam, expected = by_definition(evaluated.model, clip, features[20])
        assert similarity == pytest.approx(expected, abs=1e-5)
        assert similarity == pytest.approx(float(features[position] @ features[20]), abs=1e-5), (
            "the evaluation's"
        )
        assert maps.shape == (3, 32, 16)
        resized = F.interpolate(
            torch.tensor(cam)[:, None], (32, 16), mode="bilinear", align_corners=False
        )[:, 0]
        kinds.add(bool(cam.any()))
        np.testing.assert_allclose(maps, resized / max(resized.max(), 1e-12), atol=1e-4)
    assert True in kinds, "no clip whose similarity anything speaks for"


def test_the_network_stays_as_it_was(star):
    before = {
        name: (p.requires_grad, p.clone(), p.grad) for name, p in star.model.named_parameters()
    }
    hooks = sum(len(module._forward_hooks) for module in star.model.modules())
    similarity_maps(star.model, star.album.clip(0), star.ranking.features[20])
    assert not star.model.training
    assert sum(len(module._forward_hooks) for module in star.model.modules()) == hooks
    for name, parameter in star.model.named_parameters():
        required, values, gradient = before[name]
        assert parameter.requires_grad == required
        assert torch.equal(parameter, values)
        assert parameter.grad is gradient


def test_no_gradient_runs_through_the_lstm(star):
    lstm = star.model.corrector.encoder.lstm
    seen = []
    handle = lstm.register_forward_hook(
        lambda module, inputs, outputs: seen.append(outputs[0].requires_grad)
    )
    try:
        similarity_maps(star.model, star.album.clip(0), star.ranking.features[20])
    finally:
        handle.remove()
    assert seen == [False]


def test_a_transformers_tokens_become_maps():
    torch.manual_seed(0)
    net = VisionTransformer(
        img_size=(32, 16), stride_size=8, patch_size=8, embed_dim=12, depth=4, num_heads=2
    )
    backbone = TwoStreamBackbone(net, (32, 16))
    layer, to_maps = target_layer(backbone)
    assert layer is backbone.stages[2]
    tokens = (
        torch.arange(9.0).view(1, 9, 1).expand(2, 9, 12)
    )  # the class token, then 4 rows of 2 patches
    maps = to_maps(tokens)
    assert maps.shape == (2, 12, 4, 2)
    assert maps[0, 0].tolist() == [[1, 2], [3, 4], [5, 6], [7, 8]]


def test_a_picture_is_grey_where_nothing_speaks_and_red_where_most_does():
    frame = np.full((8, 4, 3), (10, 120, 200), np.uint8)
    heat = np.zeros((8, 4), np.float32)
    heat[:4] = 1
    picture = overlay(frame, heat, 16)
    assert picture.shape == (16, 8, 3)
    assert len(set(picture[15, 0].tolist())) == 1
    red, green, blue = picture[0, 0].astype(int)
    assert red > green
    assert red > blue


def test_an_explanation_says_whose_it_is(star):
    made = explain("a run", star.model, star.album.clip(0), star.ranking.features[20], height=40)
    assert made.picture.height == 40
    assert made.name == "a run"
    assert "in a run" in made.picture.alt
    assert made.similarity == pytest.approx(
        float(star.ranking.features[0] @ star.ranking.features[20]), abs=1e-5
    )
