"""Checkpoints are whole or not there, and loading one runs no code."""

import contextlib
import errno
import itertools
import multiprocessing
import os
import pickle
import signal

import pytest
import torch
from fastreid.config import get_cfg
from fastreid.solver.lr_scheduler import MultiStepLR, WarmupLR

from fastreid_star.engine.checkpoint import (
    Checkpointer,
    ScalerState,
    checkpoint_config,
    read_checkpoint,
    set_earlier_run_aside,
    versions,
)
from fastreid_star.errors import UserError
from fastreid_star.files import remove_abandoned


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
    Checkpointer(model, str(tmp_path), optimizer=optimizer, scaler=scaler, **schedulers).save(
        "model_last", epoch=4
    )

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
            super().load_state_dict(
                {key: value for key, value in state.items() if key != "dynamic"}
            )

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


# --- damage ---------------------------------------------------------------------------------------


def saved(folder, name="model_last", **values):
    Checkpointer(torch.nn.Linear(3, 2), str(folder), keep=2).save(name, **values)
    return folder / f"{name}.pth"


def test_every_flipped_byte_and_every_cut_is_noticed(tmp_path):
    """Or it is in the padding, and changes nothing. torch itself loads most of them silently."""
    path = saved(tmp_path, epoch=3)
    content = path.read_bytes()
    whole = read_checkpoint(str(path))
    for place in range(0, len(content), 7):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with contextlib.suppress(UserError):
            data = read_checkpoint(str(path))
            assert data["epoch"] == 3
            assert all(torch.equal(data["model"][n], v) for n, v in whole["model"].items())
    for size in [*range(0, len(content), 13), *range(len(content) - 100, len(content))]:
        path.write_bytes(content[:size])
        with pytest.raises(UserError, match="damaged"):
            read_checkpoint(str(path))


def test_weights_of_a_flipped_byte_are_refused(tmp_path):
    path = saved(tmp_path)
    content = bytearray(path.read_bytes())
    place = content.index(read_checkpoint(str(path))["model"]["weight"].numpy().tobytes())
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="checksum"):
        read_checkpoint(str(path))


def test_a_config_of_another_version_is_read_as_far_as_it_is_known(tmp_path, caplog):
    cfg = get_cfg()
    cfg.SOLVER.BASE_LR, cfg.SOLVER.STEPS = 0.25, (3, 4)
    notes = {"config": cfg.dump() + "GONE:\n  KEY: 1\n", "versions": versions()}
    Checkpointer(torch.nn.Linear(1, 1), str(tmp_path), notes=notes).save("model_last", epoch=1)
    found = checkpoint_config(str(tmp_path / "model_last.pth"))
    assert (found.SOLVER.BASE_LR, list(found.SOLVER.STEPS)) == (0.25, [3, 4])
    assert "GONE.KEY" in caplog.text
    assert checkpoint_config(str(saved(tmp_path))) is None


# --- what is kept, and what a run goes on from ----------------------------------------------------


def epochs(folder):
    return {path.name: read_checkpoint(str(path))["epoch"] for path in folder.glob("*.pth")}


@pytest.mark.parametrize(
    ("keep", "expected"),
    [
        (1, {"model_last.pth": 4}),
        (2, {"model_last.pth": 4, "model_last-1.pth": 3}),
        (3, {"model_last.pth": 4, "model_last-1.pth": 3, "model_last-2.pth": 2}),
    ],
)
def test_so_many_of_the_last_are_kept(tmp_path, keep, expected):
    checkpointer = Checkpointer(torch.nn.Linear(1, 1), str(tmp_path), keep=keep)
    for epoch in range(5):
        checkpointer.save("model_last", epoch=epoch)
        checkpointer.save("model_best", epoch=epoch, tag=False)
    assert epochs(tmp_path) == {**expected, "model_best.pth": 4}


def test_a_file_of_ones_own_stays(tmp_path):
    own = tmp_path / "model_last-60.pth"
    own.write_bytes(b"mine")
    checkpointer = Checkpointer(torch.nn.Linear(1, 1), str(tmp_path), keep=2)
    for epoch in range(4):
        checkpointer.save("model_last", epoch=epoch)
    assert own.read_bytes() == b"mine"


def three(folder):
    """model_last.pth after epoch 3, model_last-1.pth after 2, model_best.pth after 1."""
    checkpointer = Checkpointer(torch.nn.Linear(3, 2), str(folder), keep=2)
    checkpointer.save("model_best", tag=False, epoch=1, iteration=20)
    checkpointer.save("model_last", epoch=2, iteration=30)
    checkpointer.save("model_last", epoch=3, iteration=40)
    return checkpointer


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def empty(path):
    path.write_bytes(b"")


def lose(path):
    path.unlink()


@pytest.mark.parametrize("damage", [flip, cut, empty, lose])
def test_where_the_newest_is_damaged_the_last_good_one_is_found(tmp_path, caplog, damage):
    checkpointer = three(tmp_path)
    assert checkpointer.newest() == "model_last.pth"
    assert caplog.records == []
    damage(tmp_path / "model_last.pth")
    assert checkpointer.newest() == "model_last-1.pth"
    (line,) = (record.getMessage() for record in caplog.records)
    assert "model_last.pth" in line
    assert f"Resuming from {tmp_path}/model_last-1.pth" in line
    assert "\n" not in line
    # the damaged file is out of the way: the next one does not replace the good one
    checkpointer.save("model_last", epoch=3)
    left = {"model_last.pth": 3, "model_best.pth": 1, "model_last-1.pth": 2}
    assert epochs(tmp_path) == left
    assert (tmp_path / "model_last.pth.damaged").exists() == (damage is not lose)


def test_where_two_are_damaged_the_best_is_still_good(tmp_path):
    checkpointer = three(tmp_path)
    flip(tmp_path / "model_last.pth")
    cut(tmp_path / "model_last-1.pth")
    assert checkpointer.newest() == "model_best.pth"


@pytest.mark.parametrize(
    "said", [b"", b"\x00\xff\n\x07", b"model_0007.pth", b"../" * 2000, b"model_last.pth\n"]
)
def test_whatever_last_checkpoint_says(tmp_path, caplog, said):
    checkpointer = three(tmp_path)
    (tmp_path / "last_checkpoint").write_bytes(said)
    assert checkpointer.newest() == "model_last.pth"
    told = [record.getMessage() for record in caplog.records]
    if said.strip() == b"model_last.pth":
        assert told == []
    else:
        assert "last_checkpoint names" in told[0]
        assert told[0].isprintable()


def test_a_checkpoint_that_is_named_is_taken_before_one_of_more_steps(tmp_path):
    checkpointer = three(tmp_path)
    (tmp_path / "last_checkpoint").write_text("model_best.pth")
    assert checkpointer.newest() == "model_best.pth"
    (tmp_path / "last_checkpoint").unlink()
    assert checkpointer.newest() == "model_last.pth"


def test_where_none_is_good_there_is_one_line(tmp_path):
    assert Checkpointer(torch.nn.Linear(1, 1), str(tmp_path)).newest() is None
    assert Checkpointer(torch.nn.Linear(1, 1), str(tmp_path / "none")).newest() is None
    path = saved(tmp_path, epoch=1)
    flip(path)
    torch.save(
        {"model": {}}, tmp_path / "model_weights.pth"
    )  # weights alone are nothing to resume from
    for _ in range(2):
        with pytest.raises(
            UserError, match=r"^--resume: .*model_last\.pth .*damaged.*without --res"
        ) as e:
            Checkpointer(torch.nn.Linear(3, 2), str(tmp_path)).newest()
        assert "\n" not in str(e.value)


def test_weights_without_the_optimizer_are_not_gone_on_from(tmp_path):
    model = torch.nn.Linear(3, 2)
    saved(tmp_path, "model_best", epoch=9, iteration=90)
    checkpointer = Checkpointer(
        model, str(tmp_path), optimizer=torch.optim.SGD(model.parameters(), lr=0.1)
    )
    checkpointer.save("model_final", epoch=1, iteration=10)
    lose(tmp_path / "last_checkpoint")
    assert checkpointer.newest() == "model_final.pth"


def test_a_disk_that_takes_no_more_is_one_line_and_the_last_one_stays(tmp_path, monkeypatch):
    path = saved(tmp_path, epoch=1)
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(
            UserError, match=r"model_last\.pth cannot be written \(No space left on dev"
        ):
            saved(tmp_path, epoch=2)
    assert path.read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["last_checkpoint", "model_last.pth"]


def test_an_earlier_run_is_put_aside_whole(tmp_path):
    three(tmp_path)
    (tmp_path / "log.txt").write_text("log")
    names = {"last_checkpoint", "model_last.pth", "model_last-1.pth", "model_best.pth"}
    assert set_earlier_run_aside(str(tmp_path)) == str(tmp_path / "earlier-1")
    assert {*os.listdir(tmp_path / "earlier-1")} == names
    assert {*os.listdir(tmp_path)} == {"log.txt", "earlier-1"}
    assert set_earlier_run_aside(str(tmp_path)) is None
    three(tmp_path)
    assert set_earlier_run_aside(str(tmp_path)) == str(tmp_path / "earlier-2")
    assert {*os.listdir(tmp_path / "earlier-1")} == {*os.listdir(tmp_path / "earlier-2")} == names


# --- killed while writing -------------------------------------------------------------------------


def save_until_killed(folder, call):
    """Save three times, and be killed just before the `call`-th request to the disk."""
    calls = itertools.count()

    def counted(function):
        def before(*args, **kwargs):
            if next(calls) == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return before

    for name in ("fsync", "replace"):
        setattr(os, name, counted(getattr(os, name)))
    torch.save = counted(torch.save)
    checkpointer = Checkpointer(torch.nn.Linear(3, 2), str(folder), keep=2)
    for epoch in range(3):
        checkpointer.save("model_last", epoch=epoch, iteration=epoch)


def test_a_kill_at_any_moment_of_writing_leaves_a_whole_checkpoint(tmp_path):
    context = multiprocessing.get_context("fork")
    found = []
    for call in itertools.count():
        folder = tmp_path / str(call)
        folder.mkdir()
        process = context.Process(target=save_until_killed, args=(folder, call))
        process.start()
        process.join()
        checkpointer = Checkpointer(torch.nn.Linear(3, 2), str(folder), keep=2)
        name = checkpointer.newest()
        found.append(None if name is None else read_checkpoint(str(folder / name))["epoch"])
        remove_abandoned(folder)
        assert not list(folder.glob("*.tmp"))
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        checkpointer.save("model_last", epoch=7, iteration=7)
        assert checkpointer.newest() == "model_last.pth"
    assert found[0] is None
    assert found == sorted(found, key=lambda epoch: -1 if epoch is None else epoch), (
        "no kill takes back what was there"
    )
    assert {0, 1, 2} < {*found}
    assert len(found) > 15
