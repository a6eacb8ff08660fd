"""Graph attention (10) against plain loops and against torch-geometric's GATConv."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fastreid_star.modeling import graph_attention as ga
from fastreid_star.modeling.skeleton_graph import spatial_temporal_edges, spatial_temporal_neighbors

CPU = torch.device("cpu")


def loop_attention(layer, x, edges, sends):
    """Equation (10) before its ELU, one clip, node by node in float64: output ``[N, H C]`` and {(i, j): alpha}."""
    heads, channels = layer.heads, layer.out_channels
    weight = layer.lin.weight.detach().double().view(heads, channels, -1)
    a_src, a_dst = (a.detach().double()[0] for a in (layer.att_src, layer.att_dst))
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


@pytest.mark.parametrize("reading", ["paper", "release"])
@pytest.mark.parametrize("missing", [0.0, 0.4])
def test_equation_10(reading, missing):
    length = 2
    layer = ga.GraphAttention(3, 4, heads=2).eval()
    torch.nn.init.normal_(layer.bias)
    x = torch.randn(2, 17 * length, 3)
    sends = torch.rand(2, 17 * length) >= missing
    edges, table = (
        spatial_temporal_edges(length, reading),
        spatial_temporal_neighbors(length, reading, CPU),
    )
    out, alpha = layer(x, table, sends)
    for b in range(2):
        expected, alphas = loop_attention(layer, x[b].double(), edges, sends[b].tolist())
        torch.testing.assert_close(out[b].double(), expected, atol=1e-5, rtol=1e-5)
        total = 0
        for i in range(17 * length):
            for m, j in enumerate(table.index[i].tolist()):
                if table.mask[i, m]:
                    for h in range(2):
                        assert alpha[b, i, m, h].item() == pytest.approx(
                            alphas.get((i, j, h), 0.0), abs=1e-5
                        )
                        total += alphas.get((i, j, h), 0.0)
        assert total == pytest.approx(2 * 17 * length)


@settings(max_examples=15, deadline=None)
@given(
    length=st.integers(1, 9),
    heads=st.integers(1, 3),
    missing=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_attention_sums_to_1_over_every_neighborhood(length, heads, missing, seed):
    torch.manual_seed(seed)
    table = spatial_temporal_neighbors(length, "paper", CPU)
    sends = torch.rand(2, 17 * length) >= missing
    layer = ga.GraphAttention(3, 5, heads=heads).eval()
    out, alpha = layer(30 * torch.randn(2, 17 * length, 3), table, sends)
    assert out.shape == (2, 17 * length, 5 * heads)
    torch.testing.assert_close(alpha.sum(2), torch.ones(2, 17 * length, heads))
    assert (alpha >= 0).all()
    assert (alpha[:, ~table.mask] == 0).all()
    closed = ~sends[:, table.index] & (torch.arange(table.index.shape[1]) > 0)
    assert (alpha[closed] == 0).all()


@pytest.mark.parametrize(("channels", "heads"), [(16, 2), (12, 1)])
@pytest.mark.parametrize("reading", ["paper", "release"])
@pytest.mark.parametrize("length", [1, 4])
def test_equals_torch_geometric_with_gradients(channels, heads, reading, length):
    pyg = pytest.importorskip("torch_geometric.nn")
    theirs = pyg.GATConv(3, channels, heads=heads, dropout=0.6)
    torch.nn.init.normal_(theirs.bias)
    ours = ga.GraphAttention(3, channels, heads=heads, dropout=0.6)
    ours.load_state_dict(theirs.state_dict())
    theirs.eval()
    ours.eval()

    clips, nodes = 3, 17 * length
    edges = spatial_temporal_edges(length, reading)
    x = torch.randn(clips, nodes, 3)
    xs = [x.clone().requires_grad_() for _ in range(2)]
    a, alpha = ours(xs[0], spatial_temporal_neighbors(length, reading, CPU))
    batched = torch.cat([edges + nodes * b for b in range(clips)], dim=1)
    b, (looped, weights) = theirs(xs[1].flatten(0, 1), batched, return_attention_weights=True)
    b = b.view_as(a)
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)

    table = spatial_temporal_neighbors(length, reading, CPU)
    for (source, target), weight in zip(looped.t().tolist(), weights, strict=True):
        clip, node = divmod(target, nodes)
        slot = int(((table.index[node] == source % nodes) & table.mask[node]).nonzero()[0])
        torch.testing.assert_close(alpha[clip, node, slot], weight, atol=1e-5, rtol=1e-5)

    direction = torch.randn_like(a)
    (a * direction).sum().backward()
    (b * direction).sum().backward()
    torch.testing.assert_close(xs[0].grad, xs[1].grad, atol=1e-5, rtol=1e-4)
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], atol=1e-5, rtol=1e-4)


def test_dropout_acts_on_the_attention_in_training_only():
    table = spatial_temporal_neighbors(3, "paper", CPU)
    layer = ga.GraphAttention(3, 4, dropout=0.6)
    x = torch.randn(200, 51, 3)
    with torch.no_grad():
        kept, _ = layer.eval()(x, table)
        again, _ = layer(x, table)
        dropped, alpha = layer.train()(x[:1].expand(2000, -1, -1), table)
    assert torch.equal(kept, again)
    torch.testing.assert_close(alpha.sum(2), torch.ones(2000, 51, 1))
    assert not torch.allclose(dropped[0], dropped[1])
    torch.testing.assert_close(
        dropped.mean(0), kept[0], atol=0.15, rtol=0
    )  # dropout keeps the mean


def test_masked_batch_norm_is_batch_norm_where_nothing_is_missing():
    mine, torchs = ga.MaskedBatchNorm(5), torch.nn.BatchNorm1d(5)
    everything = torch.ones(1, 1, dtype=torch.bool)
    for _ in range(3):
        x = 3 * torch.randn(20, 5) + 1
        torch.testing.assert_close(mine(x, everything.expand(20, 1)), torchs(x))
    for (name, a), b in zip(mine.state_dict().items(), torchs.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, msg=name)
    x = torch.randn(4, 5)
    torch.testing.assert_close(mine.eval()(x, everything.expand(4, 1)), torchs.eval()(x))


def test_masked_batch_norm_leaves_out_what_is_missing():
    x = torch.randn(12, 3)
    mask = torch.rand(12, 3) > 0.4
    mask[:, 2] = False
    norm = ga.MaskedBatchNorm(3)
    y = norm(torch.where(mask, x, 1e4), mask)
    for c in range(2):
        alone = F.batch_norm(x[mask[:, c], c, None], None, None, training=True)
        torch.testing.assert_close(y[mask[:, c], c, None], alone, atol=1e-4, rtol=1e-4)
    assert (y[~mask] == 0).all()
    assert norm.running_mean[2] == 0
    assert norm.running_var[2] == 1


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


@pytest.mark.parametrize("norm", [True, False])
def test_two_layers_with_elu(norm):
    gat = ga.SkeletonGAT(norm=norm).double().eval()
    joints, valid = torch.randn(2, 3, 17, 3).double(), torch.ones(2, 3, 17, dtype=torch.bool)
    nodes, alpha = gat(joints, valid)
    table = spatial_temporal_neighbors(3, "paper", CPU)
    first, _ = gat.conv1(joints.flatten(1, 2), table)
    assert first.shape[-1] == 32
    first = torch.where(first > 0, first, first.exp() - 1)
    second, _ = gat.conv2(first, table)
    second = torch.where(second > 0, second, second.exp() - 1)
    if norm:
        second = second / math.sqrt(1 + gat.norm.eps)
    torch.testing.assert_close(nodes.flatten(1, 2), second)
    assert nodes.shape == (2, 3, 17, 12)
    assert alpha.shape == (2, 51, table.index.shape[1])


def test_received_attention():
    gat = ga.SkeletonGAT().eval()
    valid = torch.rand(2, 4, 17) > 0.3
    _, alpha = gat(torch.randn(2, 4, 17, 3), valid)
    received = ga.received_attention(alpha, valid)
    table = spatial_temporal_neighbors(4, "paper", CPU)
    expected = torch.zeros(2, 68)
    for b in range(2):
        for i in range(68):
            for m in range(table.index.shape[1]):
                if valid[b].flatten()[i]:
                    expected[b, table.index[i, m]] += alpha[b, i, m].item()
    torch.testing.assert_close(received.flatten(1), expected)
    assert (received[~valid] == 0).all()
    torch.testing.assert_close(received.sum((1, 2)), valid.sum((1, 2)).float())


def test_autocast_keeps_the_softmax_in_float32():
    layer = ga.GraphAttention(3, 4, heads=2)
    x = torch.randn(2, 34, 3)
    table = spatial_temporal_neighbors(2, "paper", CPU)
    exact, _ = layer(x, table)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, alpha = layer(x, table)
    assert out.dtype == alpha.dtype == torch.float32
    torch.testing.assert_close(out, exact, atol=0.05, rtol=0.05)
