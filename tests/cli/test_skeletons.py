"""fastreid-star skeletons, with a backend that needs no pose environment."""

import importlib.util
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastreid_star.cli.main import main, run
from fastreid_star.data.datasets.synthetic import SyntheticOptions, write_synthetic_vcm
from fastreid_star.data.io import read_frame
from fastreid_star.data.skeletons import SkeletonStore
from fastreid_star.errors import UserError

PROGRAM = Path(__file__).parents[1] / "pose" / "programs" / "extract_with_stub.py"


@pytest.fixture(scope="module")
def stub():
    spec = importlib.util.spec_from_file_location("extract_stub", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    sys.modules["extract_stub"] = module
    spec.loader.exec_module(module)
    yield
    del sys.modules["extract_stub"], module.estimator.BACKENDS["stub"]


@pytest.fixture(scope="module")
def crops(tmp_path_factory):
    folder = tmp_path_factory.mktemp("crops")
    for number in range(240):
        Image.new("RGB", (4, 6), (number, 240 - number, 3)).save(folder / f"{number}.png")
    (folder / "17.png").write_bytes(b"")
    return folder


@pytest.fixture
def call(stub, capsys):
    def call(*args, backend="stub"):
        run("skeletons", "--backend", backend, "--device", "cpu", *args)
        return capsys.readouterr().out

    return call


def test_a_folder_of_crops(call, crops, tmp_path):
    out = call("--images", crops, "--output", tmp_path / "store", "--batch-size", 4)
    assert out.splitlines()[0] == f"{tmp_path}/store: 239 of 240 images have a skeleton"
    assert out.splitlines()[1].startswith("  none: 17: 17.png: ")
    joints, present = SkeletonStore.open(tmp_path / "store").read(
        [str(number) for number in range(240)]
    )
    assert np.flatnonzero(~present).tolist() == [17]
    assert joints[5, 3].tolist() == [5, 235, 3]
    assert "239 of 240" in call(
        "--images", crops, "--output", tmp_path / "store", "--batch-size", 4
    ), "nothing to do"


def test_many_that_cannot_be_read(call, tmp_path):
    folder = tmp_path / "crops"
    folder.mkdir()
    for number in range(9):
        (folder / f"{number}.jpg").write_bytes(b"no image")
    Image.new("RGB", (4, 4)).save(folder / "9.jpg")
    out = call("--images", folder, "--output", tmp_path / "store")
    assert out.splitlines()[-1] == "  and 4 more, listed in its index.json"
    assert len(out.splitlines()) == 1 + 5 + 1


def test_a_dataset_and_training_reads_the_result(call, tmp_path):
    root = tmp_path / "datasets" / "SyntheticVCM"
    write_synthetic_vcm(root, SyntheticOptions(train_ids=2, test_ids=2, tracklets=1, frames=12))
    call(
        "--dataset",
        "SyntheticVCM",
        "--root",
        root.parent,
        "--output",
        root / "estimated",
        "--workers",
        0,
    )
    store = SkeletonStore.open(root / "estimated")
    assert len(store) == len(SkeletonStore.open(root / "skeletons"))
    with open(root / "skeletons" / "index.json") as file:
        keys = json.load(file)["keys"]
    joints, present = store.read(keys[:1])
    assert present.all()
    image = next(root.glob(f"*/{keys[0]}.jpg"))
    np.testing.assert_allclose(joints[0, 0], read_frame(image).mean(axis=(0, 1)), rtol=1e-6)


def test_the_datasets_folder_as_in_training(call, tmp_path, monkeypatch):
    monkeypatch.setattr("fastreid.data.build._root", str(tmp_path / "datasets"))
    with pytest.raises(UserError, match=f"no SyntheticVCM in {tmp_path}/datasets"):
        call("--dataset", "SyntheticVCM", "--output", tmp_path / "store")
    assert not any(tmp_path.iterdir()), "it is not drawn unasked"
    options = SyntheticOptions(train_ids=2, test_ids=2, tracklets=1, frames=12)
    write_synthetic_vcm(tmp_path / "datasets" / "SyntheticVCM", options)
    assert "96 of 96" in call(
        "--dataset", "SyntheticVCM", "--output", tmp_path / "store", "--workers", 0
    )


def test_a_name_that_is_no_text(stub, tmp_path, monkeypatch):
    (tmp_path / "crops").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "crops" / "good.png")
    open(os.fsencode(tmp_path / "crops") + b"/bad\xff.png", "wb").close()
    monkeypatch.setattr(
        sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="strict")
    )
    words = ["--images", str(tmp_path / "crops"), "--output", str(tmp_path / "store")]
    with pytest.raises(SystemExit):
        main(["skeletons", "--backend", "stub", "--device", "cpu", "--workers", "0", *words])
    sys.stdout.flush()
    assert b"1 of 2 images" in sys.stdout.buffer.getvalue()


def test_asked_again_while_other_shards_replace_it(call, crops, tmp_path):
    options = ["--images", crops, "--output", tmp_path / "store", "--workers", 0]
    call(*options)
    again = call(*options, "--batch-size", 1, "--overwrite", "--shard", "1/2")
    assert "shard 1/2 is complete" in again
    assert "239 of 240" in call(*options), "the old one is there until the new one is whole"


def test_shards(call, crops, tmp_path):
    options = ["--images", crops, "--output", tmp_path / "store", "--batch-size", 1]
    said = call(*options, "--shard", "2/2")
    assert "shard 2/2 is complete" in said
    assert "239 of 240" in call(*options, "--shard", "1/2")
    assert os.listdir(tmp_path) == ["store"]


def test_two_processes_give_the_bytes_of_one(call, crops, tmp_path, monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    call("--images", crops, "--output", tmp_path / "one", "--batch-size", 1)
    command = [
        sys.executable,
        PROGRAM,
        "skeletons",
        "--backend",
        "stub",
        "--device",
        "cpu",
        "--images",
        crops,
        "--batch-size",
        "1",
    ]
    command += ["--output", tmp_path / "two", "--num-devices", "2", "--workers", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "239 of 240" in done.stdout
    for name in ("index.json", "skeletons.npy"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--shard", "3/2"], "--shard 3/2: shards count from 1/2"),
        (["--shard", "0/2"], "--shard 0/2"),
        (["--shard", "half"], "write it as 1/4"),
        (["--batch-size", "0"], "--batch-size 0"),
        (["--workers", "-1"], "--workers -1"),
        (["--num-devices", "0"], "--num-devices 0"),
        (["--device", "cuda"], "MODEL.DEVICE cuda"),
        (
            ["--device", "cpu:0", "--num-devices", "2"],
            "cpu:0 names one device for 2 processes",
        ),
    ],
)
def test_refusals(call, crops, tmp_path, args, message):
    with pytest.raises(UserError, match=message):
        call("--images", crops, "--output", tmp_path / "store", *args)
    assert not any(tmp_path.iterdir())


def test_options_are_part_of_what_is_made(call, crops, tmp_path):
    call(
        "--images",
        crops,
        "--output",
        tmp_path / "store",
        "--model",
        "m",
        "--checkpoint",
        "c",
        "--flip-test",
    )
    plan = SkeletonStore.open(tmp_path / "store").meta["plan"]
    assert (plan["model"], plan["checkpoint"], plan["flip_test"], plan["dtype"]) == (
        "m",
        "c",
        True,
        None,
    )
    with pytest.raises(UserError, match="--overwrite"):
        call(
            "--images",
            crops,
            "--output",
            tmp_path / "store",
            "--model",
            "m",
            "--checkpoint",
            "d",
            "--flip-test",
        )


def test_without_the_pose_environment_it_says_how_to_make_one(call, crops, tmp_path):
    missing = [
        name for name in ("mmpose", "transformers") if importlib.util.find_spec(name) is None
    ]
    if not missing:
        pytest.skip("this environment has both")
    backend = "mmpose" if missing[0] == "mmpose" else "vitpose"
    with pytest.raises(UserError, match=r"python tools/dev.py pose"):
        call("--images", crops, "--output", tmp_path / "store", backend=backend)
    assert not any(tmp_path.iterdir())
