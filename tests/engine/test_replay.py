"""A kept step runs again bit for bit, and where it began is found; bad files are refused in one line."""

import math
from dataclasses import replace

import pytest
import torch
from fastreid.utils.events import EventStorage

from fastreid_star.engine import replay as replay_module
from fastreid_star.engine.defaults import load_config
from fastreid_star.engine.replay import describe, replay
from fastreid_star.engine.step_file import read_step
from fastreid_star.engine.trainer import Trainer
from fastreid_star.errors import UserError
from fastreid_star.modeling.star import STAR as STARNetwork

from .conftest import REPOSITORY, tiny_options

STAR = str(REPOSITORY / "configs" / "Synthetic" / "STAR_demo.yml")
BFLOAT16 = (
    "SOLVER.AMP.ENABLED",
    "True",
    "SOLVER.AMP.DTYPE",
    "bfloat16",
    "INPUT.SIZE_TRAIN",
    "[64, 32]",
)
FLOAT16 = (
    "SOLVER.AMP.ENABLED",
    "True",
    "SOLVER.AMP.DTYPE",
    "float16",
    "SOLVER.AMP.MAX_SKIPPED",
    "1",
)
STAGE = "backbone.stages.1.conv2"


@pytest.fixture
def fail(tiny_root, tmp_path):
    """``fail(spoil, *options)``: one good step, then one of a trainer that `spoil` has changed; what it kept."""

    def failed(spoil, *more):
        options = tiny_options(tiny_root, tmp_path, "MODEL.LOSSES.CE_ONLY_EPOCHS", "0", *more)
        trainer = Trainer(load_config(STAR, options))
        runner = trainer._trainer
        if runner.grad_scaler is not None:
            runner.grad_scaler._init_scale = 1.0
        with EventStorage(0):
            runner.iter = 0
            runner.run_step()
            spoil(trainer)
            runner.iter = 1
            with pytest.raises(UserError, match="iteration 1 "):
                runner.run_step()
        return read_step(str(tmp_path / "nonfinite-1.pth"))

    return failed


def huge(trainer):
    """A convolution of a stage overflows; its input does not."""
    with torch.no_grad():
        trainer.model.get_submodule(STAGE).weight.fill_(3e38)


def half_huge(trainer):
    with torch.no_grad():
        trainer.model.get_submodule(STAGE).weight.fill_(6e4)


def endless_gradient(trainer):
    trainer.model.heads.weight.register_hook(lambda gradient: gradient * math.inf)


@pytest.mark.parametrize(
    ("spoil", "more"),
    [(huge, ()), (half_huge, FLOAT16), (huge, BFLOAT16)],
    ids=["float32", "float16", "bfloat16"],
)
def test_the_step_is_the_same_and_the_planted_module_is_found(fail, spoil, more):
    step = fail(spoil, *more)
    found = replay(step)
    assert found.reproduces
    assert found.numbers.bad_losses == tuple(
        name for name, value in step["losses"].items() if not math.isfinite(value)
    )
    assert found.numbers.bad_losses
    assert (found.origin.module, found.origin.backward) == (STAGE, False)
    assert "conv" in found.origin.operator
    first = next(passage for passage in found.passages if passage.output.bad)
    assert (first.module, first.kind, first.input.bad) == (STAGE, "Conv2d", 0)
    assert found.inputs[f"{STAGE}.weight"].magnitude > 5e4
    told = describe(found)
    assert "The losses are the same, bit for bit. Not finite" in told
    assert "It began in the forward pass, in aten::" in told
    assert f">   {STAGE} " in told
    assert all(clip.rpartition("/")[0] in told for clip in step["clips"])


def test_finite_losses_are_the_same_bit_for_bit(fail):
    """Dropout, style and attack drawn anew; a gradient spoiled by what no file holds does not come again."""
    step = fail(endless_gradient)
    assert step["gradients"] == ["heads.weight"]
    assert len(step["losses"]) == 6
    found = replay(step)
    assert found.numbers.losses == step["losses"]
    assert found.reproduces
    assert found.numbers.is_finite
    assert found.origin is None
    assert "bit for bit. All is finite here." in describe(found)
    other = replay({**step, "seed": 1})
    assert not other.reproduces
    assert "The losses differ: " in describe(other)


def test_early_epochs_and_frozen_parts_are_as_they_were(fail):
    def early(trainer):
        trainer.model.loss_names = ("CrossEntropyLoss",)
        trainer.model.corrector.eval()
        trainer.model.backbone.visible_stem.requires_grad_(False)
        endless_gradient(trainer)

    step = fail(early)
    found = replay(step)
    assert set(found.numbers.losses) == {"loss_cls", "loss_cls_frame"}
    assert found.reproduces
    model = replay_module.rebuild(step, "cpu")
    assert model.training
    assert not any(module.training for module in model.corrector.modules())
    assert {name for name, p in model.named_parameters() if not p.requires_grad} == set(
        step["frozen"]
    )
    assert "backbone.visible_stem.0.weight" in step["frozen"]


def test_float64_tells_range_from_mathematics(fail):
    def large(trainer):
        with torch.no_grad():
            trainer.model.get_submodule(STAGE).weight.fill_(3e30)

    step = fail(large)
    assert not replay(step).numbers.is_finite
    exact = replay(step, float64=True)
    assert exact.numbers.is_finite
    assert exact.origin is None
    assert "In float64. All is finite" in describe(exact)


def test_what_came_in_spoiled_is_named(fail):
    def spoiled(trainer):
        with torch.no_grad():
            trainer.model.get_submodule(STAGE).weight[0, 0, 0, 0] = math.nan

    found = replay(fail(spoiled))
    assert found.reproduces
    told = describe(found)
    assert f"It began before the step: {STAGE}.weight came in with " in told
    assert next(line for line in told.splitlines() if line.startswith(f"{STAGE}.weight")).endswith(
        "not finite"
    )


@pytest.fixture
def add_to_the_loss(monkeypatch):
    """``add_to_the_loss(term)``: in the class, so that the network that is built anew has it too."""

    def added(term):
        honest = STARNetwork.losses

        def losses(self, frames, *others):
            found = honest(self, frames, *others)
            found["loss_cls"] = found["loss_cls"] + term(self, frames)
            return found

        return lambda trainer: monkeypatch.setattr(STARNetwork, "losses", losses)

    return added


def test_a_backward_pass_is_followed(fail, add_to_the_loss):
    step = fail(add_to_the_loss(lambda model, frames: (frames * 0).sqrt().sum()))
    assert len(step["gradients"]) > 20
    found = replay(step)
    assert found.reproduces
    assert found.origin.backward
    assert "(frames * 0).sqrt().sum()" in found.origin.line
    told = describe(found)
    assert "The losses are finite, but " in told
    assert "It began in the backward pass, in aten::" in told
    assert "gradient of the output" in told


def test_gradients_too_large_to_square_are_told_with_their_peak(fail, add_to_the_loss):
    step = fail(add_to_the_loss(lambda model, frames: (model.heads.weight * 1e30).mean()))
    assert step["gradients"] == ["heads.weight"]
    found = replay(step)
    assert found.reproduces
    assert found.origin is None
    name, peak = found.largest
    assert name == "heads.weight"
    assert peak == pytest.approx(1e30 / step["model"]["heads.weight"].numel(), rel=1e-3)
    told = " ".join(describe(found).split())
    assert (
        f"No single number overflows, the sum of their squares does: up to {peak:.3g} in heads.weight"
        in told
    )


def test_what_differs_is_explained(fail):
    step = fail(endless_gradient)
    found = replay({**step, "seed": 1})
    for facts, reason in (
        ({"device": "npu"}, "the step ran on npu"),
        ({"torch": "1.0"}, "with torch 1.0"),
        ({"world_size": 2}, "here is one process's share"),
        ({}, "another number of threads"),
    ):
        assert reason in " ".join(describe(replace(found, step={**found.step, **facts})).split())
    alone = replace(replay(step), step={**step, "world_size": 2})
    assert "averaged over the processes; replay the other ranks' files" in " ".join(
        describe(alone).split()
    )


def test_files_that_do_not_fit_are_refused(fail):
    step = fail(endless_gradient)
    weights = {**step["model"], "heads.weight": torch.zeros(1)}
    with pytest.raises(
        UserError, match=r"1 of the file's weights do not fit its config, first heads\.weight"
    ):
        replay({**step, "model": weights})
    with pytest.raises(UserError, match="config is of another version"):
        replay({**step, "config": step["config"] + "NO_SUCH_KEY: 1\n"})
    with pytest.raises(UserError, match=r"network cannot be built here: .*MINE"):
        replay(
            {
                **step,
                "config": step["config"].replace(
                    "META_ARCHITECTURE: STAR", "META_ARCHITECTURE: MINE"
                ),
            }
        )


def test_files_that_are_no_step_are_refused(fail, tmp_path):
    fail(endless_gradient)
    path = tmp_path / "nonfinite-1.pth"
    with pytest.raises(UserError, match="does not exist: give a nonfinite"):
        read_step(str(tmp_path / "none.pth"))
    torch.save({"model": {}}, tmp_path / "model.pth")
    with pytest.raises(UserError, match="is no training step of this version"):
        read_step(str(tmp_path / "model.pth"))
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(
        UserError, match="cannot be read: it is damaged or no training step"
    ) as raised:
        read_step(str(path))
    assert "\n" not in str(raised.value)
