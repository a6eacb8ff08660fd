"""SAADG's graphs, against torch-geometric's sparse layer and a restatement in float64."""

import copy

import pytest
import torch
from torch_geometric.nn import GCNConv

from fastreid_star.engine.defaults import load_config
from fastreid_star.engine.trainer import Trainer
from fastreid_star.methods.sad.layers import GraphBranch, frame_pairs
from fastreid_star.methods.sad.losses import GraphInteractionLoss
from fastreid_star.modeling.heads import FrameHead

from ...tiny import small_config

T, D, C = 3, 8, 4


def sample(clips, *, shuffled=False):
    """Frames of two identities with so many visible and infrared clips each."""
    visible, infrared = clips
    rows = [(pid, True) for pid in (0, 3) for _ in range(visible)]
    rows += [(pid, False) for pid in (0, 3) for _ in range(infrared)]
    if shuffled:
        rows = [rows[i] for i in torch.randperm(len(rows)).tolist()]
    frames = torch.rand(len(rows), T, D, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([pid for pid, _ in rows]).repeat_interleave(T)
    is_visible = torch.tensor([v for _, v in rows]).repeat_interleave(T)
    return frames, targets, is_visible


def edges_of(targets, is_visible, kind):
    """Pairs of frames, one by one."""
    found = []
    for i in range(len(targets)):
        for j in range(len(targets)):
            if targets[i] != targets[j]:
                continue
            other_clip = i // T != j // T
            if kind == "intra" and is_visible[i] == is_visible[j] and other_clip:
                found.append((i, j))
            if kind == "inter" and is_visible[i] != is_visible[j]:
                found.append((i, j))
    return found


@pytest.fixture
def loss():
    branches = {n: GraphBranch(D, FrameHead(feat_dim=D, num_classes=C)) for n in ("intra", "inter")}
    loss = GraphInteractionLoss(**branches).double()
    with torch.no_grad():
        for parameter in loss.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn_like(parameter))
    return loss.train()


@pytest.mark.parametrize("clips", [(1, 2), (2, 2), (3, 1), (4, 3)])
def test_the_convolution_equals_the_sparse_one_on_explicit_edges(loss, clips):
    frames, targets, is_visible = sample(clips, shuffled=True)
    rows = frames.detach().flatten(0, 1)
    for number, kind in enumerate(("intra", "inter")):
        branch = getattr(loss, kind)
        edges = torch.tensor(edges_of(targets, is_visible, kind)).view(-1, 2).T
        weights = torch.cosine_similarity(rows[edges[0]], rows[edges[1]])
        sparse = GCNConv(D, D).double()
        sparse.load_state_dict(branch.conv.state_dict())
        expected = sparse(rows, edges, weights)
        seen = []
        hook = branch.head.register_forward_pre_hook(lambda _, inputs, s=seen: s.append(inputs[0]))
        branch(rows, frame_pairs(targets, is_visible, T)[number], targets)
        hook.remove()
        assert (seen[0] - expected).abs().max() < 1e-5


def restated(p, kind, blocks, rows, frame_logits, targets):
    """One graph, block by block, for pairs of clips or halves that are joined completely."""
    weight, bias = p[f"{kind}.conv.lin.weight"], p[f"{kind}.conv.bias"]
    z = torch.zeros_like(rows)
    for one, other in blocks:
        nodes = [*one, *other]
        a = torch.eye(len(nodes), dtype=torch.float64)
        for i, m in enumerate(nodes):
            for j, n in enumerate(nodes):
                if (m in one) != (n in one):
                    x, y = rows[m], rows[n]
                    a = a.clone()
                    a[i, j] = (x @ y) / (x @ x).sqrt() / (y @ y).sqrt()
        d = a.sum(1)
        block = (a / d.sqrt()[:, None] / d.sqrt()) @ rows[nodes] @ weight.T + bias
        z = z.index_copy(0, torch.tensor(nodes), block)
    mean, var = z.mean(0), z.var(0, unbiased=False)
    neck = (z - mean) / (var + 1e-5).sqrt() * p[f"{kind}.head.bottleneck.0.weight"]
    q, own = (neck @ p[f"{kind}.head.weight"].T).softmax(1), frame_logits.softmax(1)
    ce = -sum(q[n, t].log() for n, t in enumerate(targets.tolist())) / len(targets)
    return 0.5 * (ce + (own * (own / q).log()).sum() / len(targets))


def test_loss_and_gradients_equal_the_restatement(loss):
    """Two clips an identity and modality, as in the authors' program."""
    frames, targets, is_visible = sample((2, 2))
    frame_logits = torch.randn(len(targets), C, dtype=torch.float64, requires_grad=True)
    parameters = {n: p.detach().clone().requires_grad_() for n, p in loss.named_parameters()}
    rows, clips = frames.flatten(0, 1), torch.arange(len(targets)).view(-1, T).tolist()
    intra = [(clips[2 * k], clips[2 * k + 1]) for k in range(4)]
    halves = [clips[2 * k] + clips[2 * k + 1] for k in range(4)]
    inter = [(halves[0], halves[2]), (halves[1], halves[3])]
    expected = sum(
        restated(parameters, kind, blocks, rows, frame_logits, targets)
        for kind, blocks in (("intra", intra), ("inter", inter))
    )
    found = loss(frames, frame_logits, targets, is_visible)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    trained = [n for n, p in loss.named_parameters() if p.requires_grad]
    assert len(trained) == 8
    of_ours = [dict(loss.named_parameters())[n] for n in trained]
    of_theirs = [parameters[n] for n in trained]
    gradients = [
        torch.autograd.grad(total, [frames, frame_logits, *weights])
        for total, weights in ((found, of_ours), (expected, of_theirs))
    ]
    assert gradients[0][1].abs().max() > 1e-4, "the target is not detached"
    for mine, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=0, atol=1e-9)


def test_frames_without_an_edge_do_not_count(loss):
    frames, targets, is_visible = sample((1, 1))
    frame_logits = torch.randn(len(targets), C, dtype=torch.float64)
    found = loss(frames, frame_logits, targets, is_visible)
    found.backward()
    assert all(p.grad.abs().max() == 0 for p in loss.intra.parameters() if p.requires_grad)
    assert all(p.grad.abs().max() > 0 for p in loss.inter.head.parameters() if p.requires_grad)
    alone = torch.arange(len(frames)).repeat_interleave(T)  # one clip an identity
    assert loss(frames, frame_logits, alone, is_visible) == 0


def test_order_of_the_clips_does_not_matter(loss):
    frames, targets, is_visible = sample((3, 2))
    logits = torch.randn(len(targets), C, dtype=torch.float64)
    expected = copy.deepcopy(loss)(frames, logits, targets, is_visible)
    order = torch.randperm(len(frames))
    rows = (order[:, None] * T + torch.arange(T)).flatten()
    found = loss(frames[order], logits[rows], targets[rows], is_visible[rows])
    torch.testing.assert_close(found, expected)


def test_without_the_graphs_it_is_sad_number_for_number(tmp_path):
    sad = load_config("Synthetic/SAD_small.yml").MODEL.LOSSES.NAME
    cfgs = [small_config("SAADG", tmp_path, tmp_path, "MODEL.HEADS.NUM_CLASSES", "2")]
    cfgs.append(cfgs[0].clone())
    cfgs[1].defrost()
    cfgs[1].MODEL.LOSSES.NAME = sad
    images = torch.randint(0, 256, (8, T, 3, 32, 16), dtype=torch.uint8)
    batch = {"images": images, "modality": torch.tensor([2] * 4 + [1] * 4)}
    batch["targets"] = torch.tensor([0, 0, 1, 1] * 2)
    found = []
    for cfg in cfgs:
        torch.manual_seed(0)
        model = Trainer.build_model(cfg).train()
        torch.manual_seed(1)
        losses = model(batch)
        graph = losses.pop("loss_graph", None)
        sum(losses.values()).backward()
        gradients = {n: p.grad for n, p in model.named_parameters() if not n.startswith("losses.")}
        found.append((losses, gradients, graph, model.eval()(batch)))
    assert found[0][2] is not None
    assert found[1][2] is None
    for mine, sads in zip(found[0][:2], found[1][:2], strict=True):
        assert mine.keys() == sads.keys()
        assert all(sads[n] is None or torch.equal(mine[n], sads[n]) for n in sads)
    assert torch.equal(found[0][3], found[1][3])
