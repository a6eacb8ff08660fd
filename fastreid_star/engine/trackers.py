"""Trackers of experiments beside TensorBoard: Weights & Biases, MLflow and SwanLab.

TRACKERS names them. Each gets the run's config and its scalars, the results of evaluations among
them. Whatever goes wrong in a tracker or in the network is logged, and training continues.
"""

from __future__ import annotations

import difflib
import importlib.util
import logging
import os
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fastreid.config import CfgNode

from fastreid_star.engine.config_changes import flatten
from fastreid_star.engine.tracker import Tracker, why

logger = logging.getLogger(__name__)

PROJECT = "fastreid-star"  # the name of the project, if the tracker's own variable is not set
# MLflow sends in the training process. Its own limits would stop the steps for minutes.
_MLFLOW_LIMITS = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
_MLFLOW_BATCH = 100  # parameters of one request


class WandbTracker(Tracker):
    """Weights & Biases. WANDB_PROJECT, WANDB_MODE and its other variables apply."""

    package = "wandb"
    sends_later = "wandb sync {}/wandb/offline-run-*"

    def start(self, config: Mapping[str, Any], *, offline: bool) -> None:
        import wandb

        if offline:
            wandb.teardown()  # its process still holds the id of the run that did not start
        self.run_id = self.run_id or uuid.uuid4().hex
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=os.environ.get("WANDB_NAME", _name(self.folder)),
            dir=self.folder,
            id=self.run_id,
            resume="allow",
            config=dict(config),
            allow_val_change=True,  # a resumed run may change some keys
            mode="offline" if offline else None,
        )
        # A run that was killed repeats some steps, and W&B drops steps that go back.
        self._run.define_metric("iteration")
        self._run.define_metric("*", step_metric="iteration")

    def send(self, scalars: Mapping[str, float], iteration: int) -> None:
        self._run.log({**scalars, "iteration": iteration})

    def finish(self, *, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


class MLflowTracker(Tracker):
    """MLflow. MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME apply."""

    package = "mlflow"

    def start(self, config: Mapping[str, Any], *, offline: bool) -> None:
        for name, value in _MLFLOW_LIMITS.items():
            os.environ.setdefault(name, value)
        import mlflow

        self._client = mlflow.MlflowClient()
        if self.run_id is None or not self._exists(self.run_id):
            self.run_id = self._create(config)
        self._client.update_run(self.run_id, status="RUNNING")

    def _exists(self, run_id: str) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            self._client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return False
        return True

    def _create(self, config: Mapping[str, Any]) -> str:
        from mlflow.entities import Param

        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self._client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment else self._client.create_experiment(name)
        run_id = self._client.create_run(number, run_name=_name(self.folder)).info.run_id
        params = [Param(key, str(value)) for key, value in config.items()]
        for first in range(0, len(params), _MLFLOW_BATCH):
            self._client.log_batch(run_id, params=params[first : first + _MLFLOW_BATCH])
        return run_id

    def send(self, scalars: Mapping[str, float], iteration: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, iteration) for name, value in scalars.items()]
        self._client.log_batch(self.run_id, metrics=metrics)

    def finish(self, *, failed: bool) -> None:
        self._client.set_terminated(self.run_id, "FAILED" if failed else "FINISHED")


class SwanLabTracker(Tracker):
    """SwanLab. SWANLAB_PROJ_NAME, SWANLAB_MODE and its other variables apply."""

    package = "swanlab"
    sends_later = "swanlab sync {}/swanlog/run-*"

    def start(self, config: Mapping[str, Any], *, offline: bool) -> None:
        import swanlab

        self.run_id = self.run_id or uuid.uuid4().hex[:21]  # its length is fixed
        self._run = swanlab.init(
            project=os.environ.get("SWANLAB_PROJ_NAME", PROJECT),
            experiment_name=os.environ.get("SWANLAB_EXP_NAME", _name(self.folder)),
            logdir=os.path.join(self.folder, "swanlog"),
            id=self.run_id,
            resume="allow",
            config=dict(config),
            mode="offline" if offline else None,
        )

    def send(self, scalars: Mapping[str, float], iteration: int) -> None:
        self._run.log(dict(scalars), step=iteration)

    def finish(self, *, failed: bool) -> None:
        import swanlab

        swanlab.finish()


TRACKERS: dict[str, type[Tracker]] = {
    tracker.package: tracker for tracker in (WandbTracker, MLflowTracker, SwanLabTracker)
}


def start_trackers(cfg: CfgNode, run_ids: dict[str, str]) -> list[Tracker]:
    """The trackers of TRACKERS, started; one that cannot start is left out with a warning.

    Args:
        cfg: the config of the run.
        run_ids: the id of this run in each tracker, which is continued. New ones are added.
    """
    started = []
    for name in cfg.TRACKERS:
        tracker = TRACKERS[name](cfg.OUTPUT_DIR, run_ids.get(name))
        if _start(tracker, flatten(cfg)) and tracker.run_id is not None:
            run_ids[name] = tracker.run_id
            started.append(tracker)
    return started


def _start(tracker: Tracker, config: Mapping[str, Any]) -> bool:
    """Start a tracker, without the network if there is no other way."""
    try:
        tracker.start(config, offline=False)
        return True
    except Exception as error:
        problem = f"TRACKERS {tracker.package} cannot start: {why(error)}"
    if tracker.sends_later is not None:
        try:
            tracker.start(config, offline=True)
        except Exception as error:
            problem += f"; nor without a network: {why(error)}"
        else:
            command = tracker.sends_later.format(tracker.folder)
            logger.warning(f"{problem}. The run is recorded here; later: {command}")
            return True
    logger.warning(f"{problem}. The run continues without it")
    return False


def why_unusable(names: Sequence[str]) -> Iterator[str]:
    """What is wrong with TRACKERS, and the cures: a tracker is unknown or not installed."""
    for name in names:
        if name not in TRACKERS:
            near = difflib.get_close_matches(str(name).lower(), TRACKERS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"choose among {', '.join(TRACKERS)}"
            yield f"TRACKERS: no tracker is named {name!r}: {hint}"
        elif importlib.util.find_spec(name) is None:
            yield (
                f"TRACKERS {name}: the package {name} is not installed: pip install {name}, or "
                "leave it out of TRACKERS"
            )


def _name(folder: str) -> str:
    """The name of a run: its folder and the one above, such as HITSZ-VCM/STAR_R50."""
    return "/".join(Path(folder).resolve().parts[-2:])
