"""The frame corrector (1)-(7) against plain loops in float64, written from the paper."""

import math
from types import SimpleNamespace

import pytest
import torch
from fastreid.config import get_cfg
from hypothesis import given, settings
from hypothesis import strategies as st

from fastreid_star.coco import BONES
from fastreid_star.errors import UserError
from fastreid_star.methods.star.layers import (
    BoneEncoder,
    SkeletonFrameCorrector,
)

D = 16


def corrector(
    reading="paper", bones="normalized", feat_dim=D, score_threshold=0.3, **kwargs
) -> SkeletonFrameCorrector:
    encoder = BoneEncoder(
        feat_dim=feat_dim, bones=bones, hidden=8, score_threshold=score_threshold, **kwargs
    )
    return SkeletonFrameCorrector(feat_dim=feat_dim, encoder=encoder, reading=reading, reduction=4)


def correct(model, frames, skeletons, has_skeleton, explain=False):
    batch = {"skeletons": skeletons, "has_skeleton": has_skeleton}
    return SimpleNamespace(**{"attention": None, **model(frames, batch, explain)})


def clips(count=2, frames=4, feat_dim=D, dtype=torch.float32):
    """Features, skeletons with all scores above the threshold, and has_skeleton."""
    xy = 40 * torch.randn(count, frames, 17, 2) + 70
    score = 0.4 + 0.6 * torch.rand(count, frames, 17, 1)
    has = torch.ones(count, frames, dtype=torch.bool)
    return torch.rand(count, frames, feat_dim).to(dtype), torch.cat([xy, score], -1).to(dtype), has


def sigmoid(x):
    return 1 / (1 + torch.exp(-x))


def loop_bones(skeleton, ok, reading):
    """Equations (1)-(2) for one skeleton ``[V, 3]``."""
    xy = skeleton[:, :2]
    points = xy[ok]
    scale = (points - points.mean(0)).square().sum(1).mean().sqrt() if len(points) else 1.0
    rows = []
    for i, j in BONES:
        dx, dy = xy[j] - xy[i]
        d, theta = torch.sqrt(dx**2 + dy**2), torch.atan2(dy, dx)
        row = (
            [d, theta] if reading == "release" else [d / scale, torch.sin(theta), torch.cos(theta)]
        )
        rows.append(torch.stack(row) * float(ok[i] and ok[j]))
    return torch.stack(rows).flatten()


def loop_lstm(inputs, weights):
    """One direction of equation (3) over inputs ``[T, F]``, gate by gate."""
    w_ih, w_hh, b_ih, b_hh = weights
    h = c = torch.zeros(w_hh.shape[1], dtype=inputs.dtype)
    outputs = []
    for x in inputs:
        i, f, g, o = (w_ih @ x + b_ih + w_hh @ h + b_hh).chunk(4)
        c = sigmoid(f) * c + sigmoid(i) * torch.tanh(g)
        h = sigmoid(o) * torch.tanh(c)
        outputs.append(h)
    return torch.stack(outputs)


def loop_attention(module, queries, sources, open_keys):
    """Cross attention (4) or (6) of one clip: ``[T, D]`` by ``[T, D]``, head by head."""
    state, heads = module.state_dict(), module.num_heads
    projected = [
        x @ w.T + b
        for x, w, b in zip(
            (queries, sources, sources),
            state["in_proj_weight"].chunk(3),
            state["in_proj_bias"].chunk(3),
            strict=True,
        )
    ]
    size, out = queries.shape[1] // heads, []
    for q, k, v in zip(*(x.split(size, dim=1) for x in projected), strict=True):
        e = torch.exp(q @ k.T / math.sqrt(size)) * open_keys
        out.append(e / e.sum(1, keepdim=True) @ v)
    return torch.cat(out, dim=1) @ state["out_proj.weight"].T + state["out_proj.bias"]


def loop_corrector(model, x, skeleton, has, bones, threshold):
    """Equations (1)-(7) for one clip; S ``[T, D]`` and Y ``[T, D]``."""
    state = model.state_dict()
    ok = has[:, None] & (skeleton[..., 2] >= threshold)
    seen = ok.any(1)
    features = torch.stack([loop_bones(s, o, bones) for s, o in zip(skeleton, ok, strict=True)])
    inputs = (features @ state["encoder.fc.weight"].T + state["encoder.fc.bias"]) * seen[:, None]
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    forward = loop_lstm(inputs, [state[f"encoder.lstm.{name}"] for name in names])
    backward = loop_lstm(
        inputs.flip(0), [state[f"encoder.lstm.{name}_reverse"] for name in names]
    ).flip(0)
    s = torch.cat([forward, backward], dim=1)
    h_t = loop_attention(model.attend_time, x, s, seen.double())
    h_o = loop_attention(model.attend_visual, s, x, torch.ones(len(x)).double())
    hidden = torch.cat([h_o, h_t], dim=1) @ state["ffn.0.weight"].T + state["ffn.0.bias"]
    update = hidden.clamp(min=0) @ state["ffn.2.weight"].T + state["ffn.2.bias"]
    gates = torch.ones_like(update)
    if model.se is not None:
        update = (update - update.mean(1, keepdim=True)) / (
            update.var(1, unbiased=False, keepdim=True) + 1e-5
        ).sqrt()
        update = update * state["norm.weight"] + state["norm.bias"]
        gates = sigmoid((h_t @ state["se.0.weight"].T).clamp(min=0) @ state["se.2.weight"].T)
    y = update.clamp(min=0) * gates + x + 1e-3
    return s, torch.where(seen[:, None], y, x)


@pytest.mark.parametrize(
    ("reading", "bones"), [("paper", "normalized"), ("paper", "release"), ("release", "release")]
)
@pytest.mark.parametrize("missing", [False, True])
def test_equations_1_to_7(reading, bones, missing):
    model = corrector(reading, bones).double().eval()
    x, skeletons, has = clips(dtype=torch.float64)
    if missing:
        has[0, 1] = has[1, 3] = False
        if bones == "normalized":
            skeletons[1, 0, 13:, 2] = 0.1
    result = correct(model, x, skeletons, has)
    for b in range(len(x)):
        s, y = loop_corrector(
            model, x[b], skeletons[b], has[b], bones, -1 if bones == "release" else 0.3
        )
        torch.testing.assert_close(result.bone_states.states[b], s, atol=1e-9, rtol=1e-7)
        torch.testing.assert_close(result.corrected[b], y, atol=1e-9, rtol=1e-7)


def test_a_clip_without_a_skeleton_keeps_its_features_exactly():
    model = corrector()
    x, skeletons, has = clips(3)
    has[1] = False
    x.requires_grad_()
    y = correct(model, x, skeletons, has).corrected
    assert torch.equal(y[1], x[1])
    assert (y[0] >= x[0] + 1e-3).all()
    alone = correct(model, x[[0, 2]], skeletons[[0, 2]], has[[0, 2]]).corrected
    torch.testing.assert_close(y[[0, 2]], alone)  # and the others do not notice
    y.sum().backward()
    assert torch.equal(x.grad[1], torch.ones_like(x.grad[1]))


def test_a_frame_without_a_skeleton():
    model = corrector()
    x, skeletons, has = clips(1)
    has[0, 2] = False
    result = correct(model, x, skeletons, has, explain=True)
    assert torch.equal(result.corrected[0, 2], x[0, 2])
    assert (result.attention["frame_attention"][0, :, 2] == 0).all()
    assert (result.attention["frame_attention"][0, [0, 1, 3]].sum(-1) > 0.999).all()
    assert not result.bone_states.seen[0, 2]
    plain, garbage = correct(model, x, skeletons, has).corrected, skeletons.clone()
    garbage[0, 2] = float("nan")
    assert torch.equal(correct(model, x, garbage, has).corrected, plain)
    # a stored skeleton of which no joint counts is the same
    low, stored = skeletons.clone(), torch.ones_like(has)
    low[0, 2, :, 2] = 0.0
    assert torch.equal(correct(model, x, low, stored).corrected, plain)


@pytest.mark.parametrize("case", ["zero features", "no skeletons", "one point", "one joint"])
@pytest.mark.parametrize("reading", ["paper", "release"])
@pytest.mark.parametrize(
    "explain", [False, True]
)  # two kernels, one of which turns a closed row into NaN
def test_gradients_stay_finite(case, reading, explain):
    model = corrector(reading, "release" if reading == "release" else "normalized")
    x, skeletons, has = clips()
    if case == "zero features":
        x.zero_()
    elif case == "no skeletons":
        has[:] = False
        skeletons.zero_()
    elif case == "one point":
        skeletons[..., :2] = 33.3
    else:
        skeletons[..., 1:, :] = 0
    x.requires_grad_()
    result = correct(model, x, skeletons, has, explain=explain)
    (result.corrected.square().sum() + result.bone_states.last_step.sum()).backward()
    assert torch.isfinite(result.corrected).all()
    assert torch.isfinite(x.grad).all()
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all(), name


@settings(max_examples=12, deadline=None)
@given(
    frames=st.integers(1, 6),
    width=st.sampled_from([4, 12, 32]),
    threshold=st.floats(0, 1),
    half=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_length_width_and_threshold_and_bfloat16(frames, width, threshold, half, seed):
    torch.manual_seed(seed)
    model = corrector(feat_dim=width, score_threshold=threshold)
    x, skeletons, has = clips(2, frames, width)
    skeletons[..., 2] = torch.rand(2, frames, 17)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
        y = correct(model, x, skeletons, has).corrected
    assert y.shape == x.shape
    assert y.dtype == torch.float32
    seen = (skeletons[..., 2] >= threshold).any(-1)
    assert torch.equal(y[~seen], x[~seen])
    assert (y[seen] >= x[seen] + 0.9e-3).all()


def test_what_it_looked_at():
    model = corrector()
    x, skeletons, has = clips(2, 5)
    has[0, 0] = False
    skeletons[:, :, 9, 2] = 0  # left wrist
    plain = correct(model, x, skeletons, has)
    result = correct(model, x, skeletons, has, explain=True)
    assert plain.attention is None
    torch.testing.assert_close(plain.corrected, result.corrected)
    seen = result.attention
    assert seen["frame_gates"].shape == (2, 5)
    assert seen["frame_gates"][0, 0] == 0
    assert ((seen["frame_gates"][has] > 0) & (seen["frame_gates"][has] < 1)).all()
    torch.testing.assert_close(seen["frame_attention"].sum(-1), has.float())
    assert seen["bone_weights"].shape == (2, 5, 19)
    torch.testing.assert_close(seen["bone_weights"].sum(-1), has.float())
    assert (seen["bone_weights"][:, :, BONES.index((7, 9))] == 0).all()
    bones, weight = result.bone_states.bones[1, 2], model.encoder.fc.weight
    norms = [(weight[:, 3 * e : 3 * e + 3] @ bones[e]).norm() for e in range(19)]
    torch.testing.assert_close(seen["bone_weights"][1, 2], torch.stack(norms) / sum(norms))


def standardized_by_hand(encoder, skeletons, has):
    """The input of the linear layer in training, in plain loops: ``[B, T, E, 3]``."""
    clips, frames = has.shape
    rows, scores = torch.zeros(clips, frames, 19, 3), torch.zeros(clips, frames, 19)
    for b in range(clips):
        points = skeletons[b][has[b]][..., :2]
        scale = (points - points.mean(1, keepdim=True)).square().sum(-1).mean().sqrt()
        for t in range(frames):
            for e, (i, j) in enumerate(BONES):
                if not has[b, t]:
                    continue
                dx, dy = (skeletons[b, t, j] - skeletons[b, t, i])[:2]
                length, theta = torch.sqrt(dx**2 + dy**2), torch.atan2(dy, dx)
                rows[b, t, e] = torch.stack([length / scale, theta.sin(), theta.cos()])
                scores[b, t, e] = min(skeletons[b, t, i, 2], skeletons[b, t, j, 2])
    for e in range(19):
        seen = rows[:, :, e][has]
        mean, variance = seen.mean(0), seen.var(0, unbiased=False)
        rows[:, :, e] = (rows[:, :, e] - mean) / (variance + 1e-5).sqrt() * has[..., None]
    return rows * scores[..., None]


def test_standardized_bones_by_hand():
    encoder = BoneEncoder(feat_dim=D)
    _, skeletons, has = clips(3, 4)
    has[1, 2] = False
    states = encoder(skeletons, has)
    expected = standardized_by_hand(encoder, skeletons, has)
    torch.testing.assert_close(states.bones, expected, atol=2e-4, rtol=1e-4)


def test_from_config():
    cfg = get_cfg()
    star = cfg.MODEL.STAR
    star.BONES = star.CORRECTOR = "release"
    star.SCORE_THRESHOLD = 0.2
    model = SkeletonFrameCorrector(cfg, feat_dim=32)
    assert model.encoder.fc.weight.shape == (64, 38)
    assert model.se is None
    star.BONES = "normalized"
    assert SkeletonFrameCorrector(cfg, feat_dim=32).encoder.score_threshold == 0.2
    with pytest.raises(UserError, match="4 attention heads"):
        corrector(feat_dim=6)
