"""metrics.json: what was overtaken is left out, and evaluations tell how long an epoch is."""

import json

import pytest

from fastreid_star.errors import UserError
from fastreid_star.report.history import read_history


def write(path, lines):
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path


def read(path, eval_period=2, max_epoch=6):
    return read_history(path, eval_period=eval_period, max_epoch=max_epoch)


def test_series_over_epochs(tmp_path):
    path = write(
        tmp_path / "metrics.json",
        [
            {"iteration": 4, "lr": 0.1, "loss_cls": 3.0},
            {"iteration": 19, "lr": 0.1, "loss_cls": 2.0, "I2V/mAP": 30.0},
            {"iteration": 39, "lr": 0.01, "I2V/mAP": 40.0},
        ],
    )
    history = read(path)
    assert history.unit == "epoch"
    assert history.series("loss_cls") == ([0.5, 2.0], [3.0, 2.0])
    assert history.series("I2V/mAP") == ([2.0, 4.0], [30.0, 40.0])
    assert history.names("l") == ["lr", "loss_cls"]


def test_the_first_evaluation_of_a_short_run_is_at_its_end(tmp_path):
    path = write(tmp_path / "metrics.json", [{"iteration": 29, "I2V/mAP": 30.0}])
    assert read(path, eval_period=10, max_epoch=3).series("I2V/mAP")[0] == [3.0]


@pytest.mark.parametrize("evaluated", [[20, 50], [20, 80]])
def test_evaluations_that_contradict_the_period_tell_no_length(tmp_path, evaluated):
    """As of a run that was resumed with another TEST.EVAL_PERIOD: 2 epochs of 10, or 1 of 20, and neither fits."""
    lines = [{"iteration": iterations - 1, "I2V/mAP": 1.0} for iterations in evaluated]
    fits = read(write(tmp_path / "metrics.json", lines), eval_period=2, max_epoch=8)
    assert fits.series("I2V/mAP")[0] == [iterations / 10 for iterations in evaluated]
    assert read(tmp_path / "metrics.json", eval_period=1, max_epoch=3).unit == "iteration"


def test_lines_that_say_their_epoch_are_believed(tmp_path):
    """TEST.EVAL_PERIOD was 2 and is now 5: the evaluations alone would tell of epochs of 4 steps."""
    lines = [{"iteration": i - 1, "epoch": i / 10, "I2V/mAP": i} for i in (20, 40)]
    history = read(write(tmp_path / "metrics.json", lines), eval_period=5)
    assert history.series("I2V/mAP") == ([2.0, 4.0], [20.0, 40.0])


def test_an_epoch_whose_length_changed_on_the_way(tmp_path):
    lines = [{"iteration": 9, "epoch": 1.0, "lr": 0.1}, {"iteration": 29, "epoch": 2.0, "lr": 0.1}]
    history = read(write(tmp_path / "metrics.json", lines))
    assert history.unit == "epoch"
    assert history.series("lr")[0] == [1.0, 2.0]


def test_older_lines_are_placed_among_those_that_say_their_epoch(tmp_path):
    lines = [{"iteration": 4, "lr": 0.1}, {"iteration": 19, "epoch": 2.0, "lr": 0.1}]
    history = read(write(tmp_path / "metrics.json", lines))
    assert history.series("lr")[0] == [0.5, 2.0]


@pytest.mark.parametrize("period", [0, 2])
def test_without_evaluations_iterations_count(tmp_path, period):
    lines = [{"iteration": 4, "lr": 0.1}] + (
        [{"iteration": 9, "I2V/mAP": 1.0}] if period == 0 else []
    )
    history = read(write(tmp_path / "metrics.json", lines), eval_period=period)
    assert history.unit == "iteration"
    assert history.series("lr") == ([5], [0.1])


def test_what_a_resumed_run_repeats_counts_once_as_repeated(tmp_path):
    iterations = [(0, 1.0), (1, 2.0), (2, 3.0), (1, 4.0), (2, 5.0)]
    path = write(
        tmp_path / "metrics.json", [{"iteration": i, "loss": value} for i, value in iterations]
    )
    assert read(path).series("loss")[1] == [1.0, 4.0, 5.0]
    path = write(path, [{"iteration": i, "loss": value} for i, value in [*iterations, (0, 6.0)]])
    assert read(path).series("loss")[1] == [6.0], "a run started anew in the same folder"


def test_an_interrupted_last_line_is_left_out_and_any_other_is_refused(tmp_path):
    path = write(
        tmp_path / "metrics.json", [{"iteration": 0, "lr": 0.1}, {"iteration": 1, "lr": 0.2}]
    )
    path.write_text(path.read_text()[:-6])
    assert read(path).series("lr")[1] == [0.1]
    path.write_text('{"iteration": 0, "lr":\n{"iteration": 1, "lr": 0.2}\n')
    with pytest.raises(UserError, match="line 1 is damaged"):
        read(path)
    assert read(tmp_path / "none.json") is None
