"""The curves of a run: which there are, and what they show."""

from dataclasses import replace

from fastreid_star.report.gather import gather
from fastreid_star.report.history import History
from fastreid_star.report.training import training_charts

from .test_plots import texts


def test_losses_evaluations_rate_and_accuracy(star):
    losses, evaluations, rate, accuracy = map(texts, training_charts(star.run, "STAR"))
    assert {"cls", "cls frame", "triplet", "defense", "skeleton", "total loss", "epoch"} <= set(
        losses
    )
    assert {"I2V mAP", "V2I Rank-1"} <= set(evaluations)
    assert "Learning rate" in rate
    assert "Accuracy on training clips" in accuracy


def test_one_evaluation_is_no_curve_and_no_history_no_chart(folders):
    run = gather(folders.sad)
    lines = ({"iteration": 0, "lr": 0.1}, {"iteration": 1, "lr": 0.1, "I2V/mAP": 3.0})
    assert len(training_charts(replace(run, history=History(lines)), "a")) == 1
    assert training_charts(replace(run, history=History(())), "a") == []
    assert training_charts(replace(run, history=None), "a") == []
