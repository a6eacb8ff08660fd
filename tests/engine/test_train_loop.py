"""A step that is not finite changes nothing: it ends the run, or is skipped with a scaler."""

import logging
import math

import pytest
import torch
from fastreid.utils.events import EventStorage

from fastreid_star.engine import device as devices
from fastreid_star.engine.defaults import load_config
from fastreid_star.engine.finite import measure
from fastreid_star.engine.replay import read_step
from fastreid_star.engine.train_loop import step_seed
from fastreid_star.engine.trainer import Trainer
from fastreid_star.errors import UserError

from ..tiny import STAR_DEMO, tiny_options

# torch's bfloat16 convolution on the CPU gives NaN for maps of 4x2 with stride 2
BFLOAT16 = (
    "SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", "bfloat16", "INPUT.SIZE_TRAIN", "[64, 32]",
    "INPUT.CLIP.LENGTH", "2",
)  # fmt: skip
FLOAT16 = (
    "SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", "float16", "INPUT.CLIP.LENGTH", "2",
)  # fmt: skip


@pytest.fixture
def build(tiny_root, tmp_path):
    """A trainer with all losses from the first step on."""

    def built(*more):
        options = tiny_options(tiny_root, tmp_path, "MODEL.LOSSES.CE_ONLY_EPOCHS", "0", *more)
        return Trainer(load_config(STAR_DEMO, options))

    return built


def state(trainer):
    """Everything that a checkpoint would hold, copied."""
    tensors = {f"model.{name}": value.clone() for name, value in trainer.model.state_dict().items()}
    for number, (_, entry) in enumerate(trainer.optimizer.state_dict()["state"].items()):
        tensors |= {
            f"optimizer.{number}.{key}": torch.as_tensor(value).clone()
            for key, value in entry.items()
        }
    return tensors


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def take_steps(trainer, *, bad=(), count=1, first=0, losses=("loss_cls",), value=math.nan):
    """Run `count` steps from `first` on, with planted losses in those of `bad`; the storage."""
    runner, model = trainer._trainer, trainer.model
    honest = type(model).forward

    def planted(batch):
        found = honest(model, batch)
        if runner.iter in bad:
            found |= {name: found[name] * value for name in losses}
        return found

    model.forward = planted
    storage = EventStorage(first)
    with storage:
        for runner.iter in range(first, first + count):
            storage.iter = runner.iter
            runner.run_step()
    return storage


@pytest.mark.parametrize("name", ["loss_cls", "loss_skeleton"])
def test_each_loss_is_caught_at_its_step(build, tmp_path, name):
    trainer = build()
    take_steps(trainer, count=1)
    before = state(trainer)
    with pytest.raises(
        UserError, match=rf"^{name} is nan at iteration 1 .*lower SOLVER.BASE_LR"
    ) as e:
        take_steps(trainer, bad={1}, first=1, losses=(name,))
    assert str(e.value).endswith(f"replay {tmp_path}/nonfinite-1.pth")
    assert same(state(trainer), before)
    kept = read_step(str(tmp_path / "nonfinite-1.pth"))
    assert {key for key, value in kept["losses"].items() if not math.isfinite(value)} == {name}
    weights = {key: value for key, value in before.items() if key.startswith("model.")}
    assert same({f"model.{key}": value for key, value in kept["model"].items()}, weights)


def test_what_is_kept(build, tmp_path):
    trainer = build("SEED", "5")
    take_steps(trainer)
    with pytest.raises(UserError, match="loss_cls is inf, loss_triplet is inf at iteration 1"):
        take_steps(trainer, bad={1}, first=1, losses=("loss_cls", "loss_triplet"), value=math.inf)
    kept = read_step(str(tmp_path / "nonfinite-1.pth"))
    assert (kept["seed"], kept["rank"], kept["iteration"]) == (5, 0, 1)
    assert kept["frozen"] == [
        *("heads.bottleneck.0.bias", "frame_heads.bottleneck.0.bias", "absent_neck.0.bias"),
    ]
    assert kept["batch"]["images"].shape == (8, 3, 3, 32, 16)
    tracklets = trainer.data_loader.dataset.tracklets
    assert kept["clips"] == [tracklets[index].key(0) for index in kept["batch"]["index"]]


@pytest.mark.parametrize("value", [math.inf, 1e25])
def test_a_gradient_is_caught_where_the_losses_are_finite(build, tmp_path, value):
    trainer = build()
    take_steps(trainer)
    before = state(trainer)
    parameters = trainer.model.named_parameters()
    name, parameter = next(item for item in parameters if item[0].endswith("conv2.weight"))
    hook = parameter.register_hook(lambda gradient: torch.full_like(gradient, value))
    with pytest.raises(UserError, match=f"losses are finite, but the gradient of {name} is not"):
        take_steps(trainer, first=1)
    assert same(state(trainer), before), "BatchNorm's statistics too"
    hook.remove()
    take_steps(trainer, first=1)
    assert not same(state(trainer), before)


def test_statistics_that_overflow_are_caught_where_losses_and_gradients_are_finite(build):
    """A variance that overflows does not show in training, and spoils every evaluation."""
    trainer = build()
    norm = next(
        m
        for m in trainer.model.backbone.modules()
        if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)
    )
    take_steps(trainer)

    def overflow(module, *_):
        module.running_var.data.fill_(math.inf)

    norm.register_forward_hook(overflow)
    with pytest.raises(UserError, match=r"backbone.*running_var is not finite"):
        take_steps(trainer, first=1)
    assert norm.running_var.isfinite().all()


def test_a_batch_that_came_in_spoiled_is_told_from_a_rate_too_high(build):
    trainer = build()
    batches = iter(trainer.data_loader)

    def spoiled():
        for batch in batches:
            yield {**batch, "images": batch["images"] * math.nan}

    trainer._trainer._batches = spoiled()
    with pytest.raises(UserError, match=r"the batch's images was not finite"):
        take_steps(trainer)


def test_weights_that_came_in_spoiled_are_told(build):
    trainer = build()
    with torch.no_grad():
        trainer.model.heads.weight[0, 0] = math.nan
    with pytest.raises(UserError, match=r"heads\.weight is not finite before the step"):
        take_steps(trainer)


def test_a_full_disk_does_not_hide_the_reason(build, tmp_path, monkeypatch, caplog):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fastreid_star.engine.train_loop.write_whole", full)
    with pytest.raises(UserError, match=r"^loss_cls is nan at iteration 0 .*lower SOLVER"):
        take_steps(build(), bad={0})
    assert "could not be kept" in caplog.text
    assert not list(tmp_path.glob("nonfinite*"))


def test_bfloat16_has_no_scaler_and_stops(build, tmp_path):
    trainer = build(*BFLOAT16)
    before = state(trainer)
    with pytest.raises(
        UserError,
        match=r"loss_defense is nan at iteration 0 .*set SOLVER\.AMP\.ENABLED False",
    ):
        take_steps(trainer, bad={0}, losses=("loss_defense",))
    assert same(state(trainer), before)
    assert read_step(str(tmp_path / "nonfinite-0.pth"))["amp_dtype"] == "bfloat16"


def test_overflowing_gradients_are_skipped_by_the_scaler_and_counted(build, caplog):
    trainer = build(*FLOAT16)
    runner = trainer._trainer
    runner.grad_scaler._init_scale = 2.0**20
    before = state(trainer)
    with caplog.at_level(logging.DEBUG, logger="fastreid_star"):
        take_steps(trainer)
    assert (runner.skipped, runner._skipped_in_a_row, runner.grad_scaler.get_scale()) == (
        1,
        1,
        2.0**19,
    )
    after = state(trainer)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed, "the forward pass was sound: its statistics count"
    assert all("running" in name or "num_batches" in name for name in changed)
    (record,) = [record for record in caplog.records if "was skipped" in record.message]
    assert record.levelno == logging.DEBUG
    assert "gradients overflow at a scale" in record.message
    runner.grad_scaler.update(1.0)
    take_steps(trainer, first=1)
    assert (runner.skipped, runner._skipped_in_a_row) == (1, 0)
    assert not torch.equal(state(trainer)["model.heads.weight"], before["model.heads.weight"])
    assert all(value.isfinite().all() for value in state(trainer).values())


def test_a_scale_that_collapses_ends_the_run(build, tmp_path):
    trainer = build(*FLOAT16)
    trainer._trainer.max_skipped = 2
    parameters = trainer.model.named_parameters()
    name, parameter = next(item for item in parameters if item[0].endswith("conv2.weight"))
    trainer._trainer.grad_scaler._init_scale = 16.0
    parameter.register_hook(lambda gradient: torch.full_like(gradient, math.inf))
    words = r"^2 steps in a row were skipped, the last because the losses are finite"
    with pytest.raises(UserError, match=words) as end:
        take_steps(trainer, count=10)
    assert name in str(end.value)
    assert "at iteration 1 " in str(end.value)
    assert "set SOLVER.AMP.DTYPE bfloat16" in str(end.value)
    scale = read_step(str(tmp_path / "nonfinite-1.pth"))["grad_scaler"]["scale"]
    assert scale == 8.0, "as it was before that step"


def test_a_loss_that_overflows_in_float16_is_skipped_and_the_next_step_taken(build, caplog):
    trainer = build(*FLOAT16)
    runner = trainer._trainer
    runner.grad_scaler._init_scale, runner.max_skipped = 1.0, 2
    before, scaler = state(trainer), runner.grad_scaler.state_dict()
    storage = take_steps(trainer, bad={0})
    assert same(state(trainer), before), "BatchNorm's statistics too"
    assert runner.grad_scaler.state_dict() == scaler
    assert "Iteration 0 was skipped: loss_cls is nan (1 in a row; 2 end the run)" in caplog.text
    assert math.isnan(storage.latest()["total_loss"][0]), "a bar reads it from the first step on"
    storage = take_steps(trainer, bad={2}, first=1, count=2)
    assert not same(state(trainer), before)
    assert runner.skipped == 2
    assert math.isfinite(storage.history("total_loss").median(20))
    names = ("total_loss", "loss_cls")
    assert [len(storage.history(name).values()) for name in names] == [1, 1]
    words = r"^2 steps in a row were skipped, the last because loss_cls is nan at iteration 3"
    with pytest.raises(UserError, match=words):
        take_steps(trainer, bad={3}, first=3)


# --- what is measured -----------------------------------------------------------------------------


def test_losses_come_to_the_host_exactly_and_what_is_not_finite_by_name():
    losses = {"a": torch.tensor(0.1), "b": torch.tensor(math.nan, dtype=torch.float64)}
    gradients = {
        "fine": torch.ones(3),
        "nan": torch.tensor([1.0, math.nan]),
        "large": torch.full((2,), 1e25),
        "half": torch.tensor([math.inf], dtype=torch.float16),
    }
    found = measure(losses, gradients, {"mean": torch.zeros(2), "var": torch.tensor([-math.inf])})
    assert found.losses["a"] == float(torch.tensor(0.1))
    assert found.bad_losses == ["b"]
    assert found.gradients == ("nan", "large", "half")
    assert found.buffers == ("var",)
    assert not found.forward_is_finite
    assert measure({"a": torch.tensor(1.0)}, {}, {}).forward_is_finite


def test_style_and_dropout_of_a_step_follow_from_its_number():
    seeds = {
        step_seed(seed, rank, step) for seed in range(3) for rank in range(3) for step in range(50)
    }
    assert len(seeds) == 450
    assert step_seed(1, 2, 3) == step_seed(1, 2, 3)
    assert 0 <= min(seeds) <= max(seeds) < 2**63


def test_each_rank_draws_its_own_numbers(build, monkeypatch):
    """For dropout and the style attack."""
    trainer, drawn = build(), []

    def seed(number):
        drawn.append(number)
        raise StopIteration

    monkeypatch.setattr(devices, "seed_everywhere", seed)
    for rank in (0, 1):
        monkeypatch.setattr("fastreid.utils.comm.get_rank", lambda rank=rank: rank)
        with pytest.raises(StopIteration):
            take_steps(trainer)
    assert drawn[0] != drawn[1]
