"""A tiny SyntheticVCM and a config that trains on it in a second or two."""

import contextlib
import shutil
import subprocess
from pathlib import Path

import pytest

from fastreid_star.data.datasets.synthetic import SyntheticOptions, write_synthetic_vcm
from fastreid_star.engine.defaults import load_config

REPOSITORY = Path(__file__).parents[2]
DEMO = str(REPOSITORY / "configs" / "Synthetic" / "SAD_demo.yml")
OPTIONS = {
    "TRAIN_IDS": 6,
    "TEST_IDS": 4,
    "TRACKLETS": 2,
    "FRAMES": 12,
    "SIZE": (32, 16),
}


def tiny_options(root, output, *more) -> list[str]:
    """Config options of a run of 3 epochs of 3 iterations on the tiny data."""
    options = {
        "DATASETS.ROOT": root,
        "OUTPUT_DIR": output,
        "MODEL.DEVICE": "cpu",
        "MODEL.BACKBONE.DEPTH": "tiny",
        "MODEL.LOSSES.CE_ONLY_EPOCHS": 1,
        "INPUT.SIZE_TRAIN": [32, 16],
        "INPUT.SIZE_TEST": [32, 16],
        "INPUT.CLIP.LENGTH": 3,
        "DATALOADER.NUM_WORKERS": 0,
        "SOLVER.IMS_PER_BATCH": 8,
        "SOLVER.MAX_EPOCH": 3,
        "SOLVER.STEPS": [2],
        "SOLVER.CHECKPOINT_PERIOD": 1,
        "TEST.EVAL_PERIOD": 3,
        **{f"DATASETS.SYNTHETIC.{key}": value for key, value in OPTIONS.items()},
    }
    return [str(part) for pair in options.items() for part in pair] + [str(part) for part in more]


def tiny_config(root, output, *more):
    return load_config(DEMO, tiny_options(root, output, *more))


@pytest.fixture(scope="session")
def tiny_root(tmp_path_factory):
    """A datasets folder with the tiny SyntheticVCM in it."""
    root = tmp_path_factory.mktemp("datasets")
    write_synthetic_vcm(
        root / "SyntheticVCM", SyntheticOptions.from_config(tiny_config(root, root))
    )
    return root


@pytest.fixture
def disk(tmp_path):
    """Mounts a disk of some size, ``disk("300k")``; where that is not allowed, the test is skipped."""
    mounted = []

    def mount(size):
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("mounting a small disk is not allowed here")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder):
    """Write until nothing fits any more."""
    with contextlib.suppress(OSError), open(folder / "filler", "wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
