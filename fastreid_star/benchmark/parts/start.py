"""From the start of a process to the demo's first training step, and what the first evaluation starts."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from fastreid_star.benchmark.figures import Figure
from fastreid_star.benchmark.options import Options
from fastreid_star.benchmark.timing import in_turns
from fastreid_star.data.datasets.synthetic import SyntheticOptions, write_synthetic_vcm
from fastreid_star.engine.defaults import load_config

CONFIG = "STAR_demo.yml"
IMPORTS = "import torch, fastreid_star"


def figures(options: Options) -> Iterator[Figure]:
    """From the start of a process to the demo's first training step, and what the first evaluation starts."""
    path, root = options.configs / "Synthetic" / CONFIG, options.folder / "start"
    made = SyntheticOptions.from_config(load_config(str(path)))
    if options.quick:
        made = replace(made, train_ids=16, test_ids=4)
    write_synthetic_vcm(root / "SyntheticVCM", made, processes=1 if options.quick else 2)
    yield from measure(path, root, made, options)


def measure(
    path: Path, root: Path, made: SyntheticOptions, options: Options, *more: str
) -> Iterator[Figure]:
    """The figures of a config whose synthetic data lie in `root`.

    Args:
        path: of the config.
        made: what the data were made with.
        more: config keys and values to change.

    Raises:
        RuntimeError: training does not come to its first step.
    """
    report = root / "first_step.json"
    settings = {
        "DATASETS.ROOT": root,
        "OUTPUT_DIR": root / "run",
        "MODEL.DEVICE": options.device,
        **{f"DATASETS.SYNTHETIC.{key.upper()}": value for key, value in made.to_dict().items()},
    }
    pairs = [str(part) for pair in settings.items() for part in pair]
    program = [
        "-m",
        "fastreid_star.benchmark.first_step",
        str(report),
        "--config-file",
        str(path),
        *pairs,
        *more,
    ]
    repeats = min(options.rounds, 1 if options.quick else 3)
    times = in_turns(
        {"first step": lambda: _run(program), "imports": lambda: _run(["-c", IMPORTS])},
        repeats=repeats,
        title=options.title("start"),
    )
    yield Figure.against(
        "start_seconds",
        times["first step"].best,
        "s",
        times["imports"].best,
        f"a process that imports torch, fast-reid and the plugin, and ends; {path.stem}, "
        f"{made.train_ids + made.test_ids} identities; {times['first step']}",
    )
    written = _run([*program, "--with-evaluation"], report)
    assert written is not None
    found = json.loads(written.read_text())
    yield Figure(
        "first_evaluation_processes",
        found["processes"],
        "processes",
        note="that training and its first evaluation start, compilers would be among them",
    )
    yield Figure.against(
        "first_evaluation_seconds",
        found["first"],
        "s",
        found["second"],
        "the same evaluation once more, warm",
    )


def _run(arguments: list[str], result: Path | None = None) -> Path | None:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(
            f"{' '.join(arguments)} ended with {done.returncode}:\n{done.stderr[-2000:]}"
        )
    return result
