"""The wheel without the clone: train, eval, report and export run from another folder."""

import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from fastreid_star.pose.movenet import has_onnx

REPOSITORY = Path(__file__).parents[2]
TINY = [
    "MODEL.DEVICE",
    "cpu",
    "MODEL.BACKBONE.DEPTH",
    "tiny",
    "MODEL.LOSSES.CE_ONLY_EPOCHS",
    "0",
    "INPUT.CLIP.LENGTH",
    "2",
    "INPUT.SIZE_TRAIN",
    "[32,16]",
    "INPUT.SIZE_TEST",
    "[32,16]",
    "DATALOADER.NUM_WORKERS",
    "0",
    "TEST.EVAL_PERIOD",
    "1",
    "SOLVER.IMS_PER_BATCH",
    "8",
    "SOLVER.MAX_EPOCH",
    "1",
    "SOLVER.STEPS",
    "[]",
    "DATASETS.SYNTHETIC.TRAIN_IDS",
    "4",
    "DATASETS.SYNTHETIC.TEST_IDS",
    "4",
    "DATASETS.SYNTHETIC.TRACKLETS",
    "2",
    "DATASETS.SYNTHETIC.FRAMES",
    "12",
    "DATASETS.SYNTHETIC.SIZE",
    "[32,16]",
    "DATASETS.ROOT",
    "data",
    "OUTPUT_DIR",
    "run",
]
# one process for the commands that only read the run: importing torch takes the time
LATER = """
from fastreid_star.cli.main import run
for command in {commands!r}:
    assert not run(*command), command
"""


def pip(*arguments, cwd):
    command = [sys.executable, "-m", "pip", *arguments, "--no-deps", "--no-index", "-q"]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, so that no build folder is left in the repository."""
    if not all(importlib.util.find_spec(name) for name in ("setuptools", "pip")):
        pytest.skip("pip or setuptools is not installed here")
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("fastreid_star", "configs"):
        shutil.copytree(
            REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "fastreid_star_command.py"):
        shutil.copy(REPOSITORY / name, source)
    pip("wheel", "--no-build-isolation", "-w", str(target), ".", cwd=source)
    (path,) = target.glob("*.whl")
    return path


def test_it_holds_the_package_the_configs_and_a_console_command(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    configs = [path.relative_to(REPOSITORY) for path in (REPOSITORY / "configs").rglob("*.yml")]
    assert {f"fastreid_star/{path.as_posix()}" for path in configs} <= set(names)
    modules = [
        path.relative_to(REPOSITORY) for path in (REPOSITORY / "fastreid_star").rglob("*.py")
    ]
    assert {path.as_posix() for path in modules} <= set(names)
    assert {"fastreid_star/py.typed", "fastreid_star/report/templates/report.html"} <= set(names)
    assert not [name for name in names if name.startswith(("tests/", "tools/"))]
    (entry,) = [name for name in names if name.endswith("entry_points.txt")]
    assert b"fastreid-star = fastreid_star_command:main" in zipfile.ZipFile(wheel).read(entry)


def test_train_eval_report_and_export_without_the_clone(wheel, tmp_path):
    pip("install", "--target", str(tmp_path / "site"), str(wheel), cwd=tmp_path)
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "site"), "OMP_NUM_THREADS": "1"}

    def call(*command):
        done = subprocess.run(
            [sys.executable, *command], cwd=tmp_path, env=env, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def means(text):
        return [line for line in text.splitlines() if line.startswith("| mean")][-1]

    script, config = tmp_path / "site" / "bin" / "fastreid-star", "Synthetic/STAR_small.yml"
    trained = call(str(script), "train", "--config-file", config, *TINY)
    commands = [
        ["eval", *TINY, "--config-file", config, "MODEL.WEIGHTS", "run/model_final.pth"],
        ["report", "run", "--no-gradcam", "--output", "report.html"],
        *([["export", "--run", "run", "star.onnx"]] if has_onnx() else []),
        ["configs"],
    ]
    printed = call("-c", LATER.format(commands=commands))
    assert means(printed) == means(trained)
    assert (tmp_path / "report.html").stat().st_size > 100_000
    assert (tmp_path / "star.onnx").exists() == has_onnx()
    assert str(tmp_path / "site" / "fastreid_star" / "configs") in printed


def test_the_parent_folder_of_a_clone_does_not_hide_an_editable_install(tmp_path):
    """setuptools installs by a .pth file; a folder with the name of the package then loses."""
    clone = tmp_path / "fastreid_star"
    (clone / "fastreid_star").mkdir(parents=True)
    (clone / "fastreid_star" / "__init__.py").write_text('__version__ = "0.0.0"\n')
    (clone / "fastreid_star_command.py").write_text("")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, clone)
    site = tmp_path / "site"
    pip("install", "--no-build-isolation", "--target", str(site), "-e", ".", cwd=clone)
    code = (
        f"import site; site.addsitedir({str(site)!r}); import fastreid_star as f; print(f.__file__)"
    )
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.stdout.strip() == str(clone / "fastreid_star" / "__init__.py"), done.stderr
