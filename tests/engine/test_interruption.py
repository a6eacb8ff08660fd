"""Signals: one ends a run after its step, in all processes, with a checkpoint from which it goes on bit for bit."""

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
from fastreid.utils import comm

from fastreid_star.engine import interruption, launch
from fastreid_star.engine.checkpoint import read_checkpoint
from fastreid_star.engine.interruption import SIGNALS, Interrupted, SignalCatcher
from fastreid_star.engine.trainer import Trainer
from fastreid_star.errors import UserError

from .conftest import DEMO, REPOSITORY, tiny_config, tiny_options
from .test_distributed import environment, running, spawned_by
from .test_trainer import assert_same_checkpoint

FORK = multiprocessing.get_context("fork")
# 3 epochs of 3 steps with everything that has a state of its own: warm-up, milestones, frozen layers, resting losses
OPTIONS = (
    "MODEL.FREEZE_LAYERS", "['backbone']", "SOLVER.FREEZE_ITERS", "5", "SOLVER.WARMUP_ITERS", "4",
    "SOLVER.LOG_PERIOD", "1",
)  # fmt: skip


class SignalAfter(HookBase):
    """Send a signal in the middle of a step: after the `step`-th, counted from 1, before its end is noted."""

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


def history(output):
    """What metrics.json says of each step that does not depend on the steps before: epoch, rate, evaluation."""
    lines = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    keys = ("epoch", "lr", "I2V/mAP", "V2I/mAP")
    return [(line["iteration"], *(line.get(key) for key in keys)) for line in lines]


@pytest.mark.parametrize(
    ("steps", "number"),
    [
        ((1,), signal.SIGTERM),
        ((4, 5), signal.SIGINT),  # in the middle of an epoch, twice
        ((3, 6), signal.SIGUSR1),  # after the last step of an epoch, before what comes after it
        ((9,), signal.SIGHUP),  # after the last step of all: the evaluation is still to come
    ],
)
def test_a_signal_ends_a_run_that_goes_on_bit_for_bit(
    tiny_root, whole_run, tmp_path, caplog, steps, number
):
    for step in steps:
        with pytest.raises(Interrupted) as ended:
            train(tiny_root, tmp_path, SignalAfter(step, number))
        assert ended.value.code == 128 + number
        assert f"{number.name}: stopped after step {step} of 9; go on with --resume" in caplog.text
        saved = read_checkpoint(str(tmp_path / "model_last.pth"))
        assert (saved["iteration"], saved["epoch"]) == (step, (step - 1) // 3 - 1)
    assert signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler), "as it was"
    results = train(tiny_root, tmp_path)
    assert results == whole_run[1]
    assert_same_checkpoint(tmp_path / "model_final.pth", whole_run[0] / "model_final.pth")
    assert_same_checkpoint(tmp_path / "model_best.pth", whole_run[0] / "model_best.pth")
    whole = history(whole_run[0])
    assert [line[:2] for line in whole] == [(step, (step + 1) / 3) for step in range(9)]
    # the line of an epoch's last step is written after the epoch; stopped in between, it lacks what the step alone knew
    assert [line[:2] for line in history(tmp_path)] == [line[:2] for line in whole]
    for mine, theirs in zip(history(tmp_path), whole, strict=True):
        assert mine == theirs or (
            mine[0] + 1 in steps and mine[0] % 3 == 2 and mine[3:] == theirs[3:]
        )


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
    assert read_checkpoint(str(tmp_path / "model_last-1.pth"))["iteration"] == 6
    assert train(tiny_root, tmp_path) == whole_run[1]
    assert_same_checkpoint(tmp_path / "model_final.pth", whole_run[0] / "model_final.pth")


def test_the_scaler_of_mixed_precision_goes_on_too(tiny_root, tmp_path):
    options = (
        "SOLVER.AMP.ENABLED", "True", "SOLVER.MAX_EPOCH", "1", "SOLVER.STEPS", "()", "TEST.EVAL_PERIOD", "0",
        # torch 2.13's float16 convolution on the CPU gives NaN for maps of 4x2 with stride 2: keep the maps larger
        "INPUT.SIZE_TRAIN", "[64, 32]", "INPUT.SIZE_TEST", "[64, 32]",
    )  # fmt: skip
    train(tiny_root, tmp_path / "whole", options=options)
    with pytest.raises(Interrupted):
        train(tiny_root, tmp_path / "parts", SignalAfter(2), options=options)
    train(tiny_root, tmp_path / "parts", options=options)
    assert_same_checkpoint(
        tmp_path / "parts" / "model_final.pth", tmp_path / "whole" / "model_final.pth"
    )
    assert (
        read_checkpoint(str(tmp_path / "parts" / "model_final.pth"))["grad_scaler"][
            "_growth_tracker"
        ]
        > 0
    )


def test_a_signal_during_the_last_evaluation_comes_too_late_to_lose_anything(
    tiny_root, whole_run, tmp_path, caplog
):
    class InEvaluation(HookBase):
        def after_epoch(self):
            if self.trainer.epoch == 2:
                os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        train(tiny_root, tmp_path, InEvaluation())
    assert "SIGTERM: the run was over, everything is saved" in caplog.text
    assert_same_checkpoint(tmp_path / "model_final.pth", whole_run[0] / "model_final.pth")
    assert train(tiny_root, tmp_path) == whole_run[1], "nothing is left but the result"


def test_the_middle_of_an_epoch_of_another_length_is_refused_and_its_end_is_not(
    tiny_root, tmp_path
):
    other = (*OPTIONS, "SOLVER.IMS_PER_BATCH", "16")
    with pytest.raises(Interrupted):
        train(tiny_root, tmp_path, SignalAfter(4))
    with pytest.raises(
        UserError, match=r"model_last\.pth is from the middle of an epoch of 3 steps, .*have 2"
    ):
        train(tiny_root, tmp_path, options=other)
    os.replace(
        tmp_path / "model_last-1.pth", tmp_path / "model_last.pth"
    )  # of the first epoch's end
    trainer = Trainer(tiny_config(tiny_root, tmp_path, *other))
    trainer.resume_or_load(resume=True)
    assert (trainer.start_epoch, trainer.start_iter) == (1, 2)


# --- several processes ----------------------------------------------------------------------------------------------


def interrupted_twice(root, output):
    """On each of two ranks: a whole run, and one that a signal to one process ends, then one to the parent of both."""
    options = ("SOLVER.IMS_PER_BATCH", "16", "SOLVER.MAX_EPOCH", "4")
    whole, parts = os.path.join(output, "whole"), os.path.join(output, "parts")
    train(root, whole, options=options)
    stopped = []
    for step, rank, process in ((3, 1, os.getpid()), (5, 0, os.getppid())):
        hooks = [SignalAfter(step, process=process)] if comm.get_rank() == rank else []
        try:
            train(root, parts, *hooks, options=options)
        except Interrupted as error:
            stopped.append(
                (error.code, read_checkpoint(os.path.join(parts, "model_last.pth"))["iteration"])
            )
    comm.synchronize()
    if comm.is_main_process():
        os.truncate(os.path.join(parts, "model_last.pth"), 1000)
    train(root, parts, options=options)
    with open(os.path.join(output, f"stopped{comm.get_rank()}.json"), "w") as file:
        json.dump(stopped, file)


def test_two_processes_stop_after_the_same_step_whoever_gets_the_signal(tiny_root, tmp_path):
    with pytest.raises(Interrupted) as ended:  # the parent of both was told to end
        launch.launch(interrupted_twice, 2, device="cpu", args=(str(tiny_root), str(tmp_path)))
    assert ended.value.code == 143
    first, second = (json.loads((tmp_path / f"stopped{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    (one, other) = first
    assert one == [143, 4], "the step after: that is how long the news takes"
    assert other in ([143, 6], [143, 7]), "through the parent it may take a moment"
    # and both went on from the same one where the newest was damaged
    assert (tmp_path / "parts" / "model_last.pth.damaged").stat().st_size == 1000
    assert_same_checkpoint(
        tmp_path / "parts" / "model_final.pth", tmp_path / "whole" / "model_final.pth"
    )


ENDLESS = (
    "SOLVER.MAX_EPOCH", "10000", "SOLVER.STEPS", "()", "TEST.EVAL_PERIOD", "0", "SOLVER.IMS_PER_BATCH", "16",
    "SOLVER.CHECKPOINT_PERIOD", "3",
)  # fmt: skip


def start(said, root, output, *arguments, before=(sys.executable,), workers=0):
    """tools/train_net.py, run by `before`, in a process group of its own, once it has written a checkpoint.

    SIGINT is ignored, as a shell has it for what is to run in the background.
    """
    command = [
        *before,
        str(REPOSITORY / "tools" / "train_net.py"),
        "--config-file",
        DEMO,
        *arguments,
    ]
    process = subprocess.Popen(
        [*command, *tiny_options(root, output, *ENDLESS, "DATALOADER.NUM_WORKERS", workers)],
        env=environment(),
        stdout=said,
        stderr=said,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )
    deadline = time.monotonic() + 120
    while not (output / "model_last.pth").exists():
        assert time.monotonic() < deadline, "no checkpoint in two minutes"
        assert process.poll() is None, "it ended"
        time.sleep(0.05)
    return process


def test_a_signal_to_the_whole_group_spares_the_loading_processes(tiny_root, tmp_path):
    """As a terminal and some clusters send it; and one that comes twice, within a moment, counts once."""
    with open(tmp_path / "said", "w") as said:
        process = start(said, tiny_root, tmp_path, workers=1)
        os.killpg(process.pid, signal.SIGTERM)
        os.killpg(process.pid, signal.SIGTERM)
        assert process.wait(timeout=60) == 143
    text = (tmp_path / "said").read_text()
    assert text.count("SIGTERM: the run ends after this step, with a checkpoint") == 1
    assert text.count("SIGTERM: stopped after step") == 1
    assert "Traceback" not in text
    assert "killed" not in text


def test_processes_whose_parent_is_killed_end_with_a_checkpoint(tiny_root, tmp_path):
    with open(tmp_path / "said", "w") as said:
        process = start(said, tiny_root, tmp_path, "--num-devices", "2")
        workers = spawned_by(process.pid)
        assert len(workers) == 2
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        deadline = time.monotonic() + 25  # less than they are given before they are ended by force
        while any(map(running, workers)):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    text = (tmp_path / "said").read_text()
    assert text.count("SIGTERM: stopped after step") == 1
    assert read_checkpoint(str(tmp_path / "model_last.pth"))["iteration"] == int(
        text.partition("stopped after step ")[2].split()[0]
    )


def test_torchrun_ends_them_with_a_checkpoint(tiny_root, tmp_path, amount):
    """It hands on the signal, and what it says of its own end is its own: a traceback and status 1."""
    if not amount(False, True):
        pytest.skip("with --long")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    with open(tmp_path / "said", "w") as said:
        process = start(said, tiny_root, tmp_path, before=torchrun)
        os.killpg(
            process.pid, signal.SIGTERM
        )  # so that the processes get it twice, from here and from torchrun
        assert process.wait(timeout=60) == 1
    text = (tmp_path / "said").read_text()
    assert text.count("SIGTERM: stopped after step") == 1
    saved = read_checkpoint(str(tmp_path / "model_last.pth"))
    assert f"SIGTERM: stopped after step {saved['iteration']} of" in text


def stubborn(number, pipe):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    launch.end_with_parent()
    pipe.send(os.getpid())
    time.sleep(60)


def parent_of_stubborn(pipe):
    launch.SECONDS_ALONE = 0.2
    FORK.Process(target=stubborn, args=(0, pipe)).start()
    time.sleep(60)


def test_one_that_does_not_end_with_its_parent_is_made_to():
    ours, theirs = FORK.Pipe()
    parent = FORK.Process(target=parent_of_stubborn, args=(theirs,))
    parent.start()
    assert ours.poll(20)
    child = ours.recv()
    parent.kill()
    parent.join()
    deadline = time.monotonic() + 20
    while running(child):
        assert time.monotonic() < deadline
        time.sleep(0.01)


# --- catching -------------------------------------------------------------------------------------------------------


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


def test_what_was_ignored_stays_ignored(monkeypatch):
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
    thread = threading.Thread(
        target=lambda: ended.append(train(tiny_root, tmp_path, options=options))
    )
    thread.start()
    thread.join()
    assert ended == [{}]
