"""The GAT-GeM head (8)-(13) against a float64 computation written from the paper in plain loops."""

from types import SimpleNamespace

import pytest
import torch
from fastreid.config import get_cfg
from fastreid.modeling.heads import REID_HEADS_REGISTRY
from hypothesis import given, settings
from hypothesis import strategies as st

from fastreid_star.errors import UserError
from fastreid_star.methods.star import heads as gg
from fastreid_star.methods.star.layers import BoneStates
from fastreid_star.modeling.heads import ClipHead
from fastreid_star.modeling.layers.pooling import gem

from .loops import loop_aggregate, loop_gem

D = 8
EXPONENTS = (0.7, 1.0, 3.0, 5.0, 7.0)


def head(feat_dim=D, score_threshold=0.3, **kwargs) -> gg.GATGeMHead:
    model = gg.GATGeMHead(
        feat_dim=feat_dim, num_classes=5, score_threshold=score_threshold, **kwargs
    )
    if model.guide != "release":
        torch.nn.init.normal_(model.gate_bias, std=0.5)
    return model


def without_dropout(model):
    model.gat.conv1.dropout = model.gat.conv2.dropout = model.gat.dropout = 0.0
    return model


def aggregate(model, frames, skeletons, has_skeleton, edge_state=None, explain=False):
    states = BoneStates(None, edge_state, None, None)
    outputs = {"corrected": frames, "bone_states": states}
    batch = {"skeletons": skeletons, "has_skeleton": has_skeleton}
    found = model.aggregate(outputs, batch, explain)
    return SimpleNamespace(**{"attention": None, "pose_logits": None, **found})


def clips(count=2, frames=3, feat_dim=D, dtype=torch.float32):
    """Features, skeletons with all scores above the threshold, and has_skeleton."""
    xy = 40 * torch.randn(count, frames, 17, 2) + 70
    score = 0.4 + 0.6 * torch.rand(count, frames, 17, 1)
    has = torch.ones(count, frames, dtype=torch.bool)
    return torch.rand(count, frames, feat_dim).to(dtype), torch.cat([xy, score], -1).to(dtype), has


def randomise_statistics(model):
    """Running statistics that are not those of a fresh layer, as after training."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            torch.nn.init.normal_(module.running_mean, std=0.3)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
            torch.nn.init.normal_(module.weight, mean=1, std=0.3)
            torch.nn.init.normal_(module.bias, std=0.3)


@pytest.mark.parametrize(
    ("guide", "graph"),
    [
        ("parts", "standardized"),
        ("parts", "release"),
        ("sigmoid", "normalized"),
        ("release", "release"),
    ],
)
@pytest.mark.parametrize("missing", [False, True])
def test_equations_8_to_13(guide, graph, missing):
    model = head(guide=guide, graph=graph).double().eval()
    randomise_statistics(model)
    frames, skeletons, has = clips(dtype=torch.float64)
    if missing:
        has[0, 1] = False
        if graph != "release":
            skeletons[1, 0, 13:, 2] = 0.1  # no leg is seen
    ok = has[..., None] & (skeletons[..., 2] >= (0 if graph == "release" else 0.3))
    edge_state = torch.randn(2, D).double()
    result = aggregate(model, frames, skeletons, has, edge_state)
    for b in range(2):
        expected = loop_aggregate(model, frames[b], skeletons[b], ok[b], edge_state[b])
        torch.testing.assert_close(result.clip[b], expected, atol=1e-9, rtol=1e-7)


def test_scores_of_another_pose_network_stay_bounded():
    """All scores are 1 in training, so their spread is 0; another network gives 0.5."""
    model = head()
    _, skeletons, has = clips(8)
    skeletons[..., 2] = 1
    valid = has[..., None].expand(*has.shape, 17)
    for _ in range(200):
        model.joint_inputs(skeletons, valid)
    model.eval()
    skeletons[..., 2] = 0.5
    inputs = model.joint_inputs(skeletons, valid)
    assert inputs.abs().max() <= 5 * 0.5 + 1e-6, "five standard deviations, times the score"
    assert (inputs[..., 2] == -2.5).all()


def test_equation_11():
    frames = torch.rand(2, 6, D).double()
    pooled = gg.gem_pyramid(frames, EXPONENTS)
    for k, p in enumerate(EXPONENTS):
        expected = torch.stack([loop_gem(clip, p) for clip in frames])
        torch.testing.assert_close(pooled[:, k], expected, atol=1e-12, rtol=1e-10)


def test_equation_13_with_all_gates_at_a_half_is_the_mean_over_the_exponents():
    pooled = torch.rand(2, 5, D)
    clip, gates = gg.weigh_by_parts(torch.zeros(2, 5, 4, D), pooled)
    torch.testing.assert_close(clip, pooled.mean(1))
    assert (gates == 0.5).all()
    opened, _ = gg.weigh_by_parts(torch.full((2, 5, 4, D), 30.0), pooled)
    torch.testing.assert_close(opened, 2 * pooled.mean(1))


def test_parts_add_to_the_pooled_feature_by_hand():
    pooled = torch.tensor([[[1.0, 3.0], [3.0, 5.0]]])  # K = 2, D = 2: the mean is 2, 4
    contributions = torch.tensor(
        [[[[1.0, -5.0], [2.0, 1.0]], [[4.0, 2.0], [9.0, 9.0]], [[7.0] * 2] * 2]]
    )
    seen = torch.tensor([[[True, True], [True, False], [False, False]]])
    # frame 1: relu(3, -4) = 3, 0; frame 2: its first part, 4, 2; frame 3 is not seen
    found = gg.add_parts(contributions, seen, pooled)
    torch.testing.assert_close(found, torch.tensor([[2 + 3.5, 4 + 1.0]]))
    shares = gg.part_shares(
        torch.tensor([[[[3.0, 4.0], [0.0, 15.0]], [[1.0, 0.0]] * 2]]), seen[:, :2]
    )
    torch.testing.assert_close(shares, torch.tensor([[(0.25 + 1) / 2, 0.75 / 2]]))


@pytest.mark.parametrize("guide", gg.GUIDES)
@pytest.mark.parametrize("training", [True, False])
def test_a_clip_without_a_skeleton_takes_the_baselines_path(guide, training):
    model = without_dropout(head(guide=guide)).train(training)
    frames, skeletons, has = clips(4)
    has[1] = False
    skeletons[1] = 0
    edge_state = torch.randn(4, D)
    result = aggregate(model, frames, skeletons, has, edge_state)
    assert torch.equal(result.clip[1], gem(frames, 3.0, dim=1)[1])
    assert result.has_clip.tolist() == [True, False, True, True]
    others = [0, 2, 3]
    alone = aggregate(model, frames[others], skeletons[others], has[others], edge_state[others])
    torch.testing.assert_close(result.clip[others], alone.clip, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(result.joints[others], alone.joints, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "case", ["zero features", "no skeletons", "one point", "one joint", "one clip"]
)
@pytest.mark.parametrize("guide", gg.GUIDES)
def test_gradients_stay_finite(case, guide):
    model = head(guide=guide)
    frames, skeletons, has = clips()
    if case == "zero features":
        frames.zero_()
    elif case == "no skeletons":
        has[:] = False
        skeletons.zero_()
    elif case == "one point":
        skeletons[..., :2] = 33.3
    elif case == "one joint":
        skeletons[..., 1:, :] = 0
    else:
        has[1] = False
    frames.requires_grad_()
    edge_state = torch.randn(2, D)
    result = aggregate(model, frames, skeletons, has, edge_state)
    outputs = model(result.clip, torch.arange(2))
    loss = outputs["cls_outputs"].sum() + outputs["features"].square().sum() + result.joints.sum()
    (loss if result.pose_logits is None else loss + result.pose_logits.sum()).backward()
    assert torch.isfinite(result.clip).all()
    assert torch.isfinite(frames.grad).all()
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all(), name


@settings(max_examples=15, deadline=None)
@given(
    frames=st.integers(1, 6),
    width=st.sampled_from([3, 8, 20]),
    exponents=st.lists(st.floats(0.5, 8), min_size=1, max_size=7),
    threshold=st.floats(0, 1.1),
    guide=st.sampled_from(gg.GUIDES),
    half=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_length_width_exponents_and_threshold_and_bfloat16(
    frames, width, exponents, threshold, guide, half, seed
):
    torch.manual_seed(seed)
    model = head(width, exponents=exponents, score_threshold=threshold, guide=guide)
    x, skeletons, has = clips(3, frames, width)
    skeletons[..., 2] = torch.rand(3, frames, 17)
    edge_state = torch.randn(3, width)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
        clip = aggregate(model, x, skeletons, has, edge_state).clip
    assert clip.shape == (3, width)
    assert clip.dtype == torch.float32
    assert torch.isfinite(clip).all()
    assert (clip >= 0).all()


@pytest.mark.parametrize("guide", gg.GUIDES)
def test_what_it_looked_at(guide):
    model = head(guide=guide).eval()
    frames, skeletons, has = clips(3, 4)
    has[0, 1] = False
    has[2] = False
    edge_state = torch.randn(3, D)
    assert aggregate(model, frames, skeletons, has, edge_state).attention is None
    seen = aggregate(model, frames, skeletons, has, edge_state, explain=True).attention
    assert seen["joint_attention"].shape == (3, 4, 17)
    torch.testing.assert_close(seen["joint_attention"].sum((1, 2)), 17.0 * has.sum(1))
    assert (seen["joint_attention"][0, 1] == 0).all()
    ones = torch.tensor([1.0, 1.0, 0.0])
    if guide != "parts":
        torch.testing.assert_close(seen["exponent_weights"].sum(1), ones)
    assert ("part_weights" in seen) == (guide != "release")
    if guide == "parts":
        torch.testing.assert_close(seen["part_weights"].sum(1), ones)
    if guide != "release":
        assert seen["part_weights"].shape == (3, 4)
        assert ((seen["part_weights"][:2] > 0) & (seen["part_weights"][:2] < 1)).all()
        assert (seen["part_weights"][2] == 0).all()


def test_registered_and_built_from_config():
    cfg = get_cfg()
    cfg.MODEL.HEADS.NUM_CLASSES = 6
    cfg.MODEL.HEADS.GEM_P = 2.0
    star = cfg.MODEL.STAR
    star.EXPONENTS, star.GUIDE, star.GRAPH = [1.0, 3.0], "sigmoid", "release"
    model = REID_HEADS_REGISTRY.get("GATGeMHead")(cfg, feat_dim=12)
    assert isinstance(model, ClipHead)
    assert model.exponents == (1.0, 3.0)
    assert (model.guide, model.graph, model.gem_p) == ("sigmoid", "release", 2.0)
    assert (model.gat.conv1.dropout, model.gat.conv2.dropout, model.gat.dropout) == (0.6, 0.6, 0.3)
    assert model.weight.shape == (6, 12)
    assert model.gate_weight.shape == (2, 4, 12, 12)
    with pytest.raises(UserError, match="EXPONENTS"):
        head(exponents=[1.0, 0.0])
