"""A kept step runs again bit for bit, and the module where it began is named."""

import math

import pytest
import torch
from fastreid.utils.events import EventStorage

from fastreid_star.cli.main import main, run
from fastreid_star.engine import builders
from fastreid_star.engine.defaults import load_config
from fastreid_star.engine.replay import read_step, replay
from fastreid_star.engine.trainer import Trainer
from fastreid_star.errors import UserError

from ..tiny import STAR_DEMO, tiny_options

AMP = ("INPUT.CLIP.LENGTH", "2", "SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE")
BFLOAT16 = (*AMP, "bfloat16", "INPUT.SIZE_TRAIN", "[64,32]")
FLOAT16 = (*AMP, "float16")
STAGE = "backbone.stages.1.conv2"


@pytest.fixture
def fail(tiny_root, tmp_path):
    """``fail(spoil, *options)``: a good step, then one after `spoil(trainer)`; its file."""

    def failed(spoil, *more):
        options = tiny_options(tiny_root, tmp_path, "MODEL.LOSSES.CE_ONLY_EPOCHS", "0", *more)
        trainer = Trainer(load_config(STAR_DEMO, options))
        runner = trainer._trainer
        if runner.grad_scaler is not None:
            runner.grad_scaler._init_scale, runner.max_skipped = 1.0, 1
        with EventStorage(0):
            runner.iter = 0
            runner.run_step()
            spoil(trainer)
            runner.iter = 1
            with pytest.raises(UserError, match="iteration 1 "):
                runner.run_step()
        return str(tmp_path / "nonfinite-1.pth")

    return failed


def fill(value):
    """A convolution's weights are so large that its output overflows; its input is sound."""

    def spoil(trainer):
        with torch.no_grad():
            trainer.model.get_submodule(STAGE).weight.fill_(value)

    return spoil


def endless_gradient(trainer):
    trainer.model.heads.weight.register_hook(lambda gradient: gradient * math.inf)


@pytest.mark.parametrize(
    ("value", "more"),
    [(3e38, ()), (6e4, FLOAT16), (3e38, BFLOAT16)],
    ids=["float32", "float16", "bfloat16"],
)
def test_the_step_is_the_same_and_the_planted_module_is_found(fail, value, more):
    path = fail(fill(value), *more)
    step = read_step(path)
    report = replay(path)
    assert f"First output that is not finite: {STAGE} (Conv2d), largest input " in report
    assert report.count(" same") == len(step["losses"]) == 7
    assert all(clip in report for clip in step["clips"])


def test_finite_losses_are_the_same_bit_for_bit(fail):
    """Dropout, style and attack are drawn again. A gradient spoiled by a hook is not."""
    path = fail(endless_gradient)
    report = replay(path)
    assert report.count(" same") == 7
    assert "All numbers are finite here" in report
    step = torch.load(path, weights_only=True)
    torch.save({**step, "seed": 1}, path)
    assert replay(path).count(" same") < 6


def test_early_epochs_and_frozen_parts_are_as_they_were(fail):
    def early(trainer):
        trainer.model.epoch = 0  # the cross entropies alone
        trainer.model.corrector.eval()
        trainer.model.backbone.visible_stem.requires_grad_(False)
        endless_gradient(trainer)

    path = fail(early, "MODEL.LOSSES.CE_ONLY_EPOCHS", "1")
    step = read_step(path)
    assert set(step["losses"]) == {"loss_cls", "loss_cls_frame"}
    assert "backbone.visible_stem.0.weight" in step["frozen"]
    assert replay(path).count(" same") == 2


def test_float64_tells_range_from_mathematics(fail):
    path = fail(fill(1e38))
    assert "First output" in replay(path)
    assert "First output" not in replay(path, float64=True)


def test_a_backward_pass_is_followed(fail, tmp_path, monkeypatch):
    """sqrt(0) is finite, and its gradient is not."""
    build = builders.build_model

    def add_root(module, inputs, losses):
        if isinstance(losses, dict):
            return {**losses, "loss_root": (losses["loss_cls"] * 0).sqrt()}

    def with_root(cfg):
        model = build(cfg)
        model.register_forward_hook(add_root)
        return model

    monkeypatch.setattr(builders, "build_model", with_root)
    with pytest.raises(UserError, match="the losses are finite, but"):
        fail(lambda trainer: None)
    report = replay(str(tmp_path / "nonfinite-0.pth"))
    assert "anomaly detection: Function 'MulBackward0' returned nan" in report
    assert report.count(" same") == 8
    assert "First output" not in report


def test_weights_that_were_not_finite_before_are_named(fail):
    def spoil(trainer):
        with torch.no_grad():
            trainer.model.heads.weight.fill_(math.nan)

    assert "Not finite before the step: heads.weight" in replay(fail(spoil))


def test_files_that_are_no_step_are_refused(tmp_path):
    torch.save({"model": {}}, tmp_path / "model.pth")
    (tmp_path / "text.pth").write_text("hello")
    for name, words in (
        ("model.pth", "not a kept step"),
        ("text.pth", "cannot be read"),
        ("no", "not exist"),
    ):
        with pytest.raises(UserError, match=words):
            read_step(str(tmp_path / name))


def test_divergence_ends_in_one_line_and_spoils_no_checkpoint(tiny_root, tmp_path, capsys):
    """From the command line: a rate that is far too high, and the replay of where it ended."""
    more = "SOLVER.OPT SGD SOLVER.BASE_LR 100.0 SOLVER.WARMUP_EPOCHS 3 SOLVER.STEPS () "
    more += "SOLVER.MAX_EPOCH 5 TEST.EVAL_PERIOD 0"
    options = tiny_options(tiny_root, tmp_path, *more.split())
    with pytest.raises(SystemExit) as ended:
        main(["train", "--config-file", STAR_DEMO, *options])
    assert ended.value.code == 2
    (kept,) = tmp_path.glob("nonfinite-*.pth")
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: loss_")
    assert "lower SOLVER.BASE_LR" in line
    assert line.endswith(str(kept))
    last = torch.load(tmp_path / "model_last.pth", weights_only=True)
    assert all(value.isfinite().all() for value in last["model"].values())
    assert not (tmp_path / "model_final.pth").exists()
    run("replay", kept)
    assert "First output that is not finite" in capsys.readouterr().out
