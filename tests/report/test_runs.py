"""A run's folder: what is read from it, and one clear line for what is missing."""

import hashlib
import json
import shlex
import shutil
from dataclasses import replace

import pytest
import torch
from fastreid.config import get_cfg

from fastreid_star.errors import UserError
from fastreid_star.report.runs import differences, read_history, read_run


@pytest.fixture(scope="module")
def run(folders):
    return read_run(folders.star)


def history(folder, lines):
    path = folder / "metrics.json"
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return read_history(path)


def test_a_trained_run(run):
    assert (run.name, run.dataset, run.trained.SEED) == ("STAR", "SyntheticVCM", 0)
    assert run.weights.path.name == "model_best.pth"
    assert run.weights.sha256 == hashlib.sha256(run.weights.path.read_bytes()).hexdigest()
    assert run.weights.size == run.weights.path.stat().st_size
    assert f"torch {torch.__version__}" in run.environments[0]
    epochs, values = run.evaluations("mean/mAP")
    assert epochs == [1, 2]
    assert run.recorded["mean/mAP"] == max(values)


def test_the_recorded_evaluation_is_that_of_the_weights(run, folders):
    last = read_run(folders.star, ["MODEL.WEIGHTS", str(folders.star / "model_final.pth")])
    assert last.recorded["mean/mAP"] == run.evaluations("mean/mAP")[1][-1]
    elsewhere = replace(run.weights, path=folders.sad / "model_final.pth")
    assert replace(run, weights=elsewhere).recorded is None


def test_options_change_the_evaluation_but_not_the_training_config(folders):
    run = read_run(folders.star, ["TEST.CAMERA_FILTER", "False"])
    assert (run.cfg.TEST.CAMERA_FILTER, run.trained.TEST.CAMERA_FILTER) == (False, True)


def test_each_of_several_test_sets_has_its_own_numbers(run):
    trained = run.trained.clone()
    trained.defrost()
    trained.DATASETS.TESTS = ("HITSZVCM", "SyntheticVCM")
    line = {"epoch": run.weights.epochs, "HITSZVCM/mean/mAP": 7.0, "SyntheticVCM/mean/mAP": 9.0}
    several = replace(run, trained=trained, history=(line,))
    assert several.recorded == {"mean/mAP": 9.0}
    assert several.evaluations("mean/mAP") == ([run.weights.epochs], [9.0])
    assert replace(several, dataset="HITSZVCM").recorded["mean/mAP"] == 7


def test_what_is_missing_is_one_line(folders, tmp_path):
    with pytest.raises(UserError, match="not a folder"):
        read_run(tmp_path / "none")
    shutil.copy(folders.star / "config.yaml", tmp_path)
    with pytest.raises(UserError, match=r"model_best\.pth"):
        read_run(tmp_path)
    (tmp_path / "config.yaml").unlink()
    shutil.copy(folders.star / "model_best.pth", tmp_path)
    with pytest.raises(UserError, match="--config-file"):
        read_run(tmp_path)
    run = read_run(tmp_path, config_file=str(folders.star / "config.yaml"))
    assert (run.history, run.recorded, run.environments, run.commands) == ((), None, (), ())
    for options, message in (
        (["DATASETS.TESTS", "('SyntheticVCM','HITSZVCM')"], "one test set"),
        (["DATASETS.TESTS", "('Market1501',)"], "of tracklets"),
        (["MODEL.WEIGHTS", "none.pth"], r"none\.pth"),
        (["MODEL.WEIGHS", "none.pth"], "did you mean"),
    ):
        with pytest.raises(UserError, match=message):
            read_run(folders.star, options)


def test_a_log_that_runs_share_is_used_and_another_is_not(folders, tmp_path):
    shutil.copytree(folders.sad, tmp_path / "SAD")
    log = tmp_path / "log.txt"
    words = ["train_net.py", "DATASETS.TESTS", "('A', 'B')", "it's", "$HOME"]
    text = (
        f"x INFO: Command line: {shlex.join(words)}\nx INFO: Command line: tool --eval-only\n"
        "x INFO: Python 3.9, torch 1.0; 1 process(es)\nSaving checkpoint to elsewhere/a.pth\n"
    )
    log.write_text(text)
    assert read_run(tmp_path / "SAD").environments == ()
    log.write_text(text.replace("elsewhere", str(folders.root.parent / "SAD")))
    run = read_run(tmp_path / "SAD")
    assert run.environments == ("Python 3.9, torch 1.0; 1 process(es)",)
    assert shlex.split(run.training_command) == words, "an evaluation trains nothing"


def test_differences_are_sorted_and_take_tuples_for_lists():
    before, after = get_cfg(), get_cfg()
    after.SOLVER.BASE_LR = 0.5
    after.MODEL.HEADS.NAME = "ClipHead"
    after.DATASETS.NAMES = list(before.DATASETS.NAMES)
    found = [(key, new) for key, _, new in differences(before, after)]
    assert found == [("MODEL.HEADS.NAME", "ClipHead"), ("SOLVER.BASE_LR", 0.5)]


def test_lines_that_a_resumed_run_repeats_count_once(tmp_path, run):
    def values(*epochs):
        lines = [{"epoch": epoch, "loss": number} for number, epoch in enumerate(epochs)]
        return replace(run, history=history(tmp_path, lines)).series("loss")

    assert values(0.5, 1.0, 1.5, 1.0, 1.5) == ([0.5, 1.0, 1.5], [0, 3, 4])
    assert values(0.5, 1.0, 0.5) == ([0.5], [2]), "started again in the same folder"


def test_lines_without_an_epoch_and_a_line_that_is_cut_off_are_skipped(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text('{"iteration": 7}\n{"epoch": 1, "lr": 0.1}\n{"epoch": 2, "lr"')
    assert read_history(path) == ({"epoch": 1, "lr": 0.1},)
    assert read_history(tmp_path / "none.json") == ()
