"""When the evaluation runs, and which checkpoints stay."""

import pytest
import torch
from fastreid.engine.train_loop import TrainerBase
from fastreid.utils.events import EventStorage

from fastreid_star.engine.checkpoint import Checkpointer
from fastreid_star.engine.hooks import CheckpointHook, EvalHook, Freeze, SaveBeforeEvaluation
from fastreid_star.engine.resume import Progress
from fastreid_star.errors import UserError
from fastreid_star.weights import read_checkpoint


class Loop(TrainerBase):
    """fast-reid's loop; each epoch's evaluation gives the next of `metrics`."""

    def __init__(self, folder, metrics, epochs, *, eval_period, checkpoint_period=1, best=-1.0):
        super().__init__()
        self.model = torch.nn.Linear(1, 1, bias=False)
        self.max_epoch, self.iters_per_epoch = epochs, 1
        self.progress = Progress(seed=0, best_metric=best)
        self.evaluated = []
        values = iter(metrics)

        def evaluate():
            self.evaluated.append(self.epoch)
            return {"metric": next(values), "I2V": {"mAP": 1.0}}

        evaluation = EvalHook(eval_period, evaluate)
        checkpointer = Checkpointer(self.model, str(folder), progress=self.progress)
        self.register_hooks(
            [evaluation, CheckpointHook(checkpointer, checkpoint_period, evaluation, "metric")]
        )
        self.train(0, epochs, 1)

    def run_step(self):
        torch.nn.init.constant_(self.model.weight, self.epoch)


def epoch_of(path):
    data = read_checkpoint(str(path))
    assert data["model"]["weight"].item() == data["epoch"]
    return data["epoch"]


@pytest.mark.parametrize(
    ("period", "epochs", "expected"),
    [(2, 5, [1, 3, 4]), (1, 3, [0, 1, 2]), (0, 3, []), (9, 3, [2])],
)
def test_evaluation_every_period_and_after_the_last(tmp_path, period, epochs, expected):
    assert Loop(tmp_path, range(9), epochs, eval_period=period).evaluated == expected


def test_best_last_and_final(tmp_path):
    Loop(tmp_path, [10.0, 30.0, 20.0, 25.0], 4, eval_period=1, checkpoint_period=2)
    assert epoch_of(tmp_path / "model_best.pth") == 1
    assert epoch_of(tmp_path / "model_last.pth") == 1
    assert epoch_of(tmp_path / "model_final.pth") == 3
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
    assert read_checkpoint(str(tmp_path / "model_final.pth"))["progress"]["best_metric"] == 30.0


def test_an_evaluation_finds_the_steps_before_it_saved(tmp_path):
    class Dying(Loop):
        def __init__(self, folder):
            super().__init__(folder, [10.0], 3, eval_period=2)

        def register_hooks(self, hooks):
            evaluation, saving = hooks
            super().register_hooks([SaveBeforeEvaluation(saving._checkpointer, evaluation), *hooks])

    with pytest.raises(StopIteration):  # of the metrics, in the second evaluation
        Dying(tmp_path)
    last = read_checkpoint(str(tmp_path / "model_last.pth"))
    assert (last["epoch"], last["iteration"], last["model"]["weight"].item()) == (1, 3, 2)


def test_a_resumed_run_keeps_the_best_it_had(tmp_path):
    Loop(tmp_path, [10.0], 1, eval_period=1, best=40.0)
    assert not (tmp_path / "model_best.pth").exists()


def test_an_old_metric_does_not_count_again(tmp_path):
    Loop(tmp_path, [10.0, 20.0], 4, eval_period=2)
    assert epoch_of(tmp_path / "model_best.pth") == 3


def test_a_failed_training_is_not_evaluated(tmp_path):
    class Failing(Loop):
        def run_step(self):
            raise FloatingPointError("loss is NaN")

    with pytest.raises(FloatingPointError, match="loss is NaN"):
        Failing(tmp_path, [1.0], 2, eval_period=1)
    assert list(tmp_path.iterdir()) == []


# --- freezing -------------------------------------------------------------------------------------


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4))
        self.heads = torch.nn.Linear(4, 2)

    def forward(self, x):
        return self.heads(self.backbone(x))


class Freezing(TrainerBase):
    """Which entries of the state change in each step; an evaluation follows every step."""

    def __init__(self, layers, iterations, first=0, steps=4):
        super().__init__()
        self.model = Net()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        self.register_hooks([Freeze(self.model, self.optimizer, layers, iterations)])
        self.changed, self.storage = [], EventStorage()
        for self.iter in range(first, first + steps):
            self.before_step()
            self.run_step()

    def run_step(self):
        before = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.optimizer.zero_grad()
        self.model(torch.randn(8, 4)).square().sum().backward()
        self.optimizer.step()
        after = self.model.state_dict()
        self.changed.append({name for name in after if not torch.equal(after[name], before[name])})
        self.model.eval()
        self.model.train()


HEADS = {"heads.weight", "heads.bias"}
NORM = {f"backbone.1.{n}" for n in ("running_mean", "running_var", "num_batches_tracked")}


def test_frozen_layers_and_their_statistics_thaw_after_so_many_steps_of_the_run():
    whole = set(Net().state_dict())
    assert Freezing(["backbone"], 2).changed == [HEADS, HEADS, whole, whole]
    assert Freezing(["backbone"], 2, first=1).changed == [HEADS, whole, whole, whole], "resumed"


def test_a_part_of_the_backbone_is_frozen():
    (changed,) = Freezing(["backbone.1", "heads.bias"], 99, steps=1).changed
    assert changed == {"backbone.0.weight", "backbone.0.bias", "heads.weight"}


@pytest.mark.parametrize(
    ("layers", "iterations", "words"),
    [
        (["bckbone"], 9, "mean backbone"),
        (["backbone.9"], 9, "did you mean"),
        (["heads"], 0, "FREEZE_ITERS"),
    ],
)
def test_freezing_nothing_is_refused(layers, iterations, words):
    with pytest.raises(UserError, match=words):
        Freezing(layers, iterations)
