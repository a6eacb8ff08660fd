"""The pose environment's Python, for tests of what the training environment has not: mmpose and transformers."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
FOLDER = REPOSITORY / ".venv-pose"
PYTHON = FOLDER / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
RUNNER = Path(__file__).parent / "checks" / "run.py"


def missing() -> str | None:
    """Why nothing can be run there, for pytest to skip with; None where it can."""
    whole = (FOLDER / "fastreid-star.stamp").is_file()
    return None if whole else "needs the pose environment: run `python tools/dev.py pose` once"


needs_environment = pytest.mark.skipif(missing() is not None, reason=str(missing()))


def run_checks(module: str, folder: str | os.PathLike, timeout: float = 600) -> str:
    """Run all checks of a file in one process of the pose environment: its imports take longer than many a check.

    Args:
        module: name of a file in ``checks/``; its functions ``check_*`` take a folder that they may fill.
        folder: for what they write.
        timeout: in seconds, for all together.

    Returns:
        what they wrote, with the seconds that each took.

    Raises:
        AssertionError: some failed; all their tracebacks.
    """
    command = [PYTHON, RUNNER, module, folder]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, cwd=REPOSITORY)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout
