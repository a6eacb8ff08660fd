"""What a run does to the files of an earlier one in its folder."""

import errno
import fcntl
import hashlib
import os
import time

import pytest
import torch

from fastreid_star.engine.trainer import Trainer, train_or_evaluate
from fastreid_star.errors import UserError
from fastreid_star.files import locked
from fastreid_star.weights import read_checkpoint

from ..forked import start_forked
from ..tiny import tiny_config
from .runs import NO_EVALUATION, arguments, resumed


def test_a_new_run_does_not_pass_an_earlier_ones_checkpoints_for_its_own(
    tiny_root, whole_run, copied, caplog
):
    weights = str(copied / "model_best.pth")  # is moved, but only after it was loaded
    short = ("SOLVER.MAX_EPOCH", "1", "SOLVER.STEPS", "()", "MODEL.WEIGHTS", weights)
    trainer = Trainer(tiny_config(tiny_root, copied, *NO_EVALUATION, *short))
    trainer.resume_or_load(resume=False)
    assert f"earlier run were moved to {copied}/earlier-1" in caplog.text
    before = read_checkpoint(str(copied / "earlier-1" / "model_best.pth"))["model"]
    state = trainer.model.state_dict()
    assert all(torch.equal(before[name], value) for name, value in state.items())
    trainer.train()
    assert [path.name for path in copied.glob("*.pth")] == ["model_final.pth"]
    aside = {path.name for path in (copied / "earlier-1").glob("*.pth")}
    assert aside == {path.name for path in whole_run.folder.glob("*.pth")}


def content(folder):
    """Everything in a folder except the log and the lock."""
    paths = [path for path in folder.rglob("*") if path.name not in ("log.txt", ".lock")]
    return {p.name: hashlib.md5(p.read_bytes()).hexdigest() for p in paths if p.is_file()}


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("SOLVER.MAX_EPOCH", "0"), "MAX_EPOCH"),
        (("MODEL.BACKBONE.DEPTH", "99x"), "DEPTH.*99x"),
        (("--resume", "INPUT.CLIP.LENGTH", "2"), r"INPUT.CLIP.LENGTH \(3 -> 2\)"),
        (("KD.EMA.ENABLED", "True"), "EMA"),
    ],
)
def test_a_refused_run_leaves_an_earlier_one_as_it_was(tiny_root, copied, more, words):
    before = content(copied)
    with pytest.raises(UserError, match=words):
        train_or_evaluate(arguments(tiny_root, copied, *more))
    assert content(copied) == before


def hold(folder):
    with locked(folder):
        (folder / "held").touch()
        time.sleep(100)


def test_a_second_run_in_a_folder_is_refused(tiny_root, copied):
    pid = start_forked(hold, copied)
    while not (copied / "held").exists():
        time.sleep(0.01)
    before = content(copied)
    with pytest.raises(UserError, match="another run is writing"):
        train_or_evaluate(arguments(tiny_root, copied, "--resume"))
    assert content(copied) == before
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    resumed(tiny_root, copied)


def test_without_locks_a_run_trains(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", no_locks)
    with locked(tmp_path):
        pass
