import subprocess
import sys

import pytest

from fastreid_star.benchmark.options import Options
from fastreid_star.benchmark.parts import ON_REQUEST, PARTS, pose
from fastreid_star.data.io import read_frame
from fastreid_star.errors import UserError

from ...pose.environment import PYTHON, REPOSITORY, needs_environment

TOY = """
import sys
from pathlib import Path
from fastreid_star.benchmark.options import Options
from fastreid_star.benchmark.parts import pose

if __name__ == "__main__":
    options = Options(Path("configs"), Path(sys.argv[1]), device="cpu", repeats=1, progress=False)
    for figure in (pose.overhead(options, pose.SMALL, crops=16), pose.memory(options, pose.SMALL, crops=40)):
        print(figure.name, figure.unit, figure.value > 0, figure.ratio == figure.value / figure.limit)
"""


@needs_environment
def test_both_figures(tmp_path):
    (tmp_path / "toy.py").write_text(TOY)
    command = [PYTHON, tmp_path / "toy.py", tmp_path / "data"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "pose_crops_per_s crops/s True True",
        "pose_memory_mb MB True True",
    ]


def test_without_mmpose_it_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mmpose", None)
    monkeypatch.setattr(pose.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"dev\.py pose"):
        next(PARTS["pose"](Options(REPOSITORY / "configs", tmp_path)))
    assert "pose" in ON_REQUEST


def test_crops_are_made(tmp_path):
    frames = pose.write_crops(tmp_path / "crops", 3)
    assert len(frames) == 3
    assert read_frame(frames.path(2)).shape == (144, 72, 3)
