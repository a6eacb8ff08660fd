"""The optimizer changes weights, the groups learn at their rates, the schedule is the paper's."""

import copy

import fastreid.solver.optim
import pytest
import torch
from fastreid.config import get_cfg
from fastreid.engine.train_loop import TrainerBase

from fastreid_star.engine.hooks import LRScheduler
from fastreid_star.engine.solver import build_lr_scheduler, build_optimizer, resolve_schedule
from fastreid_star.errors import UserError


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4))
        self.heads = torch.nn.Linear(4, 2)

    def forward(self, x):
        return self.heads(self.backbone(x))


def config(**solver):
    cfg = get_cfg()
    cfg.SOLVER.OPT = "SGD"
    cfg.SOLVER.BASE_LR = 0.1
    cfg.SOLVER.BACKBONE_LR_FACTOR = 0.1
    for key, value in solver.items():
        cfg.SOLVER[key] = value
    return cfg


@pytest.mark.parametrize("name", ["SGD", "Adam", "Lamb", "RAdam"])
def test_every_weight_changes(name):
    net = Net()
    before = copy.deepcopy(net.state_dict())
    optimizer = build_optimizer(config(OPT=name), net)
    for _ in range(4):
        optimizer.zero_grad()
        net(torch.randn(8, 4)).square().sum().backward()
        optimizer.step()
    for key, value in net.named_parameters():
        assert not torch.equal(value, before[key]), key


@pytest.mark.parametrize("name", ["SGD", "Adam", "Lamb"])
def test_frozen_layers_thaw_after_so_many_steps_of_the_run(name):
    """Of the run, not of the process: it goes on from a checkpoint after the first step, and after the fourth."""
    cfg = config(OPT=name, FREEZE_ITERS=3)
    cfg.MODEL.FREEZE_LAYERS = ["backbone"]
    net = Net()
    optimizer = build_optimizer(cfg, net)
    moved = []
    for step in range(6):
        if step in (1, 4):
            state = optimizer.state_dict()
            optimizer = build_optimizer(cfg, net)
            optimizer.load_state_dict(state)
        before = copy.deepcopy(net.state_dict())
        optimizer.zero_grad()
        net(torch.randn(8, 4)).square().sum().backward()
        optimizer.step()
        moved.append([not torch.equal(p, before[key]) for key, p in net.named_parameters()])
    backbone, heads = [True] * 4, [True] * 2  # weights and biases
    frozen = [False] * 4
    assert moved == [frozen + heads] * 3 + [backbone + heads] * 3


def test_groups_are_merged_and_the_backbone_learns_at_its_factor():
    cfg = config(
        HEADS_LR_FACTOR=2.0, WEIGHT_DECAY=0.5, WEIGHT_DECAY_NORM=0.0, WEIGHT_DECAY_BIAS=0.5
    )
    net = Net()
    optimizer = build_optimizer(cfg, net)
    settings = {
        id(p): (round(group["lr"], 6), group["weight_decay"])
        for group in optimizer.param_groups
        for p in group["params"]
    }
    assert len(optimizer.param_groups) == 3, "backbone, its norm, heads"
    assert settings[id(net.backbone[0].weight)] == (0.01, 0.5)
    assert settings[id(net.backbone[1].weight)] == (0.01, 0.0)
    assert settings[id(net.heads.weight)] == (0.2, 0.5)
    assert {id(p) for p in net.parameters()} == set(settings)


def test_fastreid_optimizers_are_found():
    assert isinstance(build_optimizer(config(OPT="Lamb"), Net()), fastreid.solver.optim.Lamb)
    with pytest.raises(UserError, match=r"SOLVER\.OPT 'Adom'"):
        build_optimizer(config(OPT="Adom"), Net())


class OverflowingScaler:
    """A gradient scaler that halves its scale at every step, as float16's does at first."""

    scale = 65536.0

    def get_scale(self):
        return self.scale


class ScheduleOnly(TrainerBase):
    """fast-reid's loop with nothing in it but the schedule."""

    grad_scaler = None

    def __init__(self, cfg, iters_per_epoch):
        super().__init__()
        self.cfg = resolve_schedule(cfg, iters_per_epoch)
        self.warmup_iters, self.delay_epochs = (
            self.cfg.SOLVER.WARMUP_ITERS,
            self.cfg.SOLVER.DELAY_EPOCHS,
        )
        self.optimizer = torch.optim.SGD(torch.nn.Linear(1, 1).parameters(), lr=cfg.SOLVER.BASE_LR)
        self.rates = []
        scheduler = build_lr_scheduler(self.cfg, self.optimizer, iters_per_epoch)
        self.register_hooks([LRScheduler(self.optimizer, scheduler)])
        self.train(0, cfg.SOLVER.MAX_EPOCH, iters_per_epoch)

    def run_step(self):
        self.optimizer.step()
        if self.grad_scaler is not None:
            self.grad_scaler.scale /= 2
        self.rates.append(self.optimizer.param_groups[0]["lr"])


@pytest.mark.parametrize("iters", [1, 5])
@pytest.mark.parametrize("warmup", [0, 1, 10])
def test_rates_over_a_whole_run_are_the_papers(iters, warmup):
    cfg = config(
        MAX_EPOCH=130,
        STEPS=[60, 100],
        STEPS_FROM_START=True,
        WARMUP_EPOCHS=warmup,
        WARMUP_ITERS=0,
        WARMUP_FACTOR=0.1,
    )
    rates = ScheduleOnly(cfg, iters).rates
    for iteration, rate in enumerate(rates):
        epoch = iteration // iters
        expected = 0.1 * (1 if epoch < 60 else 0.1 if epoch < 100 else 0.01)
        done = iteration / max(warmup * iters, 1)
        if done < 1 and warmup:
            expected *= 0.1 * (1 - done) + done
        assert rate == pytest.approx(expected), (epoch, iteration)


def test_overflows_do_not_shorten_the_warm_up():
    class WithOverflows(ScheduleOnly):
        grad_scaler = OverflowingScaler()

    cfg = config(MAX_EPOCH=6, STEPS=[4], STEPS_FROM_START=True, WARMUP_EPOCHS=2, WARMUP_ITERS=0)
    assert WithOverflows(cfg, 5).rates == ScheduleOnly(cfg, 5).rates
    assert WithOverflows(cfg, 5).rates[-1] == pytest.approx(0.01)


def test_a_milestone_inside_the_warm_up_is_refused():
    with pytest.raises(UserError, match=r"SOLVER\.STEPS \[1, 4\]: a milestone inside the warm-up"):
        resolve_schedule(config(STEPS=[1, 4], STEPS_FROM_START=True, WARMUP_EPOCHS=3), 5)


def test_without_the_plugins_keys_the_schedule_is_fastreids():
    cfg = config(MAX_EPOCH=8, STEPS=[3], WARMUP_ITERS=4, WARMUP_FACTOR=0.1)
    before = cfg.dump()
    resolved = resolve_schedule(cfg, 2)
    assert cfg.dump() == before
    assert (resolved.SOLVER.STEPS, resolved.SOLVER.WARMUP_ITERS) == ([3], 4)


def trained(optimizer, net, steps=5):
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        for parameter in net.parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            parameter.grad = torch.empty_like(parameter).copy_(
                drawn
            )  # in memory as the weight is, as autograd's are
        optimizer.step()
    return [parameter.detach().clone() for parameter in net.parameters()]


@pytest.mark.parametrize(("name", "tolerance"), [("SGD", 0.0), ("Adam", 1e-6), ("AdamW", 1e-6)])
def test_on_a_cpu_one_kernel_updates_as_many_do(name, tolerance):
    cfg = config(OPT=name, BASE_LR=0.01, WEIGHT_DECAY=0.1, MOMENTUM=0.9, NESTEROV=True)
    net = Net()
    plain_net = copy.deepcopy(net)
    optimizer, plain = build_optimizer(cfg, net), build_optimizer(cfg, plain_net)
    assert all(group["fused"] for group in optimizer.param_groups)
    for group in plain.param_groups:
        group["fused"] = False
    for ours, theirs in zip(trained(optimizer, net), trained(plain, plain_net), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
def test_weights_whose_first_gradient_comes_late(name):
    """As with MODEL.LOSSES.CE_ONLY_EPOCHS; also after a checkpoint of which they have no momentum yet."""
    # one factor: early and late weights are updated together
    cfg = config(
        OPT=name,
        BASE_LR=0.01,
        WEIGHT_DECAY=0.1,
        MOMENTUM=0.9,
        NESTEROV=True,
        BACKBONE_LR_FACTOR=1.0,
    )
    results = []
    for fused in (True, False):
        torch.manual_seed(0)
        net = Net()
        optimizer = build_optimizer(cfg, net)
        for step in range(6):
            if step == 3:
                state, optimizer = optimizer.state_dict(), build_optimizer(cfg, net)
                optimizer.load_state_dict(copy.deepcopy(state))
            for group in optimizer.param_groups:
                group["fused"] = fused
            optimizer.zero_grad()
            for parameter in (net if step > 3 else net.backbone).parameters():
                parameter.grad = torch.randn_like(parameter)
            optimizer.step()
        results.append([parameter.detach() for parameter in net.parameters()])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_a_fused_optimizer_and_a_gradient_scaler_do_not_meet():
    """Clipping sees the gradients before a fused optimizer has taken the scale off them."""
    cfg = config()
    cfg.SOLVER.AMP.ENABLED, cfg.SOLVER.AMP.DTYPE = True, "float16"
    assert not any(group["fused"] for group in build_optimizer(cfg, Net()).param_groups)
    cfg.SOLVER.AMP.DTYPE = "bfloat16"
    assert all(group["fused"] for group in build_optimizer(cfg, Net()).param_groups)


@pytest.mark.parametrize("saved_by_fused", [True, False])
@pytest.mark.parametrize("name", ["SGD", "Adam"])
def test_a_checkpoint_does_not_say_which_kernel_runs(name, saved_by_fused):
    """A run may go on on another device, which has no such kernel, or in another precision."""
    fused, scaled = config(OPT=name), config(OPT=name)
    scaled.SOLVER.AMP.ENABLED, scaled.SOLVER.AMP.DTYPE = True, "float16"
    first, second = (fused, scaled) if saved_by_fused else (scaled, fused)
    net = Net()
    optimizer = build_optimizer(first, net)
    trained(optimizer, net)
    state, other_net = copy.deepcopy(optimizer.state_dict()), copy.deepcopy(net)
    other = build_optimizer(second, other_net)
    other.load_state_dict(state)
    assert {bool(group["fused"]) for group in other.param_groups} == {not saved_by_fused}
    assert {bool(group["fused"]) for group in state["param_groups"]} == {saved_by_fused}, (
        "the caller's stays as it is"
    )
    for ours, theirs in zip(trained(other, other_net), trained(optimizer, net), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["SGD", "Adam"])
def test_a_checkpoint_of_another_memory_format_goes_on_as_it_would_have(name):
    """Momentum that lies in memory otherwise than its weight is mixed up by a fused kernel, without a word."""
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, bias=False))
    optimizer = build_optimizer(config(OPT=name, MOMENTUM=0.9), net)
    trained(optimizer, net)
    turned = copy.deepcopy(net).to(memory_format=torch.channels_last)
    other = build_optimizer(config(OPT=name, MOMENTUM=0.9), turned)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for weight, state in other.state.items():
        kept = [value for value in state.values() if value.shape == weight.shape]
        assert kept
        assert all(value.stride() == weight.stride() for value in kept)
    for ours, theirs in zip(trained(other, turned), trained(optimizer, net), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
