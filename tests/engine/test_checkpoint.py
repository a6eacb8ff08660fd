"""Checkpoints are whole or not there, and loading one runs no code."""

import os
import pickle

import pytest
import torch
from fastreid.solver.lr_scheduler import MultiStepLR, WarmupLR

from fastreid_star.engine.checkpoint import Checkpointer, ScalerState, read_checkpoint
from fastreid_star.errors import UserError


def test_everything_comes_back(tmp_path):
    def parts(scale=65536.0):
        model = torch.nn.Linear(2, 2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        schedulers = {
            "lr_sched": MultiStepLR(optimizer, milestones=[2, 2, 5]),
            "warmup_sched": WarmupLR(optimizer, warmup_iters=3),
        }
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        return model, optimizer, schedulers, scaler

    model, optimizer, schedulers, scaler = parts(scale=512.0)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    schedulers["warmup_sched"].step()
    Checkpointer(model, str(tmp_path), optimizer=optimizer, scaler=scaler, **schedulers).save("model_last", epoch=4)

    other, other_optimizer, other_schedulers, other_scaler = parts()
    checkpointer = Checkpointer(
        other, str(tmp_path), optimizer=other_optimizer, scaler=other_scaler, **other_schedulers
    )
    assert checkpointer.has_checkpoint()
    assert checkpointer.resume_or_load("", resume=True) == {"epoch": 4}
    assert torch.equal(other.weight, model.weight)
    assert str(other_optimizer.state_dict()) == str(optimizer.state_dict())
    assert other_scaler.state_dict() == scaler.state_dict()
    assert other_scaler.get_scale() == 512.0
    for name, scheduler in schedulers.items():
        assert other_schedulers[name].state_dict() == scheduler.state_dict()
    assert type(other_schedulers["lr_sched"].milestones) is type(schedulers["lr_sched"].milestones)


def test_only_a_tagged_file_is_resumed_from(tmp_path):
    checkpointer = Checkpointer(torch.nn.Linear(1, 1), str(tmp_path))
    checkpointer.save("model_last")
    checkpointer.save("model_best", tag=False)
    assert checkpointer.get_checkpoint_file() == str(tmp_path / "model_last.pth")


class Payload:
    def __reduce__(self):
        return (os.mkdir, ("executed",))


def test_a_file_that_carries_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": {}, "extra": Payload()}, "evil.pth", pickle_module=pickle)
    with pytest.raises(UserError, match=r"evil\.pth cannot be read"):
        read_checkpoint("evil.pth")
    assert os.listdir(tmp_path) == ["evil.pth"]


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK"])
def test_a_damaged_file_is_one_clear_line(tmp_path, content):
    path = tmp_path / "x.pth"
    path.write_bytes(content)
    with pytest.raises(UserError, match="damaged or not a checkpoint") as caught:
        read_checkpoint(str(path))
    assert "\n" not in str(caught.value)


def test_a_truncated_checkpoint_is_one_clear_line(tmp_path):
    Checkpointer(torch.nn.Linear(30, 30), str(tmp_path)).save("model_last")
    path = tmp_path / "model_last.pth"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UserError, match="damaged or not a checkpoint"):
        read_checkpoint(str(path))


def test_missing_and_foreign_files(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        Checkpointer(torch.nn.Linear(1, 1), str(tmp_path)).load(str(tmp_path / "none.pth"))
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(UserError, match="holds no 'model'"):
        read_checkpoint(str(tmp_path / "list.pth"))


def test_a_scalers_state_travels_between_kinds_of_devices():
    """torch_npu's scaler keeps a key that torch's has not, and refuses a state without it."""

    class NpuScaler(torch.amp.GradScaler):
        dynamic = True

        def state_dict(self):
            return {**super().state_dict(), "dynamic": self.dynamic}

        def load_state_dict(self, state):
            self.dynamic = state["dynamic"]
            super().load_state_dict({key: value for key, value in state.items() if key != "dynamic"})

    plain, npu = torch.amp.GradScaler("cpu", init_scale=512.0), NpuScaler("cpu")
    ScalerState(npu).load_state_dict(ScalerState(plain).state_dict())
    assert npu.get_scale() == 512.0
    assert npu.dynamic is True
    npu.dynamic = False
    ScalerState(npu).load_state_dict({**npu.state_dict(), "scale": 8.0})
    assert npu.dynamic is False
    other = torch.amp.GradScaler("cpu")
    ScalerState(other).load_state_dict(npu.state_dict())
    assert other.get_scale() == 8.0
