"""Graph attention (10) against plain loops and against torch-geometric's sparse GATConv."""

import math

import pytest
import torch
from torch_geometric.nn import DenseGATConv, GATConv

from fastreid_star.modeling.layers import skeleton_gat as ga
from fastreid_star.modeling.layers.skeleton_graph import (
    spatial_temporal_adjacency,
    spatial_temporal_edges,
)

CPU = torch.device("cpu")


def adjacency_of(length, reading, sends):
    """bool [B, N, N]: a node listens to itself and to neighbors that send."""
    adjacency = spatial_temporal_adjacency(length, reading, CPU)
    return adjacency & (sends[:, None] | torch.eye(len(adjacency), dtype=torch.bool))


def loop_attention(layer, x, edges, sends):
    """Equation (10) before its ELU, one clip: output ``[N, H C]`` and {(i, j, h): alpha}."""
    heads, channels = layer.heads, layer.out_channels
    weight = layer.lin.weight.detach().double().view(heads, channels, -1)
    a_src, a_dst = (a.detach().double()[0, 0] for a in (layer.att_src, layer.att_dst))
    bias = layer.bias.detach().double().view(heads, channels)
    out, alphas = torch.zeros(len(x), heads, channels, dtype=torch.float64), {}
    for i in range(len(x)):
        near = [j for j, k in edges.t().tolist() if k == i and sends[j]] + [i]
        for h in range(heads):
            logits = []
            for j in near:
                e = float(a_dst[h] @ (weight[h] @ x[i]) + a_src[h] @ (weight[h] @ x[j]))
                logits.append(e if e > 0 else 0.2 * e)
            total = sum(math.exp(e) for e in logits)
            for j, e in zip(near, logits, strict=True):
                alphas[i, j, h] = math.exp(e) / total
                out[i, h] += alphas[i, j, h] * (weight[h] @ x[j])
            out[i, h] += bias[h]
    return out.flatten(1), alphas


@pytest.mark.parametrize("reading", ["standardized", "release"])
@pytest.mark.parametrize("missing", [0.0, 0.4])
def test_equation_10(reading, missing):
    length = 2
    nodes = 17 * length
    layer = DenseGATConv(3, 4, 2).eval()
    torch.nn.init.normal_(layer.bias)
    x, sends = torch.randn(2, nodes, 3), torch.rand(2, nodes) >= missing
    adjacency = adjacency_of(length, reading, sends)
    out = layer(x, adjacency, add_loop=False)
    alpha = ga.attention_weights(layer, x, adjacency)
    edges = spatial_temporal_edges(length, reading)
    for b in range(2):
        expected, alphas = loop_attention(layer, x[b].double(), edges, sends[b].tolist())
        torch.testing.assert_close(out[b].double(), expected, atol=1e-5, rtol=1e-5)
        wanted = torch.zeros(nodes, nodes, 2)
        for (i, j, h), value in alphas.items():
            wanted[i, j, h] = value
        torch.testing.assert_close(alpha[b], wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(alpha.sum(2), torch.ones(2, nodes, 2))


def test_equals_the_sparse_layer_with_gradients():
    sparse, dense = GATConv(3, 16, heads=2).eval(), DenseGATConv(3, 16, 2).eval()
    state = sparse.state_dict()
    for name in ("att_src", "att_dst"):
        state[name] = state[name][None]
    dense.load_state_dict(state)
    edges, x = spatial_temporal_edges(4), torch.randn(68, 3)
    xs = [x.clone().requires_grad_() for _ in range(2)]
    a = sparse(xs[0], edges)
    b = dense(
        xs[1][None], spatial_temporal_adjacency(4, "standardized", CPU)[None], add_loop=False
    )[0]
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    direction = torch.randn_like(a)
    (a * direction).sum().backward()
    (b * direction).sum().backward()
    torch.testing.assert_close(*(x.grad for x in xs), atol=1e-5, rtol=1e-4)


def test_a_missing_frame_is_not_there_for_the_others():
    gat = ga.SkeletonGAT(attention_dropout=0.0, dropout=0.0).eval()
    joints, valid = torch.randn(1, 5, 17, 3), torch.ones(1, 5, 17, dtype=torch.bool)
    valid[:, 2] = False
    nodes, _ = gat(joints, valid)
    joints[:, 2] = 100
    again, _ = gat(joints, valid)
    assert torch.equal(nodes, again)
    assert (nodes[:, 2] == 0).all()
    # the frames before it are a clip of their own
    before, _ = gat(joints[:, :2], valid[:, :2])
    torch.testing.assert_close(nodes[:, :2], before)


def test_received_attention():
    gat = ga.SkeletonGAT().eval()
    joints, valid = torch.randn(2, 4, 17, 3), torch.rand(2, 4, 17) > 0.3
    _, received = gat(joints, valid, explain=True)
    adjacency = adjacency_of(4, "standardized", valid.flatten(1))
    hidden = torch.nn.functional.elu(gat.conv1(joints.flatten(1, 2), adjacency, add_loop=False))
    alpha = ga.attention_weights(gat.conv2, hidden, adjacency)[..., 0]
    expected = torch.zeros(2, 68)
    for b in range(2):
        for i in range(68):
            if valid[b].flatten()[i]:
                expected[b] += alpha[b, i]
    torch.testing.assert_close(received.flatten(1), expected)
    assert (received[~valid] == 0).all()
    torch.testing.assert_close(received.sum((1, 2)), valid.sum((1, 2)).float())


@pytest.mark.parametrize("reading", ["standardized", "release"])
@pytest.mark.parametrize("length", [1, 2, 5])
def test_the_adjacency_is_the_edges_with_loops(length, reading):
    adjacency = spatial_temporal_adjacency(length, reading, CPU)
    sources, targets = spatial_temporal_edges(length, reading).tolist()
    pairs = {*zip(targets, sources, strict=True), *((i, i) for i in range(17 * length))}
    assert {tuple(pair) for pair in adjacency.nonzero().tolist()} == pairs


def test_an_adjacency_made_in_inference_mode_serves_training():
    spatial_temporal_adjacency.cache_clear()
    with torch.inference_mode():
        adjacency = spatial_temporal_adjacency(3, "standardized", CPU)
    assert not adjacency.is_inference()
