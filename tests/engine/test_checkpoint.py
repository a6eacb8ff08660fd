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
    set_earlier_run_aside,
    versions,
)
from fastreid_star.errors import UserError
from fastreid_star.weights import read_checkpoint


def test_everything_comes_back(tmp_path):
    def parts(scale=65536.0):
        model = torch.nn.Linear(2, 2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        schedulers = {
            "lr_sched": MultiStepLR(optimizer, milestones=[2, 2, 5]),
            "warmup_sched": WarmupLR(optimizer, warmup_iters=3),
        }
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        return model, {"optimizer": optimizer, "scaler": scaler, **schedulers}

    model, items = parts(scale=512.0)
    model(torch.ones(1, 2)).sum().backward()
    items["optimizer"].step()
    items["warmup_sched"].step()
    Checkpointer(model, str(tmp_path), **items).save("model_last", epoch=4)

    other, others = parts()
    checkpointer = Checkpointer(other, str(tmp_path), **others)
    assert checkpointer.has_checkpoint()
    assert checkpointer.resume_or_load("", resume=True) == {"epoch": 4}
    assert torch.equal(other.weight, model.weight)
    for name, item in items.items():
        assert str(others[name].state_dict()) == str(item.state_dict()), name
    assert type(others["lr_sched"].milestones) is type(items["lr_sched"].milestones)


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
    assert (npu.get_scale(), npu.dynamic) == (512.0, True)
    other = torch.amp.GradScaler("cpu")
    ScalerState(other).load_state_dict({**npu.state_dict(), "scale": 8.0})
    assert other.get_scale() == 8.0


def test_a_config_of_another_version_is_read_as_far_as_it_is_known(tmp_path, caplog):
    cfg = get_cfg()
    cfg.SOLVER.BASE_LR, cfg.SOLVER.STEPS = 0.25, (3, 4)
    notes = {"config": cfg.dump() + "GONE:\n  KEY: 1\n", "versions": versions()}
    Checkpointer(torch.nn.Linear(1, 1), str(tmp_path), notes=notes).save("model_last", epoch=1)
    found = checkpoint_config(str(tmp_path / "model_last.pth"))
    assert (found.SOLVER.BASE_LR, list(found.SOLVER.STEPS)) == (0.25, [3, 4])
    assert "GONE.KEY" in caplog.text
    assert checkpoint_config(str(saved(tmp_path))) is None


# --- damage ---------------------------------------------------------------------------------------


class Payload:
    def __reduce__(self):
        return (os.mkdir, ("executed",))


def test_a_file_that_carries_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": {}, "extra": Payload()}, "evil.pth", pickle_module=pickle)
    with pytest.raises(UserError, match=r"evil\.pth cannot be read"):
        read_checkpoint("evil.pth")
    assert os.listdir(tmp_path) == ["evil.pth"]


def test_missing_and_foreign_files_are_one_clear_line(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        Checkpointer(torch.nn.Linear(1, 1), str(tmp_path)).load(str(tmp_path / "none.pth"))
    torch.save([1, 2], tmp_path / "list.pth")
    for name, content in (("empty", b""), ("text", b"not a checkpoint"), ("zip", b"PK")):
        (tmp_path / f"{name}.pth").write_bytes(content)
    for name in ("list", "empty", "text", "zip"):
        with pytest.raises(UserError, match="not a checkpoint") as caught:
            read_checkpoint(str(tmp_path / f"{name}.pth"))
        assert "\n" not in str(caught.value)


def saved(folder, name="model_last", **values):
    Checkpointer(torch.nn.Linear(3, 2), str(folder), keep=2).save(name, **values)
    return folder / f"{name}.pth"


def test_every_flipped_byte_and_every_cut_is_noticed(tmp_path):
    """Or it is in the padding, and changes nothing. torch itself loads most of them silently."""
    path = saved(tmp_path, epoch=3)
    content = path.read_bytes()
    whole = read_checkpoint(str(path))
    weight = content.index(whole["model"]["weight"].numpy().tobytes())
    for place in [weight, *range(0, len(content), 7)]:
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with contextlib.suppress(UserError):
            data = read_checkpoint(str(path))
            assert data["epoch"] == 3
            assert all(torch.equal(data["model"][n], v) for n, v in whole["model"].items())
    for size in [*range(0, len(content), 13), *range(len(content) - 100, len(content))]:
        path.write_bytes(content[:size])
        with pytest.raises(UserError, match="damaged"):
            read_checkpoint(str(path))


# --- what is kept, and what a run goes on from ----------------------------------------------------


def epochs(folder):
    return {path.name: read_checkpoint(str(path))["epoch"] for path in folder.glob("*.pth")}


@pytest.mark.parametrize(
    ("keep", "expected"),
    [
        (1, {"model_last.pth": 4}),
        (3, {"model_last.pth": 4, "model_last-1.pth": 3, "model_last-2.pth": 2}),
    ],
)
def test_so_many_of_the_last_are_kept(tmp_path, keep, expected):
    checkpointer = Checkpointer(torch.nn.Linear(1, 1), str(tmp_path), keep=keep)
    for epoch in range(5):
        checkpointer.save("model_last", epoch=epoch)
        checkpointer.save("model_best", epoch=epoch, tag=False)
    assert epochs(tmp_path) == {**expected, "model_best.pth": 4}


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


def lose(path):
    path.unlink()


@pytest.mark.parametrize("damage", [flip, cut, lose])
def test_where_the_newest_is_damaged_the_last_good_one_is_found(tmp_path, caplog, damage):
    checkpointer = three(tmp_path)
    assert checkpointer.newest() == "model_last.pth"
    assert caplog.records == []
    damage(tmp_path / "model_last.pth")
    assert checkpointer.newest() == "model_last-1.pth"
    (line,) = (record.getMessage() for record in caplog.records)
    assert "model_last.pth" in line
    assert f"Resuming from {tmp_path}/model_last-1.pth" in line
    # the damaged file is out of the way: the next one does not replace the good one
    checkpointer.save("model_last", epoch=3)
    left = {"model_last.pth": 3, "model_best.pth": 1, "model_last-1.pth": 2}
    assert epochs(tmp_path) == left
    flip(tmp_path / "model_last.pth")
    cut(tmp_path / "model_last-1.pth")
    assert checkpointer.newest() == "model_best.pth"


@pytest.mark.parametrize(
    "said",
    [b"", b"\x00\xff\n\x07", b"model_0007.pth", b"x" * 300, b"model_last.pth/..", b"../mine.pth"],
)
def test_whatever_last_checkpoint_says(tmp_path, caplog, said):
    (tmp_path / "mine.pth").write_text("not of this run")
    (tmp_path / "run").mkdir()
    tmp_path = tmp_path / "run"
    checkpointer = three(tmp_path)
    (tmp_path / "last_checkpoint").write_bytes(said)
    assert checkpointer.newest() == "model_last.pth"
    assert ("Resuming from" in caplog.text) == bool(said)
    assert (tmp_path.parent / "mine.pth").exists()
    # a file that is named comes before one of more steps
    (tmp_path / "last_checkpoint").write_text("model_best.pth\n")
    assert checkpointer.newest() == "model_best.pth"


def test_where_none_is_good_there_is_one_line(tmp_path):
    assert Checkpointer(torch.nn.Linear(1, 1), str(tmp_path)).newest() is None
    assert Checkpointer(torch.nn.Linear(1, 1), str(tmp_path / "none")).newest() is None
    path = saved(tmp_path, epoch=1)
    flip(path)
    torch.save({"model": {}}, tmp_path / "model_weights.pth")  # weights alone are not enough
    for _ in range(2):
        with pytest.raises(UserError, match=r"^--resume: .*model_last\.pth .*damaged") as e:
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


def test_a_disk_that_cannot_be_read_for_a_moment_renames_nothing(tmp_path, monkeypatch):
    checkpointer = three(tmp_path)
    names = {*os.listdir(tmp_path)}

    def fail(*args, **kwargs):
        raise OSError(errno.ESTALE, "Stale file handle")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "load", fail)
        with pytest.raises(UserError, match=r"cannot be read \(Stale file handle"):
            checkpointer.newest()
    assert {*os.listdir(tmp_path)} == names
    assert checkpointer.newest() == "model_last.pth"


def test_a_disk_that_takes_no_more_is_one_line_and_the_last_one_stays(tmp_path, monkeypatch):
    path = saved(tmp_path, epoch=1)
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match=r"model_last\.pth cannot be written \(No space left"):
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
        found.append(-1 if name is None else read_checkpoint(str(folder / name))["epoch"])
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        checkpointer.save("model_last", epoch=7, iteration=7)
        assert checkpointer.newest() == "model_last.pth"
    assert found == sorted(found), "no kill takes back what was there"
    assert {*found} == {-1, 0, 1, 2}
    assert len(found) > 15
