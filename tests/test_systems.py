"""What holds on Windows and macOS, simulated: see ``docs/systems.md``."""

import ast
import dataclasses
import json
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
from multiprocessing.reduction import ForkingPickler
from pathlib import Path, PureWindowsPath
from types import SimpleNamespace

import pytest
import torch

from fastreid_star import files
from fastreid_star.cli import inference
from fastreid_star.data import workers
from fastreid_star.data.build import build_clip_test_loader, build_clip_train_loader
from fastreid_star.engine import device as devices
from fastreid_star.engine import launch as launcher
from fastreid_star.errors import UserError
from fastreid_star.evaluation import tables
from fastreid_star.evaluation.cross_modal import cross_modal_results

from . import windows
from .evaluation.toy import PROTOCOL, toy
from .forked import run_forked
from .test_readme import commands, ours
from .test_structure import FILES, PACKAGE
from .tiny import STAR_DEMO, star_config, tiny_options

# what the package uses where it is there
GUARDED = {
    "engine/interruption.py": {
        "SIGALRM",
        "setitimer",
        "ITIMER_REAL",
        "register_at_fork",
        "setpgid",
    },
    "engine/launch.py": {"SIGQUIT"},
}


def lacking(node):
    """The names in a piece of code that Python does not have on Windows."""
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return {node.attr} & set(
            {"os": windows.OS, "signal": windows.SIGNALS}.get(node.value.id, ())
        )
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names} & set(windows.MODULES)
    return set()


def opens_text_without_encoding(node):
    """Whether a call opens a file as text in the encoding of the system."""
    names = {"read_text", "write_text"}
    if not isinstance(node, ast.Call) or any(word.arg == "encoding" for word in node.keywords):
        return False
    if isinstance(node.func, ast.Attribute):  # and not a pattern's or a video's own method
        return node.func.attr in names
    modes = [*node.args[1:2], *(word.value for word in node.keywords if word.arg == "mode")]
    mode = getattr(modes[0], "value", "") if modes else "r"
    return isinstance(node.func, ast.Name) and node.func.id == "open" and "b" not in str(mode)


def test_what_differs_on_windows_is_used_where_it_is_guarded():
    """Names that are not there, and the encoding of text files, which is that of the country."""
    assert opens_text_without_encoding(ast.parse("open(path, 'a')", mode="eval").body)
    for path in FILES:
        found = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            found |= lacking(node)
            assert not opens_text_without_encoding(node), f"{path}, line {node.lineno}"
        assert found <= GUARDED.get(path.relative_to(PACKAGE).as_posix(), set()), path


def train_and_use(folder, commands):
    """Train STAR, and run the commands of the page, as on Windows."""
    windows.simulate()
    from fastreid_star.cli.main import run
    from fastreid_star.engine.interruption import SIGNALS

    assert {signal.Signals(number).name for number in SIGNALS} == {"SIGTERM", "SIGINT"}
    os.chdir(folder)
    short = ("SOLVER.MAX_EPOCH", "1", "SOLVER.STEPS", "()", "TEST.EVAL_PERIOD", "1")
    run("train", "--config-file", STAR_DEMO, *tiny_options("数据", "logs/run", *short))
    os.symlink("数据/SyntheticVCM/Test", "crops")
    more = {
        "eval": ("OUTPUT_DIR", "eval"),
        "features": ("--skeletons", "数据/SyntheticVCM/skeletons"),
        "search": ("--skeletons", "数据/SyntheticVCM/skeletons"),
    }
    for name, *arguments in commands:
        run(name, *arguments, *more.get(name, ()))


def test_the_commands_work_as_on_windows(tmp_path, amount):
    """With ``--long``, with a loading process that is started as on Windows: it imports torch."""
    folder = tmp_path / "Läufe 跑步"
    folder.mkdir()
    used = [ours(command) for command in commands("docs/systems.md") if "docker" not in command]
    assert used[0][-2:] == ["DATALOADER.NUM_WORKERS", "1"]
    used[0][-1] = amount("0", "1")
    assert [words[0] for words in used] == ["eval", "features", "search", "export", "report"]
    ended = run_forked(train_and_use, folder, used)
    assert ended.status == 0, ended.text
    run = folder / "logs" / "run"
    assert f"Output folder: {run}" in (run / "log.txt").read_text(encoding="utf-8")
    for name in ("results_SyntheticVCM.json", "per_query_SyntheticVCM.csv"):
        assert (folder / "eval" / name).read_bytes() == (run / name).read_bytes()
    found = json.loads((folder / "found.json").read_text(encoding="utf-8"))
    assert found
    assert (folder / "found.csv").read_text(encoding="utf-8").count("\n") > len(found)
    assert (folder / "model.onnx").stat().st_size
    assert "logs/run" in (run / "report.html").read_text(encoding="utf-8")


def test_what_a_loading_process_gets_travels_to_a_new_process(tiny_root, tmp_path):
    """A process that is not forked gets the data set, and each request, as pickles."""
    cfg = star_config(tiny_root, tmp_path)
    for loader in (
        build_clip_train_loader(cfg, seed=0),
        build_clip_test_loader(cfg, cfg.DATASETS.TESTS[0]),
    ):
        item = next(iter(loader.batch_sampler))[0]
        expected = loader.dataset[item]
        sent = (loader.dataset, loader.collate_fn, loader.worker_init_fn, item)
        dataset, *_, item = pickle.loads(ForkingPickler.dumps(sent))
        assert expected["has_skeleton"].all()
        for name, value in dataset[item].items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(expected[name])), name


def test_paths_have_forward_slashes_where_they_are_written(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "Path", PureWindowsPath)
    features, tracklets = toy()
    tracklets = [dataclasses.replace(tracklet, root="C:\\data\\Train") for tracklet in tracklets]
    results = cross_modal_results(features, tracklets, **PROTOCOL)
    tables.write_query_csv(tmp_path / "x.csv", results.directions(), tracklets)
    text = (tmp_path / "x.csv").read_text(encoding="utf-8")
    assert f"C:/data/Train/{tracklets[0].frames[0]}" in text
    assert "\\" not in text


# --- locks ----------------------------------------------------------------------------------------


@pytest.fixture
def without_fcntl(monkeypatch):
    msvcrt = windows.msvcrt_of(files.fcntl)
    monkeypatch.setitem(sys.modules, "msvcrt", msvcrt)
    monkeypatch.setattr(files, "fcntl", None)
    yield
    assert not msvcrt.held


def test_a_folder_is_locked_once_and_free_afterwards(tmp_path, without_fcntl):
    for _ in range(2):
        second = files.locked(tmp_path)
        with files.locked(tmp_path), pytest.raises(UserError, match="another run is writing"):
            second.__enter__()
    assert (tmp_path / ".lock").read_bytes() == b""


def test_a_waiting_lock_waits(tmp_path, without_fcntl):
    order = []

    def second():
        with files.waiting_lock(tmp_path / "lock"):
            order.append("second")

    thread = threading.Thread(target=second)
    with files.waiting_lock(tmp_path / "lock"):
        thread.start()
        time.sleep(0.15)
        order.append("first")
    thread.join(5)
    assert order == ["first", "second"]


def test_a_file_system_without_locks(tmp_path, without_fcntl, monkeypatch):
    def refuse(*_):
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(sys.modules["msvcrt"], "locking", refuse)
    with files.locked(tmp_path), files.waiting_lock(tmp_path / "lock"):
        pass


# --- processes and devices ------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "spared"), [("spawn", True), ("fork", False)])
def test_a_spawned_worker_does_not_hear_ctrl_c(monkeypatch, method, spared):
    """A forked one has left the process group, or hears what its parent hears."""
    heard = []
    monkeypatch.setattr(workers, "get_worker_info", lambda: object())
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda: method)
    monkeypatch.setattr(signal, "signal", lambda *args: heard.append(args))
    monkeypatch.setattr(workers.torch, "set_num_threads", lambda number: None)
    watching = SimpleNamespace(Thread=lambda **_: SimpleNamespace(start=int))
    monkeypatch.setattr(workers, "threading", watching)
    workers.one_thread(0)
    assert heard == ([(signal.SIGINT, signal.SIG_IGN)] if spared else [])


def test_several_processes_are_refused_on_windows(monkeypatch):
    monkeypatch.setattr(launcher.os, "name", "nt")
    with pytest.raises(UserError, match="--num-devices 2: several processes need Linux or macOS"):
        launcher.launch(print, 2, device="cpu")


def test_mps_where_torch_has_it(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"MODEL\.DEVICE mps: it needs a Mac"):
        devices.choose_device("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    waited = []
    monkeypatch.setattr(torch.mps, "synchronize", lambda: waited.append("mps"))
    device = devices.choose_device("mps")
    assert device == torch.device("mps", 0)
    assert devices.device_count("mps") == 1
    assert devices.peak_memory(device) is None
    assert devices.describe(device).startswith("mps")
    assert not devices.needs_pinned_memory(device)
    devices.configure(device, fast_float32=True)
    devices.synchronize(device)
    assert waited == ["mps"]
    with pytest.raises(UserError, match=r"mps:1 .* 1 mps device"):
        devices.choose_device("mps:1")
    if not torch.cuda.is_available():  # it is never chosen without its name: it is not tested
        assert devices.choose_device("auto") == torch.device("cpu")


@pytest.mark.parametrize("path", [Path, PureWindowsPath])
def test_skeletons_are_kept_beside_a_folder_that_ends_in_a_separator(monkeypatch, path):
    monkeypatch.setattr(inference, "Path", path)
    args, predictor = SimpleNamespace(skeletons="", device="cpu"), SimpleNamespace(device="cpu")
    predictor.model = SimpleNamespace(reads_skeletons=True)
    end = "/" if path is Path else "\\"
    assert inference.skeleton_maker(args, predictor, f"crops{end}").keywords["folder"] == (
        "crops.skeletons"
    )
