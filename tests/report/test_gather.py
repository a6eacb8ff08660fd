"""A run's folder: what is found in it, and what is missing said in one line."""

import hashlib
import shutil
from dataclasses import replace

import pytest
import torch
from fastreid.config import get_cfg

from fastreid_star.errors import UserError
from fastreid_star.report.gather import base_of, differences, find_weights, gather
from fastreid_star.report.history import History


def test_a_trained_run(folders):
    run = gather(folders.star)
    assert (run.name, run.dataset, run.trained.SEED) == ("STAR", "SyntheticVCM", 0)
    assert run.weights.path.name == "model_best.pth"
    assert run.weights.sha256 == hashlib.sha256(run.weights.path.read_bytes()).hexdigest()
    assert run.weights.size == run.weights.path.stat().st_size
    assert run.weights.epochs in (1, 2)
    assert f"torch {torch.__version__}" in run.environments[0]
    assert run.history.unit == "epoch"
    assert len(run.evaluations("mean/mAP")[1]) == 2
    assert run.recorded["mean/mAP"] == max(run.evaluations("mean/mAP")[1]), (
        "the best weights are those of the best"
    )


def test_a_log_that_runs_share_is_found_and_anothers_is_not(folders, tmp_path):
    shutil.copytree(folders.sad, tmp_path / "SAD", ignore=shutil.ignore_patterns("log.txt"))
    log = tmp_path / "log.txt"
    log.write_text(
        "x INFO: Python 3.9, torch 1.0; 1 process(es) on cpu\nSaving checkpoint to elsewhere/model_best.pth\n"
    )
    assert gather(tmp_path / "SAD").environments == ()
    log.write_text(log.read_text().replace("elsewhere", str(folders.sad)))
    assert gather(tmp_path / "SAD").environments == ("Python 3.9, torch 1.0; 1 process(es) on cpu",)


def test_options_change_the_evaluation_and_not_what_was_trained(folders):
    run = gather(
        folders.star,
        ["TEST.CAMERA_FILTER", "False", "MODEL.WEIGHTS", str(folders.sad / "model_final.pth")],
    )
    assert (run.cfg.TEST.CAMERA_FILTER, run.trained.TEST.CAMERA_FILTER) == (False, True)
    assert run.weights.path == folders.sad / "model_final.pth"
    assert run.recorded is None, "this run has not evaluated those weights"


def test_an_evaluation_of_other_weights_is_not_theirs(folders):
    run = gather(folders.star)
    assert run.weights.metric == run.recorded["mean/mAP"]
    assert (
        replace(run, weights=replace(run.weights, metric=run.weights.metric + 1)).recorded is None
    )
    assert (
        gather(folders.star, ["MODEL.WEIGHTS", str(folders.star / "model_final.pth")]).recorded[
            "mean/mAP"
        ]
        == (run.evaluations("mean/mAP")[1][-1])
    )


def test_of_several_test_sets_each_has_its_own_numbers(folders):
    run = gather(folders.star)
    trained = run.trained.clone()
    trained.defrost()
    trained.DATASETS.TESTS = ("HITSZVCM", "SyntheticVCM")
    line = {
        "iteration": 7,
        "epoch": run.weights.epochs,
        "HITSZVCM/mean/mAP": 7.0,
        "HITSZVCM/metric": 7.0,
    }
    line |= {"SyntheticVCM/mean/mAP": 9.0, "SyntheticVCM/I2V/mAP": 8.0, "SyntheticVCM/metric": 9.0}
    several = replace(
        run, trained=trained, history=History((line,)), weights=replace(run.weights, metric=7.0)
    )
    assert several.recorded == {"mean/mAP": 9.0, "I2V/mAP": 8.0, "metric": 9.0}
    assert several.evaluations("I2V/mAP") == ([run.weights.epochs], [8.0])
    assert replace(several, dataset="HITSZVCM").recorded["mean/mAP"] == 7


def test_weights_are_the_best_then_the_last(tmp_path):
    for name in ("model_last.pth", "model_final.pth", "model_best.pth"):
        (tmp_path / name).write_text("")
        assert find_weights(tmp_path).name == name
    assert find_weights(tmp_path, "other.pth").name == "other.pth"


def test_a_folder_that_was_only_evaluated_needs_its_config(folders, tmp_path):
    shutil.copy(folders.star / "model_best.pth", tmp_path)
    with pytest.raises(UserError, match=r"has no config\.yaml: .*--config-file"):
        gather(tmp_path)
    run = gather(tmp_path, config_file=str(folders.star / "config.yaml"))
    assert (run.history, run.recorded, run.environments, run.commands) == (None, None, (), ())
    assert run.evaluations("I2V/mAP") == ([], [])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["DATASETS.TESTS", "('SyntheticVCM','HITSZVCM')"],
            r"one test set, add --set DATASETS\.TESTS",
        ),
        (["DATASETS.TESTS", "()"], "tested on nothing"),
        (["DATASETS.TESTS", "('Market1501',)"], "dataset of images"),
        (["MODEL.WEIGHTS", "none.pth"], r"none\.pth does not exist"),
        (["MODEL.WEIGHS", "none.pth"], "did you mean"),
    ],
)
def test_bad_options_are_one_clear_line(folders, options, message):
    with pytest.raises(UserError, match=message):
        gather(folders.star, options)


def test_a_folder_without_weights_or_none_at_all(folders, tmp_path):
    with pytest.raises(UserError, match="is no folder"):
        gather(tmp_path / "none")
    shutil.copy(folders.star / "config.yaml", tmp_path)
    with pytest.raises(
        UserError,
        match=r"holds none of model_best\.pth, .*train first, or add --set MODEL\.WEIGHTS",
    ):
        gather(tmp_path)


def test_differences_name_keys_in_order_and_take_tuples_for_lists():
    before, after = get_cfg(), get_cfg()
    after.SOLVER.BASE_LR = 0.5
    after.MODEL.HEADS.NAME = "ClipHead"
    after.DATASETS.NAMES = list(before.DATASETS.NAMES)
    assert [(key, new) for key, _, new in differences(before, after)] == [
        ("MODEL.HEADS.NAME", "ClipHead"),
        ("SOLVER.BASE_LR", 0.5),
    ]
    assert differences(before, before) == []


def test_the_base_is_the_file_on_the_command_line(folders, tmp_path):
    run = gather(folders.star)
    base = tmp_path / "my base.yml"
    base.write_text("SOLVER: {MAX_EPOCH: 7}\n")
    commands = (
        "train_net.py --config-file gone.yml",
        f"train_net.py --config-file '{base}' --resume",
    )
    path, cfg = base_of(replace(run, commands=commands))
    assert (path, cfg.SOLVER.MAX_EPOCH) == (str(base), 7)
    assert base_of(replace(run, commands=commands[:1])) is None
    assert base_of(replace(run, commands=("demo.py --config-file", "demo.py 'open"))) is None
