"""Trackers of experiments: what they get, how a run continues, and what a lost network changes."""

import importlib.machinery
import json
import logging
import sys
import types

import pytest
from fastreid.utils.events import EventStorage

from fastreid_star.cli.main import run
from fastreid_star.engine import tracker as tracker_module
from fastreid_star.engine import trackers
from fastreid_star.engine.checks import check
from fastreid_star.engine.interruption import Interrupted
from fastreid_star.engine.trainer import Trainer
from fastreid_star.errors import UserError

from ..test_readme import commands, ours
from ..tiny import tiny_config, tiny_options
from .test_interruption import SignalAfter

ALL = ("wandb", "mlflow", "swanlab")
SHORT = ("SOLVER.MAX_EPOCH", "2", "SOLVER.STEPS", "()", "SOLVER.LOG_PERIOD", "1")
SHORT += ("TEST.EVAL_PERIOD", "2", "TRACKERS", str(ALL))


class Wandb(types.ModuleType):
    """A stand-in for W&B: ``runs`` has what each call of ``init`` was given, and what followed."""

    def __init__(self):
        super().__init__("wandb")
        self.runs, self.online, self.taken = [], True, False

    def teardown(self):
        self.taken = False

    def init(self, **arguments):
        assert not self.taken, "as W&B 0.31: run ID is in use"
        if not self.online and arguments["mode"] != "offline":
            self.taken = True
            raise ConnectionError("no route to host")
        run = types.SimpleNamespace(arguments=arguments, lines=[], metrics=[], ended=None)
        run.log = lambda line: run.lines.append(dict(line))
        run.define_metric = lambda *names, **more: run.metrics.append((*names, more))
        run.finish = lambda exit_code: setattr(run, "ended", exit_code)
        self.runs.append(run)
        return run


class SwanLab(Wandb):
    """The same for SwanLab, whose steps are an argument."""

    def init(self, **arguments):
        self.taken = False
        run = super().init(**arguments)
        run.log = lambda line, step: run.lines.append({**line, "iteration": step})
        return run

    def finish(self):
        self.runs[-1].ended = 0


class MLflow(types.ModuleType):
    """The same for MLflow, whose server has one experiment; ``down`` counts failing requests."""

    class MlflowException(Exception):
        error_code = "RESOURCE_DOES_NOT_EXIST"

    def __init__(self):
        super().__init__("mlflow")
        self.MlflowClient = lambda: self
        self.entities = types.ModuleType("mlflow.entities")
        self.entities.Param = lambda key, value: (key, value)
        self.entities.Metric = lambda key, value, now, step: (key, value, step)
        self.exceptions = types.ModuleType("mlflow.exceptions")
        self.exceptions.MlflowException = self.MlflowException
        self.names, self.runs, self.down = [], {}, 0

    def get_experiment_by_name(self, name):
        return types.SimpleNamespace(experiment_id="7") if name in self.names else None

    def create_experiment(self, name):
        self.names.append(name)
        return "7"

    def create_run(self, experiment, run_name):
        run_id = f"run{len(self.runs)}"
        self.runs[run_id] = types.SimpleNamespace(name=run_name, params=[], lines=[], states=[])
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id=run_id))

    def get_run(self, run_id):
        if run_id not in self.runs:
            raise self.MlflowException(run_id)

    def log_batch(self, run_id, metrics=(), params=()):
        assert len(params) <= 100, "the server's limit"
        if self.down:
            self.down -= 1
            raise ConnectionError("the server is down")
        self.runs[run_id].params += params
        for step in {step for _, _, step in metrics}:
            line = {key: value for key, value, at in metrics if at == step}
            self.runs[run_id].lines.append({**line, "iteration": step})

    def update_run(self, run_id, status):
        self.runs[run_id].states.append(status)

    set_terminated = update_run


@pytest.fixture
def installed(monkeypatch):
    """The three packages as stand-ins."""
    modules = {"wandb": Wandb(), "mlflow": MLflow(), "swanlab": SwanLab()}
    for name, module in modules.items():
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        monkeypatch.setitem(sys.modules, name, module)
    for part in ("entities", "exceptions"):
        monkeypatch.setitem(sys.modules, f"mlflow.{part}", getattr(modules["mlflow"], part))
    for name in ("WANDB_PROJECT", "WANDB_NAME", "SWANLAB_PROJ_NAME", "SWANLAB_EXP_NAME"):
        monkeypatch.delenv(name, raising=False)
    for name in ("MLFLOW_EXPERIMENT_NAME", *trackers._MLFLOW_LIMITS):
        monkeypatch.setenv(name, "1")  # restored: the tracker sets the limits
        monkeypatch.delenv(name)
    return types.SimpleNamespace(**modules)


def scalars(folder):
    """metrics.json, which has the same scalars, without what only the log line computes."""
    lines = (folder / "metrics.json").read_text(encoding="utf-8").splitlines()
    return [without_eta(json.loads(line)) for line in lines]


def without_eta(line):
    return {name: value for name, value in line.items() if name != "eta_seconds"}


def test_a_run_its_resumption_and_a_new_run(tiny_root, tmp_path, installed, monkeypatch):
    """Config, scalars and results reach each tracker; a resumed run continues the tracker's run."""
    output = tmp_path / "logs" / "SAD"
    trainer = Trainer(tiny_config(tiny_root, output, *SHORT))
    trainer.register_hooks([SignalAfter(4)])
    trainer.resume_or_load(resume=False)
    with pytest.raises(Interrupted):
        trainer.train()
    wandb, mlflow, swanlab = installed.wandb, installed.mlflow, installed.swanlab
    assert wandb.runs[0].ended == 1
    name, *words = ours(commands("docs/trackers.md")[-1])
    assert (name, words[-1]) == ("train", "--resume")
    run(name, *words, *tiny_options(tiny_root, output, *SHORT[:-2]))

    first, second = wandb.runs
    assert first.arguments == second.arguments
    assert first.arguments["resume"] == "allow"
    assert (first.arguments["project"], first.arguments["name"]) == ("fastreid-star", "logs/SAD")
    assert first.arguments["config"]["SOLVER.MAX_EPOCH"] == 2
    assert (second.ended, second.metrics[1]) == (0, ("*", {"step_metric": "iteration"}))
    assert swanlab.runs[0].arguments["id"] == swanlab.runs[1].arguments["id"]
    assert len(swanlab.runs[0].arguments["id"]) == 21
    (tracked,) = mlflow.runs.values()
    assert tracked.name == "logs/SAD"
    assert tracked.states == ["RUNNING", "FAILED", "RUNNING", "FINISHED"]
    assert dict(tracked.params)["SOLVER.MAX_EPOCH"] == "2"
    expected = scalars(output)
    assert [line["iteration"] for line in expected] == list(range(6))
    assert {"total_loss", "lr", "I2V/mAP", "V2I/Rank-1"} <= set(expected[-1])
    for lines in (
        first.lines + second.lines,
        swanlab.runs[0].lines + swanlab.runs[1].lines,
        tracked.lines,
    ):
        assert [without_eta(line) for line in lines] == expected

    trainer = Trainer(tiny_config(tiny_root, output, *SHORT))
    trainer.resume_or_load(resume=False)
    for writer in trainer.build_writers():
        writer.close()
    assert wandb.runs[2].arguments["id"] != first.arguments["id"]
    assert len(mlflow.runs) == 2
    # every other rank has no writers
    monkeypatch.setattr("fastreid.utils.comm.is_main_process", lambda: False)
    assert not any(hasattr(hook, "_build_writers") for hook in trainer.build_hooks())


def written(tracker, *iterations):
    """Write a scalar in each of these iterations and one in the first, and close the tracker."""
    with EventStorage(iterations[0]) as storage:
        storage.put_scalar("once", 1.0)
        for iteration in iterations:
            storage.iter = iteration
            storage.put_scalar("loss", iteration / 2, smoothing_hint=False)
            tracker.write()
    tracker.close()


def start(tmp_path, *names, ids=None):
    cfg = tiny_config(tmp_path, tmp_path / "run", "TRACKERS", str(names))
    return trackers.start_trackers(cfg, {} if ids is None else ids)


def test_without_a_network_a_run_is_recorded_for_later(tmp_path, installed, caplog):
    installed.wandb.online = installed.swanlab.online = False
    ids = {}
    with caplog.at_level(logging.WARNING):
        for tracker in start(tmp_path, "wandb", "swanlab", ids=ids):
            written(tracker, 0)
    for name in ("wandb", "swanlab"):
        (tracked,) = getattr(installed, name).runs
        assert tracked.arguments["mode"] == "offline"
        assert tracked.arguments["id"] == ids[name]
        assert f"{name} sync {tmp_path / 'run'}" in caplog.text
        assert tracked.lines == [{"once": 1.0, "loss": 0.0, "iteration": 0}]
    assert "ConnectionError: no route to host" in caplog.text


def test_a_tracker_that_cannot_start_is_left_out(tmp_path, installed, caplog, monkeypatch):
    monkeypatch.delattr(MLflow, "create_run")
    with caplog.at_level(logging.WARNING):
        assert start(tmp_path, "mlflow") == []
    assert "TRACKERS mlflow cannot start: AttributeError" in caplog.text
    assert "The run continues without it" in caplog.text


@pytest.mark.parametrize(("down", "arrive"), [(0, 4), (2, 4), (9, 0)])
def test_scalars_wait_for_a_network_that_returns(
    tmp_path, installed, caplog, monkeypatch, down, arrive
):
    monkeypatch.setattr(tracker_module, "PAUSE", 1e-9)
    (tracker,) = start(tmp_path, "mlflow")
    installed.mlflow.down = down
    with caplog.at_level(logging.WARNING):
        written(tracker, 0, 1, 2, 3)
    (tracked,) = installed.mlflow.runs.values()
    assert [line["iteration"] for line in tracked.lines] == list(range(arrive))
    assert caplog.text.count("the server is down; training continues") == (down > 0)
    assert ("metrics.json has them" in caplog.text) == (arrive == 0)


def test_a_network_that_fails_is_not_tried_at_every_step(tmp_path, installed):
    (tracker,) = start(tmp_path, "mlflow")
    installed.mlflow.down = 9
    written(tracker, *range(5))
    assert installed.mlflow.down == 7, "the first step, and the end"


def test_a_run_that_mlflow_no_longer_has_is_made_anew(tmp_path, installed):
    ids = {"mlflow": "of another server"}
    start(tmp_path, "mlflow", ids=ids)
    assert list(installed.mlflow.runs) == [ids["mlflow"]] == ["run0"]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("swanlab",), "TRACKERS swanlab: the package swanlab is not installed: pip install"),
        (("wand",), "TRACKERS: no tracker is named 'wand': did you mean wandb?"),
        (("comet",), "choose among wandb, mlflow, swanlab"),
    ],
)
def test_a_tracker_that_is_not_there_is_one_line_before_training(
    tiny_root, tmp_path, installed, monkeypatch, names, words
):
    monkeypatch.delitem(sys.modules, "swanlab")
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: sys.modules.get(name))
    cfg = tiny_config(tiny_root, tmp_path, "TRACKERS", str(names))
    with pytest.raises(UserError) as error:
        Trainer(cfg)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert not [problem for problem in check(cfg, training=False) if "TRACKERS" in problem.text]


# --- the packages themselves, where they are installed ------------------------------------------


@pytest.fixture
def offline(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("SWANLAB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")


@pytest.mark.parametrize("name", ALL)
def test_the_real_package_offline(tmp_path, offline, name):
    """A run and its resumption, in the package's own files."""
    pytest.importorskip(name)
    ids, found = {}, []
    (tmp_path / "run").mkdir()
    for iterations in ((0, 1), (2, 3)):
        (tracker,) = start(tmp_path, name, ids=ids)
        found.append(ids[name])
        written(tracker, *iterations)
    assert found[0] == found[1]
    if name == "mlflow":
        import mlflow

        client = mlflow.MlflowClient()
        history = client.get_metric_history(ids[name], "loss")
        assert [(each.step, each.value) for each in history] == [(i, i / 2) for i in range(4)]
        tracked = client.get_run(ids[name])
        assert tracked.data.params["SOLVER.MAX_EPOCH"] == "3"
        assert tracked.info.status == "FINISHED"
    else:
        folder = tmp_path / "run" / {"wandb": "wandb", "swanlab": "swanlog"}[name]
        runs = [path for path in folder.iterdir() if "run-" in path.name and not path.is_symlink()]
        assert runs
        content = b"".join(
            path.read_bytes() for run in runs for path in run.rglob("*") if path.is_file()
        )
        assert b"loss" in content
