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
from fastreid_star.report.runs import (
    History,
    base_config,
    differences,
    find_weights,
    read_history,
    read_run,
)


def history(folder, lines):
    path = folder / "metrics.json"
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return read_history(path)


def log_of(folder, *commands):
    lines = [f"[x] name INFO: Command line: {command}\n" for command in commands]
    (folder / "log.txt").write_text("".join(lines))


@pytest.fixture
def copy(folders, tmp_path):
    return shutil.copytree(folders.star, tmp_path / "STAR")


def test_a_trained_run(folders):
    run = read_run(folders.star)
    assert (run.name, run.dataset, run.trained.SEED) == ("STAR", "SyntheticVCM", 0)
    assert run.weights.path.name == "model_best.pth"
    assert run.weights.sha256 == hashlib.sha256(run.weights.path.read_bytes()).hexdigest()
    assert run.weights.size == run.weights.path.stat().st_size
    assert run.weights.epochs in (1, 2)
    assert f"torch {torch.__version__}" in run.environments[0]
    assert run.history.unit == "epoch"
    assert len(run.evaluations("mean/mAP")[1]) == 2
    best = max(run.evaluations("mean/mAP")[1])
    assert run.recorded["mean/mAP"] == run.weights.metric == best


def test_an_evaluation_of_other_weights_is_not_used(folders):
    run = read_run(folders.star)
    other = replace(run.weights, metric=run.weights.metric + 1)
    assert replace(run, weights=other).recorded is None
    last = read_run(folders.star, ["MODEL.WEIGHTS", str(folders.star / "model_final.pth")])
    assert last.recorded["mean/mAP"] == run.evaluations("mean/mAP")[1][-1]
    elsewhere = read_run(folders.star, ["MODEL.WEIGHTS", str(folders.sad / "model_final.pth")])
    assert elsewhere.recorded is None


def test_options_change_the_evaluation_but_not_the_training_config(folders):
    run = read_run(folders.star, ["TEST.CAMERA_FILTER", "False"])
    assert (run.cfg.TEST.CAMERA_FILTER, run.trained.TEST.CAMERA_FILTER) == (False, True)


def test_each_of_several_test_sets_has_its_own_numbers(folders):
    run = read_run(folders.star)
    trained = run.trained.clone()
    trained.defrost()
    trained.DATASETS.TESTS = ("HITSZVCM", "SyntheticVCM")
    line = {"iteration": 7, "epoch": run.weights.epochs}
    line |= {"HITSZVCM/mean/mAP": 7.0, "HITSZVCM/metric": 7.0, "SyntheticVCM/mean/mAP": 9.0}
    weights = replace(run.weights, metric=7.0)
    several = replace(run, trained=trained, history=History((line,)), weights=weights)
    assert several.recorded == {"mean/mAP": 9.0}
    assert several.evaluations("mean/mAP") == ([run.weights.epochs], [9.0])
    assert replace(several, dataset="HITSZVCM").recorded["mean/mAP"] == 7


def test_weights_are_the_best_then_the_last(tmp_path):
    for name in ("model_last.pth", "model_final.pth", "model_best.pth"):
        (tmp_path / name).write_text("")
        assert find_weights(tmp_path).name == name
    assert find_weights(tmp_path, "other.pth").name == "other.pth"


def test_a_folder_without_config_needs_one(folders, tmp_path):
    shutil.copy(folders.star / "model_best.pth", tmp_path)
    with pytest.raises(UserError, match="--config-file"):
        read_run(tmp_path)
    run = read_run(tmp_path, config_file=str(folders.star / "config.yaml"))
    assert (run.history, run.recorded, run.environments, run.commands) == (None, None, (), ())
    assert run.evaluations("I2V/mAP") == ([], [])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["DATASETS.TESTS", "('SyntheticVCM','HITSZVCM')"], "one test set"),
        (["DATASETS.TESTS", "()"], "no dataset"),
        (["DATASETS.TESTS", "('Market1501',)"], "images"),
        (["MODEL.WEIGHTS", "none.pth"], r"none\.pth"),
        (["MODEL.WEIGHS", "none.pth"], "did you mean"),
    ],
)
def test_bad_options_are_one_line(folders, options, message):
    with pytest.raises(UserError, match=message) as caught:
        read_run(folders.star, options)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_missing_or_has_no_weights(folders, tmp_path):
    with pytest.raises(UserError, match="not a folder"):
        read_run(tmp_path / "none")
    shutil.copy(folders.star / "config.yaml", tmp_path)
    with pytest.raises(UserError, match=r"model_best\.pth"):
        read_run(tmp_path)


def test_a_log_that_runs_share_is_used_and_another_is_not(folders, tmp_path):
    shutil.copytree(folders.sad, tmp_path / "SAD", ignore=shutil.ignore_patterns("log.txt"))
    log = tmp_path / "log.txt"
    text = "x INFO: Python 3.9, torch 1.0; 1 process(es)\nSaving checkpoint to elsewhere/a.pth\n"
    log.write_text(text)
    assert read_run(tmp_path / "SAD").environments == ()
    log.write_text(text.replace("elsewhere", str(folders.sad)))
    assert read_run(tmp_path / "SAD").environments == ("Python 3.9, torch 1.0; 1 process(es)",)


def test_commands_are_quoted_for_a_shell(copy):
    words = ["train_net.py", "DATASETS.TESTS", "('A', 'B')", "it's", "$HOME"]
    log_of(copy, shlex.join(words), "train_net.py TESTS ('A',)", "train_net.py it's")
    quoted, old, unbalanced = map(shlex.split, read_run(copy).commands)
    assert quoted == words
    assert old == ["train_net.py", "TESTS", "('A',)"], "a log without quotes"
    assert unbalanced == ["train_net.py", "it's"]


def test_the_base_is_the_file_of_the_training_command(copy, tmp_path):
    base = tmp_path / "my base.yml"
    base.write_text("SOLVER: {MAX_EPOCH: 7}\n")
    train = shlex.join(["train_net.py", "--config-file", str(base), "--resume"])
    evaluate = f"train_net.py --config-file {copy}/config.yaml --eval-only"
    log_of(copy, "train_net.py --config-file gone.yml", train, evaluate)
    run = read_run(copy)
    path, cfg = base_config(run)
    assert (path, cfg.SOLVER.MAX_EPOCH) == (str(base), 7), "an evaluation changes nothing"
    equals = shlex.join(["train_net.py", f"--config-file={base}"])
    assert base_config(replace(run, commands=(equals,)))[0] == str(base)
    for command in ("train_net.py --config-file gone.yml", "demo.py --config-file", evaluate):
        assert base_config(replace(run, commands=(command,))) is None


def test_differences_are_sorted_and_take_tuples_for_lists():
    before, after = get_cfg(), get_cfg()
    after.SOLVER.BASE_LR = 0.5
    after.MODEL.HEADS.NAME = "ClipHead"
    after.DATASETS.NAMES = list(before.DATASETS.NAMES)
    found = [(key, new) for key, _, new in differences(before, after)]
    assert found == [("MODEL.HEADS.NAME", "ClipHead"), ("SOLVER.BASE_LR", 0.5)]
    assert differences(before, before) == []


# --- metrics.json ---


def test_series_are_over_epochs_if_all_lines_have_them(tmp_path):
    lines = [
        {"iteration": 4, "epoch": 0.5, "lr": 0.1, "loss_cls": 3.0},
        {"iteration": 19, "epoch": 2.0, "loss_cls": 2.0, "I2V/mAP": 30.0},
    ]
    found = history(tmp_path, lines)
    assert (found.unit, found.series("loss_cls")) == ("epoch", ([0.5, 2.0], [3.0, 2.0]))
    assert found.names("l") == ["lr", "loss_cls"]
    del lines[0]["epoch"]
    found = history(tmp_path, lines)
    assert (found.unit, found.series("loss_cls")) == ("iteration", ([5, 20], [3.0, 2.0]))


def test_lines_that_a_resumed_run_repeats_count_once(tmp_path):
    values = [(0, 1.0), (1, 2.0), (2, 3.0), (1, 4.0), (2, 5.0)]
    lines = [{"iteration": i, "loss": value} for i, value in values]
    assert history(tmp_path, lines).series("loss")[1] == [1.0, 4.0, 5.0]
    lines.append({"iteration": 0, "loss": 6.0})
    assert history(tmp_path, lines).series("loss")[1] == [6.0], "started again in the same folder"


@pytest.mark.parametrize("length", [5, 20])
def test_resuming_with_another_batch_size_keeps_the_epochs(tmp_path, length):
    """The first two epochs had 10 steps; then iterations are numbered as if all had `length`."""
    lines = [{"iteration": i, "epoch": (i + 1) / 10, "lr": 1.0} for i in range(20)]
    lines += [
        {"iteration": i, "epoch": (i + 1) / length, "lr": 2.0}
        for i in range(2 * length, 4 * length)
    ]
    epochs, rates = history(tmp_path, lines).series("lr")
    assert epochs == sorted(epochs)
    assert (rates.count(1.0), rates.count(2.0), epochs[-1]) == (20, 2 * length, 4.0)


def test_only_the_last_line_may_be_cut_off(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text('{"iteration": 0, "lr": 0.1}\n{"iteration": 1, "lr"')
    assert read_history(path).series("lr")[1] == [0.1]
    path.write_text('{"iteration": 0, "lr":\n{"iteration": 1, "lr": 0.2}\n')
    with pytest.raises(UserError, match="line 1"):
        read_history(path)
    assert read_history(tmp_path / "none.json") is None
