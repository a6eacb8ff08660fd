"""The GAT-GeM head (8)-(13) against a float64 computation written from the paper in plain loops."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from fastreid.config import get_cfg
from fastreid.modeling.heads import REID_HEADS_REGISTRY
from hypothesis import given, settings
from hypothesis import strategies as st

from fastreid_star.coco import BONES, PARTS
from fastreid_star.errors import UserError
from fastreid_star.methods.star import heads as gg
from fastreid_star.methods.star.layers import BoneStates
from fastreid_star.modeling.heads import ClipHead
from fastreid_star.modeling.layers.pooling import gem

D = 8
EXPONENTS = (0.7, 1.0, 3.0, 5.0, 7.0)


def head(feat_dim=D, score_threshold=0.3, **kwargs) -> gg.GATGeMHead:
    model = gg.GATGeMHead(
        feat_dim=feat_dim, num_classes=5, score_threshold=score_threshold, **kwargs
    )
    if model.guide != "release":
        torch.nn.init.normal_(model.gate_bias, std=0.5)
    return model


def aggregate(model, frames, skeletons, has_skeleton, edge_state=None, explain=False):
    states = BoneStates(None, edge_state, None, None, None)
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


def loop_gat_layer(state, name, heads, x, ok, near):
    """Equation (10), a node at a time."""
    weight, bias = state[f"{name}.lin.weight"], state[f"{name}.bias"]
    out = []
    for i in range(len(x)):
        parts = []
        for h, (w, a_s, a_d) in enumerate(
            zip(
                weight.chunk(heads),
                state[f"{name}.att_src"][0, 0],
                state[f"{name}.att_dst"][0, 0],
                strict=True,
            )
        ):
            sources = [i] + [j for j in near[i] if ok[j]]
            e = torch.stack([a_d @ (w @ x[i]) + a_s @ (w @ x[j]) for j in sources])
            alpha = torch.softmax(torch.where(e > 0, e, 0.2 * e), 0)
            total = sum(a * (w @ x[j]) for a, j in zip(alpha, sources, strict=True))
            parts.append(total + bias.chunk(heads)[h])
        out.append(torch.cat(parts))
    out = torch.stack(out)
    return torch.where(out > 0, out, torch.exp(out) - 1)


def loop_norm(state, name, x):
    scale = state[f"{name}.weight"] / torch.sqrt(state[f"{name}.running_var"] + 1e-5)
    return (x - state[f"{name}.running_mean"]) * scale + state[f"{name}.bias"]


def loop_nodes(state, skeleton, ok, graph):
    """Equations (8)-(10) of one clip: h' ``[T, V, 12]``."""
    length = len(skeleton)
    joints = skeleton.clone()
    if graph == "paper":
        points = skeleton[ok][:, :2]
        scale = (points - points.mean(0)).square().sum(1).mean().sqrt()
        joints[..., :2] = (skeleton[..., :2] - points.mean(0)) / scale
    joints = torch.where(ok[..., None], joints, torch.zeros_like(joints)).flatten(0, 1)
    near = {i: [] for i in range(17 * length)}
    for t in range(length if graph == "paper" else 1):
        for i, j in BONES:
            near[17 * t + i].append(17 * t + j)
            near[17 * t + j].append(17 * t + i)
    for i in range(17 * (length - 1)):
        near[i].append(i + 17)
        near[i + 17].append(i)
    h = loop_gat_layer(state, "gat.conv1", 2, joints, ok.flatten(), near)
    h = loop_gat_layer(state, "gat.conv2", 1, h, ok.flatten(), near)
    if "gat.norm.weight" in state:
        h = loop_norm(state, "gat.norm", h)
    return h.view(length, 17, -1) * ok[..., None]


def loop_gem(frames, p):
    """Equation (11), with the clamp and the root's 1e-12."""
    return (sum(x.clamp(min=1e-6) ** p for x in frames) / len(frames) + 1e-12) ** (1 / p)


def loop_aggregate(model, frames, skeleton, ok, edge_state):
    """Equations (11)-(13) of one clip, part by part and exponent by exponent."""
    state = model.state_dict()
    nodes = loop_nodes(state, skeleton, ok, model.graph)
    pooled = [loop_gem(frames, p) for p in model.exponents]
    if model.guide == "release":
        flat, width = nodes.flatten(), frames.shape[1]
        bins = [  # adaptive average pooling
            flat[len(flat) * d // width : -(-len(flat) * (d + 1) // width)].mean()
            for d in range(width)
        ]
        guide = loop_norm(state, "guide_norm", torch.cat([edge_state, torch.stack(bins)]))
        logits = [
            w @ guide + b
            for w, b in zip(
                state["guide_layer.weight"].chunk(len(pooled)),
                state["guide_layer.bias"].chunk(len(pooled)),
                strict=True,
            )
        ]
        weights = torch.softmax(torch.stack(logits), 0)
        return sum(w * g for w, g in zip(weights, pooled, strict=True))
    tokens = []
    for joints in PARTS.values():
        rows = [nodes[t, i] for t in range(len(nodes)) for i in joints if ok[t, i]]
        tokens.append(sum(rows) / len(rows))
    tokens = loop_norm(state, "token_norm", torch.cat(tokens)).view(len(PARTS), -1)
    logits = torch.stack(
        [
            torch.stack(
                [
                    state["gate_weight"][k, p] @ tokens[p] + state["gate_bias"][k, p]
                    for p in range(len(PARTS))
                ]
            )
            for k in range(len(pooled))
        ]
    )
    if model.guide == "softmax":
        weights = torch.softmax(logits.mean(1), 0)
        return sum(w * g for w, g in zip(weights, pooled, strict=True))
    total = 0
    for k, g in enumerate(pooled):
        for p in range(len(PARTS)):
            total = total + g / (1 + torch.exp(-logits[k, p]))
    return 2 * total / (len(pooled) * len(PARTS))


@pytest.mark.parametrize(
    ("guide", "graph"),
    [("sigmoid", "paper"), ("softmax", "paper"), ("release", "release"), ("sigmoid", "release")],
)
@pytest.mark.parametrize("missing", [False, True])
def test_equations_8_to_13(guide, graph, missing):
    model = head(guide=guide, graph=graph).double().eval()
    randomise_statistics(model)
    frames, skeletons, has = clips(dtype=torch.float64)
    if missing:
        has[0, 1] = False
        if graph == "paper":
            skeletons[1, 0, 13:, 2] = 0.1
    ok = has[..., None] & (skeletons[..., 2] >= (0 if graph == "release" else 0.3))
    edge_state = torch.randn(2, D).double()
    result = aggregate(model, frames, skeletons, has, edge_state)
    for b in range(2):
        expected = loop_aggregate(model, frames[b], skeletons[b], ok[b], edge_state[b])
        torch.testing.assert_close(result.clip[b], expected, atol=1e-9, rtol=1e-7)


def test_equation_11():
    frames = torch.rand(2, 6, D).double()
    pooled = gg.gem_pyramid(frames, EXPONENTS)
    for k, p in enumerate(EXPONENTS):
        expected = torch.stack([loop_gem(clip, p) for clip in frames])
        torch.testing.assert_close(pooled[:, k], expected, atol=1e-12, rtol=1e-10)
    assert (
        pooled[:, 1:] >= pooled[:, :-1] - 1e-9
    ).all()  # the mean at 1, towards the maximum as p grows
    torch.testing.assert_close(pooled[:, 1], frames.mean(1))


def test_equation_12():
    nodes, valid = torch.randn(2, 3, 17, 4), torch.rand(2, 3, 17) > 0.3
    valid[1, :, [13, 14, 15, 16]] = False
    members = head().members
    tokens, seen = gg.part_tokens(nodes, valid, members)
    for b in range(2):
        for p, joints in enumerate(PARTS.values()):
            rows = [nodes[b, t, i] for t in range(3) for i in joints if valid[b, t, i]]
            assert seen[b, p] == bool(rows)
            expected = sum(rows) / len(rows) if rows else torch.zeros(4)
            torch.testing.assert_close(tokens[b, p], expected)
    assert not seen[1, 3]


def test_a_part_of_which_one_joint_is_seen_once_is_that_joint():
    nodes, valid = torch.randn(1, 3, 17, 4), torch.zeros(1, 3, 17, dtype=torch.bool)
    joints = next(iter(PARTS.values()))
    valid[0, 1, joints[-1]] = True
    members = torch.zeros(len(PARTS), 17, dtype=torch.bool)
    for part, joints_of_it in enumerate(PARTS.values()):
        members[part, list(joints_of_it)] = True
    tokens, seen = gg.part_tokens(nodes, valid, members)
    assert seen.tolist() == [[joints[-1] in joints_of_it for joints_of_it in PARTS.values()]]
    torch.testing.assert_close(tokens[0, 0], nodes[0, 1, joints[-1]])


def test_equation_13_with_all_gates_at_a_half_is_the_mean_over_the_exponents():
    pooled = torch.rand(2, 5, D)
    clip, gates = gg.weigh_by_parts(torch.zeros(2, 5, 4, D), pooled)
    torch.testing.assert_close(clip, pooled.mean(1))
    assert (gates == 0.5).all()
    opened, _ = gg.weigh_by_parts(torch.full((2, 5, 4, D), 30.0), pooled)
    torch.testing.assert_close(opened, 2 * pooled.mean(1))


def test_parts_can_be_told_apart():
    model = head().eval()
    frames, skeletons, has = clips()
    before = aggregate(model, frames, skeletons, has, explain=True).attention["part_weights"]
    with torch.no_grad():
        model.gate_bias[:, 2] += 3
    after = aggregate(model, frames, skeletons, has, explain=True).attention["part_weights"]
    changed = (after - before).abs() > 1e-4
    assert changed.all(0).tolist() == [False, False, True, False]
    assert not changed[:, [0, 1, 3]].any()


def test_the_skeleton_changes_the_clip_feature():
    model = head().eval()
    frames, skeletons, has = clips()
    swapped = aggregate(model, frames, skeletons.flip(0), has).clip
    assert (swapped - aggregate(model, frames, skeletons, has).clip).abs().max() > 1e-3


@pytest.mark.parametrize("guide", gg.GUIDES)
@pytest.mark.parametrize("training", [True, False])
def test_a_clip_without_a_skeleton_takes_the_baselines_path(guide, training):
    model = head(guide=guide, attention_dropout=0.0, dropout=0.0).train(training)
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


def test_with_no_skeleton_at_all_it_is_the_baselines_head():
    model, baseline = head(), ClipHead(feat_dim=D, num_classes=5)
    frames, skeletons, has = clips(4)
    clip = aggregate(model, frames, skeletons, torch.zeros_like(has)).clip
    assert torch.equal(clip, baseline.pool(frames))
    for name, value in model.gat.norm.state_dict().items():
        if name != "num_batches_tracked":
            assert torch.equal(value, torch.nn.BatchNorm1d(12).state_dict()[name])


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


def test_power_pooling_where_single_frames_are_zero():
    frames = torch.rand(2, 4, D)
    frames[:, 1] = 0
    frames[:, :, 0] = 0
    frames.requires_grad_()
    pooled = gg.gem_pyramid(frames, EXPONENTS)
    pooled.sum().backward()
    assert torch.isfinite(pooled).all()
    assert torch.isfinite(frames.grad).all()
    assert frames.grad.abs().max() < 100


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
        result = aggregate(model, x, skeletons, has, edge_state)
    assert result.clip.shape == (3, width)
    assert result.clip.dtype == torch.float32
    assert torch.isfinite(result.clip).all()
    assert (result.clip >= 0).all()
    if half:
        model.eval()
        exact = aggregate(model, x, skeletons, has, edge_state).clip
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = aggregate(model, x, skeletons, has, edge_state).clip
        torch.testing.assert_close(rough, exact, atol=0.1, rtol=0.1)


@pytest.mark.parametrize("guide", ["sigmoid", "softmax"])
def test_the_size_of_the_crop_does_not_matter(guide):
    model = head(guide=guide).eval()
    frames, skeletons, has = clips()
    moved = skeletons * torch.tensor([2.5, 2.5, 1]) + torch.tensor([11.0, -7.0, 0])
    a, b = (aggregate(model, frames, s, has).clip for s in (skeletons, moved))
    torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    raw = head(graph="release").eval()
    a, b = (aggregate(raw, frames, s, has).clip for s in (skeletons, moved))
    assert (a - b).abs().max() > 1e-3


def test_what_the_release_reads_and_lacks():
    release, ours = head(guide="release", graph="release"), head()
    assert release.gat.norm is None
    assert release.guide_layer.weight.shape == (5 * D, 2 * D)
    assert "bone_states" in release.needs
    assert "bone_states" not in ours.needs
    frames, skeletons, has = clips()
    low = skeletons.clone()
    low[..., 2] = 0.05
    assert aggregate(release.eval(), frames, low, has, torch.zeros(2, D)).has_clip.all()
    assert not aggregate(ours, frames, low, has).has_clip.any()


def test_pose_logits_for_the_release_loss():
    frames, skeletons, has = clips()
    edge_state = torch.randn(2, D)
    assert aggregate(head(guide="release"), frames, skeletons, has, edge_state).pose_logits is None
    model = head(guide="release", pose_logits=True)
    assert aggregate(model, frames, skeletons, has, edge_state).pose_logits.shape == (2, 5)
    assert aggregate(model.eval(), frames, skeletons, has, edge_state).pose_logits is None


def test_joint_features_are_means_over_the_frames():
    model = head().eval()
    frames, skeletons, has = clips(2, 4)
    has[1, 3] = False
    joints = aggregate(model, frames, skeletons, has).joints
    nodes = loop_nodes(
        model.double().state_dict(), skeletons[1].double(), has[1, :, None].expand(4, 17), "paper"
    )
    torch.testing.assert_close(joints[1].double(), nodes[:3].mean(0), atol=1e-5, rtol=1e-4)


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
    torch.testing.assert_close(seen["exponent_weights"].sum(1), torch.tensor([1.0, 1.0, 0.0]))
    assert ("part_weights" in seen) == (guide == "sigmoid")
    if guide == "sigmoid":
        assert seen["part_weights"].shape == (3, 4)
        assert ((seen["part_weights"][:2] > 0) & (seen["part_weights"][:2] < 1)).all()
        assert (seen["part_weights"][2] == 0).all()


def test_registered_and_built_from_config():
    cfg = get_cfg()
    cfg.MODEL.HEADS.NUM_CLASSES = 6
    cfg.MODEL.HEADS.GEM_P = 2.0
    star = cfg.MODEL.STAR
    star.EXPONENTS, star.GUIDE, star.GRAPH = [1.0, 3.0], "softmax", "release"
    star.ATTENTION_DROPOUT, star.GAT_DROPOUT = 0.2, 0.1
    model = REID_HEADS_REGISTRY.get("GATGeMHead")(cfg, feat_dim=12)
    assert isinstance(model, ClipHead)
    assert model.exponents == (1.0, 3.0)
    assert (model.guide, model.graph, model.gem_p) == ("softmax", "release", 2.0)
    assert (model.gat.conv1.dropout, model.gat.conv2.dropout, model.gat.dropout) == (0.2, 0.2, 0.1)
    assert model.weight.shape == (6, 12)
    assert model.gate_weight.shape == (2, 4, 12, 12)
    cfg.MODEL.STAR.GUIDE = "release"
    assert REID_HEADS_REGISTRY.get("GATGeMHead")(cfg, feat_dim=12).pose_classifier is None
    cfg.MODEL.LOSSES.NAME = ("CrossEntropyLoss", "PoseConsistencyLoss")
    assert REID_HEADS_REGISTRY.get("GATGeMHead")(cfg, feat_dim=12).pose_classifier.weight.shape == (
        6,
        24,
    )


def test_the_whole_head_trains_on_frames_and_skeletons():
    model = head()
    frames, skeletons, has = clips(4)
    outputs = model(aggregate(model, frames, skeletons, has).clip, torch.arange(4))
    F.cross_entropy(outputs["cls_outputs"], torch.arange(4)).backward()
    untouched = [
        n
        for n, p in model.named_parameters()
        if p.requires_grad and (p.grad is None or not p.grad.any())
    ]
    assert untouched == []


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"exponents": []}, "EXPONENTS"),
        ({"exponents": [1.0, 0.0]}, "EXPONENTS"),
        ({"guide": "mean"}, "GUIDE is 'mean': choose one of sigmoid, softmax, release"),
        ({"pose_logits": True}, "but the guide is sigmoid"),
        ({"graph": "full"}, "GRAPH is 'full': choose one of paper, release"),
    ],
)
def test_errors_name_the_key(kwargs, message):
    with pytest.raises(UserError, match=message):
        head(**kwargs)
