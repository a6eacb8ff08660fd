"""MITML against a restatement of its equations in float64, and its own optimizer."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from fastreid.utils.events import EventStorage

from fastreid_star.engine.replay import read_step, replay
from fastreid_star.engine.trainer import Trainer
from fastreid_star.errors import UserError
from fastreid_star.modeling.losses.cross_entropy import modality_cross_entropy

from ...tiny import small_config
from ..restated import batch_hard, cross_entropy, gate, lstm, norm, unusual

T, WIDTH = 3, 128
VISIBLE = torch.tensor([True, True, False, False, True, False])


def config(root, output, *more):
    return small_config("MITML", root, output, "MODEL.MITML.CONFUSION_EPOCH", "1", *more)


def build(tmp_path, *more):
    torch.manual_seed(0)
    model = Trainer.build_model(config(tmp_path, tmp_path, "MODEL.HEADS.NUM_CLASSES", "3", *more))
    unusual(model)
    with torch.no_grad():
        for parameter in model.temporal_stage.parameters():
            parameter.mul_(1.1)
    return model


def batch(clips=6, length=T):
    generator = torch.Generator().manual_seed(1)
    return {
        "images": torch.randint(0, 256, (clips, length, 3, 32, 16), generator=generator),
        "modality": torch.where(VISIBLE, 2, 1)[:clips],
        "targets": torch.tensor([0, 0, 0, 0, 1, 1])[:clips],
    }


# --- the restatement: from the frames of both branches on


def pooled(p, high, low):
    """Frames H and L, ``[B, T, D]``, to F."""
    context, total = lstm(p, "lstm", low), 0
    for i in range(T):
        total = total + high[:, i] * (1 + gate(p, i, context, low[:, i]))
    return total / T


def modality(p, x):
    for i in range(8):
        x = x @ p[f"modality.{i}.0.weight"].T + p[f"modality.{i}.0.bias"]
        x = (norm(x, p, f"modality.{i}.1", True) + p[f"modality.{i}.1.bias"]).clamp(min=0)
    return x @ p["modality.8.weight"].T + p["modality.8.bias"]


def halves(logits, visible, infrared):
    n = int(VISIBLE.sum())
    return cross_entropy(logits[VISIBLE], [visible] * n) + cross_entropy(
        logits[~VISIBLE], [infrared] * (len(logits) - n)
    )


def state_of(model):
    return {n: v.detach().clone() for n, v in model.state_dict().items()}


def frames_of(model, inputs):
    outputs = model.encode_frames(inputs)
    return outputs["frames"], outputs["temporal"]


def test_a_step_equals_the_restatement(tmp_path):
    """All losses, their gradients, and the classifier after its step: the second with momentum."""
    model, inputs = build(tmp_path).double().train(), batch()
    labels, momentum = inputs["targets"].tolist(), {}
    for step in range(2):
        before = state_of(model)
        p = {n: v.requires_grad_(v.is_floating_point()) for n, v in state_of(model).items()}
        frames = [x.detach().requires_grad_() for x in frames_of(copy.deepcopy(model), inputs)]
        clip = pooled(p, *frames)
        logits = norm(clip, p, "heads.bottleneck.0", True) @ p["heads.weight"].T
        expected = {"loss_cls": cross_entropy(logits, labels)}
        expected["loss_triplet"] = batch_hard(clip, labels)
        expected["loss_modality"] = halves(modality(p, clip.detach()), 1, 0)
        mine = {n: v for n, v in p.items() if n.startswith("modality.") and v.requires_grad}
        mine = {n: v for n, v in mine.items() if "running" not in n}
        gradients = torch.autograd.grad(expected["loss_modality"], list(mine.values()))
        stepped = dict(p)
        for (name, value), gradient in zip(mine.items(), gradients, strict=True):
            gradient = gradient + 5e-4 * before[name]
            momentum[name] = 0.9 * momentum[name] + gradient if step else gradient
            stepped[name] = (value - 0.01 * (gradient + 0.9 * momentum[name])).detach()
        expected["loss_confusion"] = halves(modality(stepped, clip), 2, 2)

        outputs = model.encode(inputs)
        found = {loss.log_name: loss.of(outputs) for loss in model.active_losses.values()}
        assert list(found) == list(expected)
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value.squeeze(), rtol=0, atol=1e-9)
        after = state_of(model)
        for name in mine:
            torch.testing.assert_close(after[name], stepped[name], rtol=0, atol=1e-10)
            assert not torch.equal(after[name], before[name])
        rest = [n for n in p if n.startswith(("lstm", "gates", "heads.weight"))]
        wanted = torch.autograd.grad(
            sum(v for n, v in expected.items() if n != "loss_modality"), [p[n] for n in rest]
        )
        named = dict(model.named_parameters())
        gradients = torch.autograd.grad(sum(found.values()), [named[n] for n in rest])
        for name, one, other in zip(rest, gradients, wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-9, msg=name)
            assert other.abs().max() > 1e-7, name


def test_the_feature_equals_the_restatement(tmp_path):
    model, inputs = build(tmp_path).double().eval(), batch()
    with torch.no_grad():
        p = state_of(model)
        feature = norm(pooled(p, *frames_of(model, inputs)), p, "heads.bottleneck.0", False)
        expected = feature / feature.norm(dim=1, keepdim=True)
        torch.testing.assert_close(model(inputs), expected, rtol=0, atol=1e-10)


def test_both_branches_start_equal_and_learn_apart(tmp_path):
    model = Trainer.build_model(config(tmp_path, tmp_path, "MODEL.HEADS.NUM_CLASSES", "3"))
    high, low = frames_of(model.eval(), batch())
    assert torch.equal(high, low)
    losses = model.train()(batch())
    (losses["loss_cls"] + losses["loss_triplet"]).backward()
    weights = [next(s.parameters()) for s in (model.backbone.stages[3], model.temporal_stage)]
    assert not torch.equal(weights[0].grad, weights[1].grad)
    trained = {n for n, p in model.named_parameters() if p.requires_grad and p.grad is None}
    assert trained == set()
    # weights of another method have one stage 4: both branches get it
    other = {n: v + 1 for n, v in model.state_dict().items() if n.startswith("backbone.")}
    model.load_state_dict(other, strict=False)
    for one, two in zip(*(s.parameters() for s in (model.backbone.stages[3], model.temporal_stage)),
                        strict=True):  # fmt: skip
        assert torch.equal(one, two)


def test_the_confusion_begins_in_its_epoch_and_leaves_the_classifier_alone(tmp_path):
    model, inputs = build(tmp_path).train(), batch()
    model.epoch = 0
    assert "loss_confusion" not in model(inputs)
    assert not model.has_idle_parameters
    model.epoch = 1
    losses = model(inputs)
    losses["loss_confusion"].backward()
    assert model.lstm.weight_ih_l0.grad.abs().max() > 0
    assert all(p.grad is None for p in model.modality.parameters())
    without = build(tmp_path, "MODEL.LOSSES.NAME", "('CrossEntropyLoss','TripletLoss')")
    assert without.modality is None
    assert without.own_optimizer is None


def test_a_batch_of_one_modality_counts_that_one():
    logits = torch.randn(3, 3, dtype=torch.float64)
    labels, seen = torch.tensor([1, 1, 1]), torch.ones(3, dtype=torch.bool)
    found = modality_cross_entropy(logits, labels, seen)
    torch.testing.assert_close(found, F.cross_entropy(logits, labels))


def test_clips_of_another_length_are_refused(tmp_path):
    model = build(tmp_path).eval()
    with pytest.raises(UserError, match=r"clips of 3 frames.*have 4.*LENGTH 3"):
        model(batch(length=4))


def test_a_bad_step_is_undone_and_can_be_replayed(tiny_root, tmp_path):
    options = ("SOLVER.MAX_EPOCH", "1", "SOLVER.STEPS", "[]", "MODEL.MITML.CONFUSION_EPOCH", "0")
    trainer = Trainer(config(tiny_root, tmp_path, *options, "TEST.EVAL_PERIOD", "0"))
    runner, model = trainer._trainer, trainer.model
    with EventStorage(0):
        runner.iter = 0
        runner.run_step()
        before = state_of(model)
        state = copy.deepcopy(model.own_optimizer.state_dict())
        model.losses["TripletLoss"].weight = math.inf
        runner.iter = 1
        with pytest.raises(UserError, match="loss_triplet is inf") as caught:
            runner.run_step()
    after, now = state_of(model), model.own_optimizer.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert all(
        torch.equal(state["state"][k]["momentum_buffer"], now["state"][k]["momentum_buffer"])
        for k in state["state"]
    )
    path = str(caught.value).split()[-1]
    assert len(read_step(path)["own_optimizer"]["state"]) == len(state["state"]) > 30
    report = replay(path)
    assert [line for line in report.splitlines() if "loss_confusion" in line and "same" in line]
