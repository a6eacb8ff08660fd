"""From frames to a trained STAR: skeletons of a real, untrained network by the tool, and a run that reads them."""

import json
import os
import subprocess

import numpy as np
import pytest

from fastreid_star.data.build import build_clip_test_loader
from fastreid_star.data.datasets.synthetic import SyntheticOptions, write_synthetic_vcm
from fastreid_star.data.skeletons import SkeletonStore
from fastreid_star.engine.defaults import argument_parser, load_config
from fastreid_star.engine.trainer import train_or_evaluate

from .environment import PYTHON, REPOSITORY, RUNNER, needs_environment

DATA = SyntheticOptions(train_ids=4, test_ids=2, tracklets=1, frames=12, size=(32, 16))
MODEL = "rtmpose-t_8xb256-420e_coco-256x192"
# the checkpoint of an untrained network that tells crops apart, then the tool, in one process: its imports take long
PROGRAM = """
import sys, torch
from fastreid_star.cli.main import run
from mmpose_networks import network
torch.save(network(sys.argv[1])[0].state_dict(), sys.argv[2])
run("skeletons", "--backend", "mmpose", "--model", sys.argv[1], "--checkpoint", *sys.argv[2:])
"""


@pytest.fixture
def root(tmp_path):
    """A dataset with estimated skeletons, of which one frame has none, and without those that it was drawn with."""
    dataset = tmp_path / "SyntheticVCM"
    write_synthetic_vcm(dataset, DATA)
    (dataset / "skeletons").rename(tmp_path / "drawn")
    broken = dataset / "Test" / SkeletonStore.open(tmp_path / "drawn").keys()[-12]
    broken.with_suffix(".jpg").write_bytes(b"no picture")
    options = f"--device cpu --workers 1 --dataset SyntheticVCM --root {tmp_path}/"
    command = [PYTHON, "-c", PROGRAM, MODEL, tmp_path / "pose.pth", *options.split()]
    command += ["--output", f"{dataset}/estimated/"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(RUNNER.parent)}
    done = subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, timeout=600, env=env
    )
    assert done.returncode == 0, done.stderr
    assert "estimated: 143 of 144 images have a skeleton\n  none: " in done.stdout
    return tmp_path


@needs_environment
def test_extracted_skeletons_are_trained_with(root, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    options = {
        "DATASETS.ROOT": root,
        "DATASETS.SKELETONS": "estimated",
        "OUTPUT_DIR": root / "run",
        "MODEL.DEVICE": "cpu",
        "MODEL.BACKBONE.DEPTH": "tiny",
        "MODEL.LOSSES.CE_ONLY_EPOCHS": 0,
        "INPUT.SIZE_TRAIN": [32, 16],
        "INPUT.SIZE_TEST": [32, 16],
        "INPUT.CLIP.LENGTH": 12,
        "SOLVER.IMS_PER_BATCH": 8,
        "SOLVER.MAX_EPOCH": 1,
        "SOLVER.STEPS": [],
        "TEST.EVAL_PERIOD": 1,
        "DATALOADER.NUM_WORKERS": 0,
        **{f"DATASETS.SYNTHETIC.{key.upper()}": value for key, value in DATA.to_dict().items()},
    }
    pairs = [str(part) for pair in options.items() for part in pair]
    arguments = ["--config-file", "configs/Synthetic/STAR_demo.yml", *pairs]

    # what the network is shown: the frames have the input's size, so joints are as they are stored
    store = SkeletonStore.open(root / "SyntheticVCM" / "estimated")
    loader = build_clip_test_loader(load_config(arguments[1], arguments[2:]), "SyntheticVCM")
    without = 0
    for batch in loader:
        for position, joints, present in zip(
            batch["index"], batch["skeletons"], batch["has_skeleton"], strict=True
        ):
            tracklet = loader.dataset.tracklets[position]
            stored, there = store.read([tracklet.key(frame) for frame in range(12)])
            without += (~there).sum()
            # a clip shows the neighbor of a frame that cannot be read, and its skeleton
            assert there.all() or not there[0]
            stored[0] = stored[0] if there[0] else stored[1]
            np.testing.assert_allclose(joints.numpy(), stored, atol=1e-4)
            assert present.all()
            assert len(np.unique(stored, axis=0)) > 6, "the frames have different skeletons"
    assert without == 1

    train_or_evaluate(argument_parser("").parse_args(arguments))
    assert (root / "run" / "model_final.pth").exists()
    logged = [json.loads(line) for line in (root / "run" / "metrics.json").read_text().splitlines()]
    losses = [
        value for line in logged for name, value in line.items() if "skeleton" in name.lower()
    ]
    assert losses
    assert np.isfinite(losses).all()
    assert max(losses) > 0, "clips without skeletons would lose nothing"
