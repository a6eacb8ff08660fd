"""Whole runs on the tiny synthetic data: training, evaluation, precision, layout."""

import os

import pytest
import torch

from fastreid_star.engine.checkpoint import checkpoint_config
from fastreid_star.engine.defaults import load_config
from fastreid_star.engine.trainer import Trainer, train_or_evaluate
from fastreid_star.errors import UserError
from fastreid_star.weights import read_checkpoint

from ..tiny import tiny_config
from .runs import NO_EVALUATION, arguments


def test_training_changes_every_weight_and_reports_both_directions(whole_run):
    assert whole_run.unchanged == []
    results = whole_run.results
    names = ("Rank-1", "Rank-20", "mAP", "mINP")
    assert {f"{way}/{what}" for way in ("I2V", "V2I") for what in names} <= set(results)
    mean = (results["I2V/mAP"] + results["V2I/mAP"]) / 2
    assert results["metric"] == results["mean/mAP"] == pytest.approx(mean)
    assert all(0 <= value <= 100 for value in results.values())


def test_cross_entropy_alone_for_the_first_epochs(whole_run):
    # before the first step, one sample of the test set is evaluated
    assert ["loss_defense" in losses for losses in whole_run.losses] == [False] * 3 + [True] * 6


def test_the_log_counts_epochs_from_one(whole_run):
    assert any("from epoch 1 of 3" in line for line in whole_run.lines)
    lines = [line for line in whole_run.lines if "epoch/iter" in line]
    assert [line.split("epoch/iter: ")[1].split("/")[0] for line in lines] == list("111222333")


def test_what_a_run_leaves_behind(tiny_root, whole_run):
    output = whole_run.folder
    names = {*os.listdir(output)}
    assert {"config.yaml", "metrics.json", "model_best.pth", "model_last.pth"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert (output / "per_query_SyntheticVCM.csv").read_text().count("\n") == 1 + 2 * 8
    final = read_checkpoint(str(output / "model_final.pth"))
    assert (final["epoch"], final["iteration"], final["iters_per_epoch"]) == (2, 9, 3)
    best = pytest.approx(whole_run.results["metric"])
    assert final["progress"] == {"seed": 0, "best_metric": best, "trackers": {}}
    release = final["versions"]["torch"].partition("+")[0]  # a wheel may not state its build
    assert release == torch.__version__.partition("+")[0]
    cfg = tiny_config(tiny_root, output, "SOLVER.LOG_PERIOD", "1")
    assert checkpoint_config(str(output / "model_final.pth")) == cfg
    assert load_config(str(output / "config.yaml")) == cfg


def test_features_asked_for_without_effect_are_refused_in_evaluation(tiny_root, copied):
    weights = ("MODEL.WEIGHTS", str(copied / "model_best.pth"), "TEST.PRECISE_BN.ENABLED", "True")
    with pytest.raises(UserError, match=r"TEST\.PRECISE_BN\.ENABLED"):
        train_or_evaluate(arguments(tiny_root, copied, "--eval-only", *weights))


# --- precision, layout ----------------------------------------------------------------------------


def test_mixed_precision_trains(tiny_root, tmp_path):
    amp = ["SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", "bfloat16", "SOLVER.MAX_EPOCH", "1"]
    # torch 2.13's bfloat16 convolution on the CPU gives NaN for maps of 4x2 with stride 2
    size = ["INPUT.SIZE_TRAIN", "[64, 32]", "SOLVER.STEPS", "()"]
    trainer = Trainer(tiny_config(tiny_root, tmp_path, *amp, *size, *NO_EVALUATION))
    before = trainer.model.heads.weight.detach().clone()
    trainer.train()
    assert not torch.equal(trainer.model.heads.weight, before)


def test_channels_last_gives_the_same_step_in_another_layout(tiny_root, tmp_path):
    """Same losses and gradients up to the rounding of sums in another order."""
    runs = {}
    for value in ("False", "True"):
        cfg = tiny_config(tiny_root, tmp_path / value, "MODEL.CHANNELS_LAST", value)
        trainer = Trainer(cfg)
        layouts = []
        for stage in (trainer.model.backbone.visible_stem, *trainer.model.backbone.stages):
            stage.register_forward_hook(
                lambda module, inputs, maps, seen=layouts: seen.append(
                    maps.is_contiguous(memory_format=torch.channels_last)
                )
            )
        if runs:
            trainer.model.load_state_dict(runs["False"][0])
        weights = {name: value.clone() for name, value in trainer.model.state_dict().items()}
        torch.manual_seed(0)
        losses = trainer.model.train()(next(iter(trainer.data_loader)))
        sum(losses.values()).backward()
        gradients = {n: p.grad for n, p in trainer.model.named_parameters() if p.grad is not None}
        runs[value] = (weights, losses, gradients, layouts)
    assert not any(runs["False"][3])
    assert runs["True"][3]
    assert all(runs["True"][3])
    for ours, theirs in zip(runs["True"][1].values(), runs["False"][1].values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    for name, gradient in runs["True"][2].items():
        expected = runs["False"][2][name]
        assert (gradient - expected).norm() < 1e-4 * expected.norm() + 1e-7, name
