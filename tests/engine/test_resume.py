"""A run goes on as if it had not ended, or is refused."""

import json
import os

import pytest
import torch
import yaml

from fastreid_star.engine.config_changes import check_resumed
from fastreid_star.engine.defaults import load_config
from fastreid_star.engine.trainer import Trainer, load_trained
from fastreid_star.errors import UserError

from ..tiny import DEMO, tiny_config
from .runs import NO_EVALUATION, assert_same_checkpoint, resumed, stopped


def test_interrupted_and_resumed_equals_uninterrupted(tiny_root, whole_run, tmp_path):
    stopped(tiny_root, tmp_path, 5)
    torch.manual_seed(99)  # what the process did before must not matter
    trainer = resumed(tiny_root, tmp_path, "SOLVER.LOG_PERIOD", "1")
    assert trainer.start_epoch == 1
    assert trainer.train() == whole_run.results
    assert_same_checkpoint(tmp_path / "model_final.pth", whole_run.folder / "model_final.pth")


def test_a_run_goes_on_from_the_last_good_checkpoint(tiny_root, whole_run, tmp_path, caplog):
    stopped(tiny_root, tmp_path, 7)
    os.truncate(tmp_path / "model_last.pth", 1000)
    (tmp_path / "model_last.pth.tmp").write_text("half of the next one")
    with open(tmp_path / "metrics.json", "a") as file:
        file.write('{"epoch": 2.3, "iter')
    trainer = resumed(tiny_root, tmp_path, "SOLVER.LOG_PERIOD", "1")
    assert f"Resuming from {tmp_path}/model_last-1.pth" in caplog.text
    assert (trainer.start_epoch, trainer.start_iter) == (1, 3)
    assert trainer.train() == whole_run.results
    assert_same_checkpoint(tmp_path / "model_final.pth", whole_run.folder / "model_final.pth")
    assert not list(tmp_path.glob("*.tmp"))
    for line in (tmp_path / "metrics.json").read_text().splitlines():
        json.loads(line)


def test_a_finished_run_is_only_evaluated(tiny_root, whole_run, copied):
    assert resumed(tiny_root, copied).train() == whole_run.results


@pytest.mark.parametrize(
    "more",
    [
        ("SOLVER.BASE_LR", "0.01"),
        ("SOLVER.STEPS", "[1]"),
        ("SOLVER.OPT", "SGD"),
        ("MODEL.LOSSES.TRI.MARGIN", "0.5"),
        ("SOLVER.SCHED", "CosineAnnealingLR"),
        ("SOLVER.SCHED", "CosineAnnealingLR", "SOLVER.MAX_EPOCH", "9"),
    ],
)
def test_resuming_with_another_config_is_refused_by_its_key(more):
    """Half of these had an effect, half had none, without a word."""
    key = more[-2]
    saved = load_config(DEMO, ["SEED", "0", *more[:-2]])
    with pytest.raises(UserError, match=rf"--resume.*{key} \(.* -> "):
        check_resumed(saved, load_config(DEMO, ["SEED", "0", *more]), allow=False)


def test_changes_that_a_run_can_take_are_listed_or_allowed(tiny_root, copied, caplog):
    resumed(tiny_root, copied, "DATALOADER.NUM_WORKERS", "1", "TEST.EVAL_PERIOD", "1")
    assert "differs" not in caplog.text
    more = ("MODEL.LOSSES.TRI.MARGIN", "0.5", "SOLVER.MAX_EPOCH", "4")
    trainer = resumed(tiny_root, copied, *more, allow_changed=True)
    assert "MODEL.LOSSES.TRI.MARGIN (0.3 -> 0.5)" in caplog.text
    assert "SOLVER.MAX_EPOCH (3 -> 4)" in caplog.text
    assert (trainer.start_iter, trainer.max_iter) == (9, 12)
    assert trainer.model.losses["TripletLoss"].arguments["margin"] == 0.5


def test_a_run_with_a_removed_key_is_resumed_and_evaluated(tiny_root, tmp_path, caplog):
    trainer = Trainer(tiny_config(tiny_root, tmp_path))
    config = yaml.safe_load(trainer.cfg_as_written.dump())
    config["SOLVER"]["AMP"]["MAX_SKIPPED"] = 7
    trainer.checkpointer.save(
        "model_last", epoch=0, iteration=3, iters_per_epoch=3, config=yaml.safe_dump(config)
    )
    trainer = resumed(tiny_root, tmp_path)
    assert trainer.start_iter == 3
    assert caplog.text.count("SOLVER.AMP.MAX_SKIPPED 7 is ignored") == 1
    load_trained(trainer.cfg_as_written, str(tmp_path / "model_last.pth"))
    assert caplog.text.count("MAX_SKIPPED") == 1


def test_resuming_inside_the_warm_up_with_longer_epochs_is_refused(tiny_root, tmp_path):
    """The rate stayed below BASE_LR for the rest of the run."""
    warm = ("SOLVER.WARMUP_EPOCHS", "2", *NO_EVALUATION)
    trainer = Trainer(tiny_config(tiny_root, tmp_path, *warm))
    trainer.checkpointer.save("model_last", epoch=0, iteration=3, iters_per_epoch=3)
    with pytest.raises(UserError, match="from the warm-up with 3 steps"):
        resumed(tiny_root, tmp_path, *warm, "SOLVER.IMS_PER_BATCH", "12")
    resumed(tiny_root, tmp_path, *warm)


def test_resuming_another_model_is_refused(tiny_root, copied):
    trainer = Trainer(tiny_config(tiny_root, copied, "MODEL.BACKBONE.DEPTH", "small"))
    with pytest.raises(UserError, match=r"--resume: .*MODEL\.BACKBONE\.DEPTH"):
        trainer.resume_or_load(resume=True)
    with pytest.raises(UserError, match="is of another model"):
        trainer.resume_or_load(resume=True, allow_changed=True)
