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
    for name in ("Adom", "LBFGS"):
        with pytest.raises(UserError, match=rf"SOLVER\.OPT '{name}'"):
            build_optimizer(config(OPT=name), Net())


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


@pytest.mark.parametrize(
    ("solver", "words"),
    [
        ({"STEPS": [1, 4], "STEPS_FROM_START": True, "WARMUP_EPOCHS": 3}, "inside the warm-up"),
        ({"STEPS": [4, 2]}, "ascending"),
        ({"STEPS": ["two"]}, "ascending"),
        ({"SCHED": "CosineAnnealingLR", "WARMUP_EPOCHS": 3, "MAX_EPOCH": 3}, "no epoch"),
    ],
)
def test_a_schedule_without_effect_is_refused(solver, words):
    with pytest.raises(UserError, match=words):
        resolve_schedule(config(**solver), 5)


def test_without_the_plugins_keys_the_schedule_is_fastreids():
    cfg = config(MAX_EPOCH=8, STEPS=[3], WARMUP_ITERS=4, WARMUP_FACTOR=0.1)
    before = cfg.dump()
    resolved = resolve_schedule(cfg, 2)
    assert cfg.dump() == before
    assert (resolved.SOLVER.STEPS, resolved.SOLVER.WARMUP_ITERS) == ([3], 4)


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
def test_weights_whose_first_gradient_comes_late(name):
    """As with MODEL.LOSSES.CE_ONLY_EPOCHS; also after a checkpoint without momentum for them."""
    cfg = config(OPT=name, BASE_LR=0.01, WEIGHT_DECAY=0.1, BACKBONE_LR_FACTOR=1.0)
    net = Net()
    optimizer = build_optimizer(cfg, net)
    for step in range(6):
        if step == 3:
            state, optimizer = optimizer.state_dict(), build_optimizer(cfg, net)
            optimizer.load_state_dict(copy.deepcopy(state))
        before = net.heads.weight.detach().clone()
        optimizer.zero_grad()
        for parameter in (net if step > 3 else net.backbone).parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
        assert torch.equal(net.heads.weight, before) == (step <= 3)


def test_a_fused_optimizer_and_a_gradient_scaler_do_not_meet():
    """Clipping would see the gradients before a fused optimizer has unscaled them."""
    cfg = config(OPT="Adam")
    assert build_optimizer(cfg, Net()).defaults["fused"]
    cfg.SOLVER.AMP.ENABLED, cfg.SOLVER.AMP.DTYPE = True, "float16"
    assert not build_optimizer(cfg, Net()).defaults["fused"]
