"""DDAG against a restatement of its equations in float64, and the weight of its graph."""

import copy

import pytest
import torch
import torch.nn.functional as F

from fastreid_star.engine.trainer import Trainer
from fastreid_star.errors import UserError
from fastreid_star.methods.ddag import EpochWeight

from ...tiny import small_config
from ..restated import batch_hard, cross_entropy, norm, unusual

VISIBLE = torch.tensor([True, False, True, False])


def build(tmp_path, *more):
    torch.manual_seed(0)
    classes = "MODEL.HEADS.NUM_CLASSES", "3"
    model = Trainer.build_model(small_config("DDAG", tmp_path, tmp_path, *classes, *more))
    with torch.no_grad():
        for layer in (model.stripes.query, model.stripes.key):
            layer.weight.mul_(0.1)  # or the attention is 0 or 1
        model.stripes.gate.copy_(torch.tensor([0.1, 0.7, 0.4]))
    return unusual(model)


def batch(length=2):
    generator = torch.Generator().manual_seed(1)
    return {
        "images": torch.randint(0, 256, (4, length, 3, 64, 32), generator=generator),
        "modality": torch.where(VISIBLE, 2, 1),
        "targets": torch.tensor([0, 0, 1, 1]),
    }


# --- the restatement: from the maps on, row by row


def attend(p, maps):
    """The features of the stripes, ``[N, D]``."""
    height, rows = maps.shape[2], []
    for frame in maps:
        stripes = [
            frame[:, i * height // 3 : -(-(i + 1) * height // 3)].mean((1, 2)) for i in range(3)
        ]
        q, k, v = (
            [p[f"stripes.{name}.weight"] @ s + p[f"stripes.{name}.bias"] for s in stripes]
            for name in ("query", "key", "value")
        )
        gates, row = p["stripes.gate"].exp() / p["stripes.gate"].exp().sum(), 0
        for i in range(3):
            weights = torch.stack([(q[i] * each).sum() for each in k]).softmax(0)
            row = row + gates[i] * sum(w * each for w, each in zip(weights, v, strict=True))
        rows.append(row)
    return torch.stack(rows)


def graph(p, x, labels):
    """NLL of two layers of graph attention."""

    def layer(name, rows, heads):
        weight = p[f"losses.IdentityGraphLoss.{name}.lin.weight"].chunk(heads)
        out = []
        for number, w in enumerate(weight):
            h = rows @ w.T
            to, of = (
                p[f"losses.IdentityGraphLoss.{name}.att_{kind}"][0, 0, number]
                for kind in ("dst", "src")
            )
            mixed = []
            for i in range(len(h)):
                mine = [j for j in range(len(h)) if labels[j] == labels[i]]
                e = torch.stack([F.leaky_relu(to @ h[i] + of @ h[j], 0.2) for j in mine])
                mixed.append(e.softmax(0) @ h[mine])
            out.append(torch.stack(mixed))
        return F.elu(torch.cat(out, 1))

    return cross_entropy(layer("classify", layer("gather", x, 4), 1), labels)


def test_a_step_equals_the_restatement(tmp_path):
    """All losses and their gradients, in an epoch in which the graph has a weight."""
    model, inputs = build(tmp_path).double().train(), batch()
    graph_loss = model.losses["IdentityGraphLoss"]
    for part in (graph_loss, graph_loss.gather, graph_loss.classify):
        part.dropout = 0.0
    model.epoch = 1
    model.graph_weight.total.fill_(12.0), model.graph_weight.steps.fill_(4)
    p = {n: v.detach().clone() for n, v in model.state_dict().items()}
    trained = [
        n for n, w in model.named_parameters() if w.requires_grad and not n.startswith("backbone")
    ]
    for name in trained:
        p[name].requires_grad_(True)
    first = copy.deepcopy(model)

    outputs = model.encode(inputs)
    found = first(inputs)
    assert outputs["frames"].shape[:2] == (8, 1), "rows are frames"
    labels, maps = [0, 0, 0, 0, 1, 1, 1, 1], outputs["maps"].detach().requires_grad_()
    x = maps.mean((2, 3))
    f = norm(x, p, "heads.bottleneck.0", True)
    stripes = norm(attend(p, maps) + f, p, "stripe_neck.0", True)
    expected = {
        "loss_cls": cross_entropy(f @ p["heads.weight"].T, labels),
        "loss_triplet": batch_hard(x, labels),
        "loss_cls_stripe": cross_entropy(stripes @ p["heads.weight"].T, labels),
        "loss_graph": 0.25 * graph(p, x, labels),
    }
    assert list(found) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value.squeeze(), rtol=0, atol=1e-9, msg=name)
    assert expected["loss_graph"] > 0.1
    named = dict(first.named_parameters())
    ours = torch.autograd.grad(sum(found.values()), [named[n] for n in trained])
    theirs = torch.autograd.grad(sum(expected.values()), [p[n] for n in trained])
    for name, one, other in zip(trained, ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9, msg=name)
        # softmax and BatchNorm take away what is the same in all their inputs
        if not name.endswith(("att_dst", "key.bias", "value.bias")):
            assert other.abs().max() > 1e-7, name


def test_the_feature_equals_the_restatement(tmp_path):
    """The mean over the frames of a clip, each through its own attention and both necks."""
    model, inputs = build(tmp_path).double().eval(), batch()
    with torch.no_grad():
        outputs = model.encode(inputs)
        p = model.state_dict()
        f = norm(outputs["maps"].mean((2, 3)), p, "heads.bottleneck.0", False)
        rows = norm(attend(p, outputs["maps"]) + f, p, "stripe_neck.0", False)
        expected = F.normalize(rows.view(4, 2, -1).mean(1), dim=1)
        torch.testing.assert_close(outputs["features"], expected, rtol=0, atol=1e-10)


def test_every_parameter_is_trained_and_a_graph_alone_has_no_stripes(tmp_path):
    model = build(tmp_path).train()
    model.epoch = 1
    sum(model(batch()).values()).backward()
    assert [n for n, w in model.named_parameters() if w.requires_grad and w.grad is None] == []
    assert not model.has_idle_parameters
    without = build(tmp_path, "MODEL.LOSSES.NAME", "('CrossEntropyLoss','IdentityGraphLoss')")
    assert without.has_idle_parameters
    only = build(tmp_path, "MODEL.LOSSES.NAME", "('StripeCrossEntropyLoss',)").train()
    assert list(only(batch())) == ["loss_cls_stripe"]


def test_the_units_differ_in_training_only_by_what_a_row_is(tmp_path):
    """With clips as rows, stripes and frames are averaged over the clip before the necks."""
    model = build(tmp_path, "MODEL.UNIT", "clip").double().eval()
    with torch.no_grad():
        frames = build(tmp_path).double().eval()(batch())
        torch.testing.assert_close(model(batch()), frames)  # the second neck is affine, too
        outputs = model.train().encode(batch())
    assert outputs["clip_logits"].shape == (4, 3)
    assert outputs["stripes"].shape == outputs["clip"].shape == (4, 128)


# --- the weight of the graph


def test_the_weight_follows_the_mean_of_the_epoch_before():
    weight = EpochWeight()
    seen = [
        [float(weight(torch.tensor(loss), epoch)) for loss in losses]
        for epoch, losses in enumerate([(3.0, 5.0), (1.0, 1.0, 1.0), (9.0,)])
    ]
    assert seen == [[0, 0], pytest.approx([0.2] * 3), pytest.approx([0.5])]
    assert weight(torch.tensor(1.0), 0) == 0, "weights of a finished run begin anew"
    assert weight(torch.tensor(1.0), 1) == 0.5


def test_a_run_resumes_in_the_middle_of_an_epoch_with_the_weight():
    steps = [(4.0, 0), (2.0, 0), (6.0, 1), (2.0, 1), (5.0, 2)]
    whole = EpochWeight()
    expected = [float(whole(torch.tensor(loss), epoch)) for loss, epoch in steps]
    assert expected == pytest.approx([0, 0, 0.25, 0.25, 0.2])
    for cut in range(1, len(steps)):
        first, second = EpochWeight(), EpochWeight()
        found = [float(first(torch.tensor(loss), epoch)) for loss, epoch in steps[:cut]]
        second.load_state_dict(first.state_dict())
        found += [float(second(torch.tensor(loss), epoch)) for loss, epoch in steps[cut:]]
        assert found == expected, cut


def test_an_epoch_without_a_graph_counts():
    """The graph may begin in a later epoch: its weight is that of the losses before."""
    weight = EpochWeight()
    weight(torch.tensor(3.0), 4)
    assert weight(torch.tensor(0.0), 5) == 0.25


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (("MODEL.HEADS.EMBEDDING_DIM", "16"), "EMBEDDING_DIM 0"),
        (("MODEL.BACKBONE.NAME", "build_dinov2_backbone"), "convolutional"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, options, word):
    with pytest.raises(UserError, match=word):
        build(tmp_path, *options)
