"""A signal ends a run after its step, in all processes, with a checkpoint from which it continues
bit for bit.
"""

import contextlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from fastreid.engine.train_loop import HookBase

from fastreid_star.cli.main import main
from fastreid_star.data.clips import ClipDataset
from fastreid_star.engine import interruption
from fastreid_star.engine.interruption import SIGNALS, Interrupted, SignalCatcher
from fastreid_star.engine.trainer import Trainer
from fastreid_star.errors import UserError
from fastreid_star.weights import read_checkpoint

from ..forked import start_forked
from ..tiny import DEMO, REPOSITORY, tiny_config, tiny_options
from .runs import assert_same_checkpoint

FORK = multiprocessing.get_context("fork")
# 3 epochs of 3 steps with everything that has a state: warm-up, milestones, frozen layers, losses
# that start later
OPTIONS = (
    "MODEL.FREEZE_LAYERS", "['backbone']", "SOLVER.FREEZE_ITERS", "5", "SOLVER.WARMUP_ITERS", "4",
    "SOLVER.LOG_PERIOD", "1",
)  # fmt: skip
ENDLESS = (
    "SOLVER.MAX_EPOCH", "10000", "SOLVER.STEPS", "()", "TEST.EVAL_PERIOD", "0",
    "SOLVER.IMS_PER_BATCH", "16", "SOLVER.CHECKPOINT_PERIOD", "3",
)  # fmt: skip


class SignalAfter(HookBase):
    """Send a signal in the middle of the `step`-th step, counted from 1."""

    def __init__(self, step, number=signal.SIGTERM, process=None):
        self._step, self._number, self._process = step, number, process

    def after_step(self):
        if self.trainer.iter + 1 == self._step:
            os.kill(self._process or os.getpid(), self._number)


def train(root, output, *hooks, resume=True, options=OPTIONS):
    trainer = Trainer(tiny_config(root, output, *options))
    trainer.register_hooks(hooks)
    trainer.resume_or_load(resume=resume)
    return trainer.train()


@pytest.fixture(scope="module")
def whole_run(tiny_root, tmp_path_factory):
    output = tmp_path_factory.mktemp("whole")
    return output, train(tiny_root, output, resume=False)


@contextlib.contextmanager
def stderr_without_reader():
    """Ctrl-C also ends a `tee` that reads the output."""
    reader, writer = os.pipe()
    stderr = os.dup(2)
    os.dup2(writer, 2)
    os.close(reader)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(writer)


def test_a_signal_ends_a_run_that_goes_on_bit_for_bit(tiny_root, whole_run, tmp_path):
    for step, number in (
        (3, signal.SIGUSR1),  # after the last step of an epoch, before its end
        (5, signal.SIGINT),  # in the middle of an epoch
        (9, signal.SIGHUP),  # after the last step, before the evaluation
    ):
        with pytest.raises(Interrupted) as ended, stderr_without_reader():
            train(tiny_root, tmp_path, SignalAfter(step, number))
        assert ended.value.code == 128 + number
        saved = read_checkpoint(str(tmp_path / "model_last.pth"))
        assert (saved["iteration"], saved["epoch"]) == (step, (step - 1) // 3 - 1)
        assert signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler), "restored"
    assert train(tiny_root, tmp_path) == whole_run[1]
    for name in ("model_final.pth", "model_best.pth"):
        assert_same_checkpoint(tmp_path / name, whole_run[0] / name)
    lines = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert [(line["iteration"], line["epoch"]) for line in lines] == [
        (step, (step + 1) / 3) for step in range(9)
    ]


class Silence(HookBase):
    """A file says from the `step`-th step on that no loader gives a batch; then a signal comes."""

    def __init__(self, step, flag):
        self._step, self._flag = step, flag

    def after_step(self):
        if self.trainer.iter + 1 == self._step:
            self._flag.touch()
            threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()


@pytest.mark.parametrize(("step", "workers"), [(4, 0), (3, 1)])
def test_a_signal_is_heard_while_a_loader_gives_nothing(
    tiny_root, whole_run, tmp_path, monkeypatch, step, workers
):
    def item(self, index):
        if flag.exists():
            time.sleep(100)
        return load(self, index)

    flag, load = tmp_path / "flag", ClipDataset.__getitem__
    options = (*OPTIONS, "DATALOADER.NUM_WORKERS", str(workers))
    monkeypatch.setattr(interruption, "PATIENCE", 0.5)
    monkeypatch.setattr(ClipDataset, "__getitem__", item)
    with pytest.raises(Interrupted) as ended:
        train(tiny_root, tmp_path / "run", Silence(step, flag), options=options)
    flag.unlink()
    assert ended.value.code == 128 + signal.SIGTERM
    assert read_checkpoint(str(tmp_path / "run" / "model_last.pth"))["iteration"] >= step
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    assert signal.getsignal(signal.SIGALRM) == signal.SIG_DFL
    assert train(tiny_root, tmp_path / "run") == whole_run[1]
    final = "model_final.pth"
    assert_same_checkpoint(tmp_path / "run" / final, whole_run[0] / final)


def test_a_run_that_dies_in_its_evaluation_has_its_steps(
    tiny_root, whole_run, tmp_path, monkeypatch
):
    def fail(cfg, model):
        raise MemoryError("in the evaluation")

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "test", staticmethod(fail))
        with pytest.raises(MemoryError):
            train(tiny_root, tmp_path)
    assert read_checkpoint(str(tmp_path / "model_last.pth"))["iteration"] == 9
    assert train(tiny_root, tmp_path) == whole_run[1]
    assert_same_checkpoint(tmp_path / "model_final.pth", whole_run[0] / "model_final.pth")


def test_a_signal_during_the_last_evaluation_comes_too_late_to_lose_anything(
    tiny_root, whole_run, tmp_path
):
    class InEvaluation(HookBase):
        def after_epoch(self):
            if self.trainer.epoch == 2:
                os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        train(tiny_root, tmp_path, InEvaluation())
    assert_same_checkpoint(tmp_path / "model_final.pth", whole_run[0] / "model_final.pth")
    assert train(tiny_root, tmp_path) == whole_run[1], "only the result is missing"


def test_the_middle_of_an_epoch_of_another_length_is_refused_and_its_end_is_not(
    tiny_root, tmp_path
):
    other = (*OPTIONS, "SOLVER.IMS_PER_BATCH", "16")
    with pytest.raises(Interrupted):
        train(tiny_root, tmp_path, SignalAfter(4))
    with pytest.raises(UserError, match=r"middle of an epoch"):
        train(tiny_root, tmp_path, options=other)
    os.replace(tmp_path / "model_last-1.pth", tmp_path / "model_last.pth")
    trainer = Trainer(tiny_config(tiny_root, tmp_path, *other))
    trainer.resume_or_load(resume=True)
    assert (trainer.start_epoch, trainer.start_iter) == (1, 2)


# --- from outside ---------------------------------------------------------------------------------


def wait_for_checkpoint(output):
    deadline = time.monotonic() + 120
    while not (output / "model_last.pth").exists():
        assert time.monotonic() < deadline, "no checkpoint in two minutes"
        time.sleep(0.05)


def lead_a_group(arguments, *unused):
    os.setsid()
    for descriptor in unused:  # of the test, inherited by the fork
        os.close(descriptor)
    sys.argv = ["fastreid-star", "train"]
    main(["train", *arguments])


def test_a_signal_to_the_whole_group_spares_the_loading_processes(tiny_root, tmp_path):
    """A terminal and some clusters send it to all, also to the `tee` that reads the output; two
    within a moment count once."""
    options = tiny_options(tiny_root, tmp_path, *ENDLESS, "DATALOADER.NUM_WORKERS", "1")
    reader, writer = os.pipe()
    pid = start_forked(lead_a_group, ["--config-file", DEMO, *options], reader, output=writer)
    os.close(writer)
    wait_for_checkpoint(tmp_path)
    os.close(reader)
    os.killpg(pid, signal.SIGTERM)
    os.killpg(pid, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 143
    text = (tmp_path / "log.txt").read_text()
    assert text.count("SIGTERM: stopped after step") == 1
    assert "Traceback" not in text
    assert "killed" not in text
    step = int(text.partition("stopped after step ")[2].split()[0])
    assert read_checkpoint(str(tmp_path / "model_last.pth"))["iteration"] == step


@pytest.mark.long
def test_torchrun_ends_them_with_a_checkpoint(tiny_root, tmp_path):
    """torchrun forwards the signal; it ends itself with a traceback and status 1."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    program = str(REPOSITORY / "tools" / "train_net.py")
    options = tiny_options(tiny_root, tmp_path, *ENDLESS)
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(
            [*torchrun, program, "--config-file", DEMO, *options],
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        wait_for_checkpoint(tmp_path)
        os.killpg(process.pid, signal.SIGTERM)  # the processes get it twice
        assert process.wait(timeout=60) == 1
    text = (tmp_path / "log").read_text()
    assert text.count("SIGTERM: stopped after step") == 1
    saved = read_checkpoint(str(tmp_path / "model_last.pth"))
    assert f"SIGTERM: stopped after step {saved['iteration']} of" in text


# --- catching ------------------------------------------------------------------------------------


def test_the_first_signal_is_noted_and_echoes_of_it_are_not():
    before = [signal.getsignal(number) for number in SIGNALS]
    with SignalCatcher() as catcher:
        assert catcher.number == 0
        for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), number)
        assert catcher.number == signal.SIGINT
    assert [signal.getsignal(number) for number in SIGNALS] == before


def twice(pause):
    interruption.ONE_AND_THE_SAME = 0.1
    with SignalCatcher():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(pause)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(10)


def test_a_second_one_after_a_while_ends_the_process_at_once():
    process = FORK.Process(target=twice, args=(0.3,))
    process.start()
    process.join(5)
    assert process.exitcode == -signal.SIGINT


def test_what_was_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with SignalCatcher() as catcher:
            os.kill(os.getpid(), signal.SIGHUP)
            assert catcher.number == 0
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_run_in_another_thread_is_left_alone(tiny_root, tmp_path):
    ended = []
    options = (*OPTIONS, "SOLVER.MAX_EPOCH", "1", "SOLVER.STEPS", "()", "TEST.EVAL_PERIOD", "0")
    target = lambda: ended.append(train(tiny_root, tmp_path, options=options))  # noqa: E731
    thread = threading.Thread(target=target)
    thread.start()
    thread.join()
    assert ended == [{}]
