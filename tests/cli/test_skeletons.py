"""fastreid-star skeletons, with a backend that needs no pose environment."""

import importlib.util
import io
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
        run("skeletons", "--backend", backend, "--device", "cpu", "--workers", 0, *args)
        return capsys.readouterr().out

    return call


def test_a_folder_of_crops_and_its_options(call, crops, tmp_path):
    network = ["--model", "m", "--flip-test", "--checkpoint"]
    arguments = ["--images", crops, "--output", tmp_path / "store", "--batch-size", 4, *network]
    out = call(*arguments, "c")
    assert out.splitlines()[0] == f"{tmp_path}/store: 239 of 240 images have a skeleton"
    assert out.splitlines()[1].startswith("  none: 17: 17.png: ")
    store = SkeletonStore.open(tmp_path / "store")
    joints, present = store.read([str(number) for number in range(240)])
    assert np.flatnonzero(~present).tolist() == [17]
    assert joints[5, 3].tolist() == [5, 235, 3]
    plan = store.meta["plan"]
    assert (plan["model"], plan["checkpoint"], plan["flip_test"]) == ("m", "c", True)
    assert plan["dtype"] is None
    assert "239 of 240" in call(*arguments, "c"), "nothing to do"
    with pytest.raises(UserError, match="--overwrite"):
        call(*arguments, "d")


def test_a_dataset_in_the_folder_of_datasets(call, tmp_path, monkeypatch):
    monkeypatch.setattr("fastreid.data.build._root", str(tmp_path / "datasets"))
    root = tmp_path / "datasets" / "SyntheticVCM"
    arguments = ["--dataset", "SyntheticVCM", "--output", root / "estimated"]
    with pytest.raises(UserError, match=f"{tmp_path}/datasets does not exist"):
        call(*arguments)
    assert not any(tmp_path.iterdir()), "it is not drawn unasked"
    write_synthetic_vcm(root, SyntheticOptions(train_ids=2, test_ids=2, tracklets=1, frames=12))
    assert "96 of 96" in call(*arguments)
    store, drawn = (SkeletonStore.open(root / name) for name in ("estimated", "skeletons"))
    assert len(store) == len(drawn)
    keys = drawn.keys()[:1]
    joints, present = store.read(keys)
    assert present.all()
    image = next(root.glob(f"*/{keys[0]}.jpg"))
    np.testing.assert_allclose(joints[0, 0], read_frame(image).mean(axis=(0, 1)), rtol=1e-6)


def test_a_name_that_is_no_text_and_many_that_cannot_be_read(stub, tmp_path, monkeypatch):
    folder = tmp_path / "crops"
    folder.mkdir()
    Image.new("RGB", (4, 4)).save(folder / "good.png")
    open(os.fsencode(folder) + b"/bad\xff.png", "wb").close()
    for number in range(8):
        (folder / f"{number}.jpg").write_bytes(b"no image")
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="strict")
    monkeypatch.setattr(sys, "stdout", out)
    words = ["--images", str(folder), "--output", str(tmp_path / "store"), "--workers", "0"]
    with pytest.raises(SystemExit):
        main(["skeletons", "--backend", "stub", "--device", "cpu", *words])
    sys.stdout.flush()
    lines = sys.stdout.buffer.getvalue().decode().splitlines()
    assert "1 of 10 images" in lines[0]
    assert lines[-1] == "  and 4 more, listed in its index.json"
    assert len(lines) == 1 + 5 + 1


def test_shards_and_two_processes_give_the_bytes_of_one(call, crops, tmp_path, monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    options = ["--images", crops, "--batch-size", 1, "--output"]
    assert "shard is complete" in call(*options, tmp_path / "one", "--shard", "2/2")
    assert "239 of 240" in call(*options, tmp_path / "one", "--shard", "1/2")
    assert os.listdir(tmp_path) == ["one"]
    command = [sys.executable, PROGRAM, "skeletons", "--backend", "stub", "--device", "cpu"]
    command += [*map(str, options), tmp_path / "two", "--num-devices", "2", "--workers", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "239 of 240" in done.stdout
    for name in ("index.json", "skeletons.npy"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("--shard 3/2", "invalid shard value: '3/2'"),
        ("--shard 0/2", "invalid shard value: '0/2'"),
        ("--shard half", "invalid shard value: 'half'"),
        ("--batch-size 0", "--batch-size: 0 is smaller than 1"),
        ("--num-devices 0", "--num-devices 0"),
        ("--device cuda", "MODEL.DEVICE cuda"),
        ("--device cpu:0 --num-devices 2", "cpu:0 names one device for 2 processes"),
    ],
)
def test_refusals(stub, crops, tmp_path, capsys, args, message):
    words = ["--images", str(crops), "--output", str(tmp_path / "store"), *args.split()]
    with pytest.raises(SystemExit) as ended:
        main(["skeletons", "--backend", "stub", *words])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
    assert not any(tmp_path.iterdir())
