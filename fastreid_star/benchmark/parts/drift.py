"""A long run: do its memory, its steps' time, its open files or its threads grow?"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fastreid.engine.train_loop import HookBase
from tqdm import tqdm

from fastreid_star.benchmark.figures import Figure
from fastreid_star.benchmark.options import Options
from fastreid_star.benchmark.process import MB, in_own_process, own_memory
from fastreid_star.data.datasets.synthetic import SyntheticOptions, write_synthetic_vcm
from fastreid_star.engine.defaults import load_config
from fastreid_star.engine.trainer import Trainer

CONFIG = "STAR_demo.yml"
STEPS, QUICK_STEPS = 2000, 200
PARTS = 5  # of a run; the first is the warm-up, the second and the last are compared


@dataclass(frozen=True)
class Sample:
    """What a run holds after a step.

    Args:
        seconds: processor time of the step in the training process, all its threads.
        memory: bytes of the training process and its loading processes.
        files: that the training process has open.
        threads: of the training process.
    """

    seconds: float
    memory: float
    files: int
    threads: int


def figures(options: Options) -> Iterator[Figure]:
    """Memory, time of a step, open files and threads late in a run of 2,000 steps, against early in it."""
    path, root = options.configs / "Synthetic" / CONFIG, options.folder / "drift"
    made = SyntheticOptions.from_config(load_config(str(path)))
    if options.quick:
        made = replace(made, train_ids=16, test_ids=8)
    write_synthetic_vcm(root / "SyntheticVCM", made, processes=2)
    steps = QUICK_STEPS if options.quick else STEPS
    yield from measure(path, root, made, options, steps=steps)


def measure(
    path: Path, root: Path, made: SyntheticOptions, options: Options, *more: str, steps: int
) -> Iterator[Figure]:
    """The figures of a config whose synthetic data lie in `root`.

    Args:
        path: of the config.
        made: what the data were made with.
        more: config keys and values to change.
        steps: of the run; it evaluates and writes checkpoints as it goes.
    """
    settings = {
        "DATASETS.ROOT": root,
        "OUTPUT_DIR": root / "run",
        "MODEL.DEVICE": options.device,
        "MODEL.LOSSES.CE_ONLY_EPOCHS": 1,
        "SOLVER.STEPS": "[]",
        **{f"DATASETS.SYNTHETIC.{key.upper()}": value for key, value in made.to_dict().items()},
    }
    pairs = [str(part) for pair in settings.items() for part in pair]
    samples = in_own_process(
        train, str(path), [*pairs, *more], steps, options.title("drift")
    ).result
    yield from compare(samples)


def compare(samples: Sequence[Sample]) -> Iterator[Figure]:
    """Medians over the last fifth of a run against those over the second."""
    size = len(samples) // PARTS
    early, late = samples[size : 2 * size], samples[-size:]
    for name, unit, scale, what in (
        ("memory", "MB", 1 / MB, "memory of the training process and its loading processes"),
        ("seconds", "ms", 1000, "processor time of a step"),
        ("files", "", 1, "open files"),
        ("threads", "", 1, "threads"),
    ):
        before, after = (
            scale * statistics.median(getattr(s, name) for s in part) for part in (early, late)
        )
        yield Figure.against(
            f"drift_{'step_ms' if name == 'seconds' else 'memory_mb' if name == 'memory' else name}",
            after,
            unit,
            before,
            f"{what}: median of steps {size + 1} to {2 * size}, against the last {size} of {len(samples)}",
        )


def train(path: str, pairs: list[str], steps: int, title: str) -> list[Sample]:
    """Train for `steps` steps, and some more to the end of an epoch; evaluate and save ten times on the way."""
    cfg = load_config(path, pairs)
    trainer = Trainer(_with_epochs(cfg, 1, 0))
    epochs = -(-steps // trainer.iters_per_epoch)
    trainer = Trainer(_with_epochs(cfg, epochs, max(1, epochs // 10)))
    trainer.resume_or_load(resume=False)
    recorder = Recorder(trainer.max_iter, title)
    trainer.register_hooks([recorder])
    trainer.train()
    return recorder.samples


class Recorder(HookBase):
    """Takes a :class:`Sample` after every step.

    Args:
        total: steps of the run.
        title: of the progress bar; empty: none.
    """

    def __init__(self, total: int, title: str = ""):
        self.samples: list[Sample] = []
        self._bar = tqdm(total=total, desc=title, disable=not title, leave=False)

    def before_step(self):
        self._start = time.process_time()

    def after_step(self):
        seconds = time.process_time() - self._start
        processes = [os.getpid(), *_children()]
        self.samples.append(
            Sample(
                seconds,
                sum(own_memory(pid) for pid in processes),
                len(os.listdir("/proc/self/fd")),
                len(os.listdir("/proc/self/task")),
            )
        )
        self._bar.update()

    def after_train(self):
        self._bar.close()


def _children() -> list[int]:
    tasks = Path("/proc/self/task").glob("*/children")
    return [int(pid) for task in tasks for pid in task.read_text().split()]


def _with_epochs(cfg, epochs: int, period: int):
    cfg = cfg.clone()
    cfg.defrost()
    cfg.SOLVER.MAX_EPOCH, cfg.TEST.EVAL_PERIOD, cfg.SOLVER.CHECKPOINT_PERIOD = (
        epochs,
        period,
        period,
    )
    cfg.freeze()
    return cfg
