"""Training on the simulated NPU: the CPU's losses, mixed precision, resume, several processes, and its operators."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import simulated_npu

REPOSITORY = Path(__file__).parents[2]
TRAIN_NET = str(REPOSITORY / "tools" / "train_net.py")
PROGRAMS = REPOSITORY / "tests" / "engine" / "programs"
SYNTHETIC = REPOSITORY / "configs" / "Synthetic"
OPTIONS = {
    "MODEL.BACKBONE.DEPTH": "tiny",
    "MODEL.LOSSES.CE_ONLY_EPOCHS": 1,
    "INPUT.SIZE_TRAIN": [32, 16],
    "INPUT.SIZE_TEST": [32, 16],
    "INPUT.CLIP.LENGTH": 3,
    "DATALOADER.NUM_WORKERS": 0,
    "SOLVER.IMS_PER_BATCH": 8,
    # small steps of SGD: float32 sums in another order differ in the last digit, and training multiplies that, between
    # two runs on the CPU as well; Adam's steps, as large for small gradients, do so most of all
    "SOLVER.OPT": "SGD",
    "SOLVER.BASE_LR": 0.0001,
    "SOLVER.MAX_EPOCH": 7,
    "SOLVER.STEPS": [5],
    "SOLVER.LOG_PERIOD": 1,
    "SOLVER.CHECKPOINT_PERIOD": 1,
    "TEST.EVAL_PERIOD": 7,
    "DATASETS.SYNTHETIC.TRAIN_IDS": 6,
    "DATASETS.SYNTHETIC.TEST_IDS": 4,
    "DATASETS.SYNTHETIC.TRACKLETS": 2,
    "DATASETS.SYNTHETIC.FRAMES": 12,
    "DATASETS.SYNTHETIC.SIZE": [32, 16],
}
reason = simulated_npu.missing_compiler()
pytestmark = pytest.mark.skipif(reason is not None, reason=str(reason))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("datasets")


def train(
    root,
    output,
    device,
    config="STAR_demo",
    arguments=(),
    program=(TRAIN_NET, "--config-file"),
    **options,
):
    """Run tools/train_net.py, or another program; what it printed."""
    options = {
        "DATASETS.ROOT": root,
        "OUTPUT_DIR": output,
        "MODEL.DEVICE": device,
        **OPTIONS,
        **options,
    }
    pairs = [str(part) for pair in options.items() for part in pair]
    env = simulated_npu.environment(OMP_NUM_THREADS="1", SIMULATED_NPU_COUNT="4")
    env["PYTHONPATH"] += os.pathsep + str(REPOSITORY)
    command = [
        sys.executable,
        *map(str, program),
        str(SYNTHETIC / f"{config}.yml"),
        *arguments,
        *pairs,
    ]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-5000:]
    return done.stdout


def losses(root, output, device, config="STAR_demo", **more):
    """Train; what it printed, and iteration -> losses by name."""
    path = Path(output) / "losses.json"
    said = train(root, output, device, config, program=(PROGRAMS / "losses.py", path), **more)
    return said, {
        int(iteration): values for iteration, values in json.loads(path.read_text()).items()
    }


def weights(output, name="model_final.pth"):
    return torch.load(Path(output) / name, map_location="cpu", weights_only=False)["model"]


@pytest.fixture(scope="module")
def on_npu(root, tmp_path_factory):
    """A whole STAR run of 21 steps: its folder, what it said, its losses."""
    output = tmp_path_factory.mktemp("npu")
    return output, *losses(root, output, "npu")


@pytest.mark.parametrize("config", ["STAR_demo", "SAD_demo"])
def test_the_losses_are_the_cpus(root, on_npu, tmp_path, config):
    _, said, there = (
        on_npu if config == "STAR_demo" else (None, *losses(root, tmp_path / "npu", "npu", config))
    )
    assert "on npu:0 (" in said
    assert "Peak memory on npu:0: " in said
    _, here = losses(root, tmp_path / "cpu", "cpu", config)
    assert sorted(here) == sorted(there) == list(range(21))
    assert len(here[20]) == (7 if config == "STAR_demo" else 6)
    for iteration in range(20):
        assert there[iteration] == pytest.approx(here[iteration], abs=1e-2, rel=1e-2), iteration


def test_resuming_on_the_device_is_exact(root, on_npu, tmp_path):
    output, *_ = on_npu
    train(root, tmp_path, "npu", **{"SOLVER.MAX_EPOCH": 3, "TEST.EVAL_PERIOD": 0})
    (tmp_path / "model_final.pth").rename(tmp_path / "model_last.pth")
    (tmp_path / "last_checkpoint").write_text("model_last.pth")
    assert "from epoch 4 of" in train(root, tmp_path, "npu", arguments=["--resume"])
    whole, resumed = weights(output), weights(tmp_path)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_checkpoints_travel_between_devices(root, on_npu, tmp_path):
    output, _, whole = on_npu
    stored = torch.load(output / "model_final.pth", weights_only=False, map_location=None)
    assert {tensor.device.type for tensor in stored["model"].values()} == {"cpu"}, (
        "a machine without NPU must read it"
    )
    mean = {}
    for device in ("cpu", "npu"):
        folder = tmp_path / device
        evaluated = train(
            root,
            folder,
            device,
            arguments=["--eval-only"],
            **{"MODEL.WEIGHTS": output / "model_final.pth"},
        )
        mean[device] = next(line for line in evaluated.splitlines() if line.startswith("| mean"))
    assert mean["cpu"] == mean["npu"]
    # and on: begun on the device, continued on the CPU
    train(root, tmp_path / "moved", "npu", **{"SOLVER.MAX_EPOCH": 2, "TEST.EVAL_PERIOD": 0})
    said, moved = losses(root, tmp_path / "moved", "cpu", arguments=["--resume"])
    assert "from epoch 3 of" in said
    assert sorted(moved) == list(range(6, 21))
    for iteration, values in moved.items():
        assert values == pytest.approx(whole[iteration], abs=1e-2, rel=1e-2), iteration


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_mixed_precision(root, tmp_path, dtype):
    train(
        root,
        tmp_path,
        "npu",
        **{"SOLVER.AMP.ENABLED": True, "SOLVER.AMP.DTYPE": dtype, "TEST.EVAL_PERIOD": 0},
    )
    assert all(value.isfinite().all() for value in weights(tmp_path).values())
    checkpoint = torch.load(tmp_path / "model_final.pth", map_location="cpu", weights_only=False)
    assert ("grad_scaler" in checkpoint) == (dtype == "float16")
    if dtype == "float16":
        # 2^16 at the start is too much for this model's gradients: the scaler saw infinities, skipped and halved
        assert checkpoint["grad_scaler"]["scale"] < 2**16


@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.long)])
def test_gradients_over_hccl_are_those_of_one_process(tmp_path, world):
    program = PROGRAMS / "gradients.py"
    found = []
    for size in (1, world):
        path = tmp_path / f"{size}.pth"
        command = [sys.executable, str(program), "npu", str(size), "True", str(path)]
        env = simulated_npu.environment(OMP_NUM_THREADS="1", SIMULATED_NPU_COUNT="4")
        env["PYTHONPATH"] += os.pathsep + str(REPOSITORY)
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-5000:]
        found.append(torch.load(path))
    alone, together = found
    assert alone.keys() == together.keys()
    assert max((alone[name] - together[name]).abs().max().item() for name in alone) < 1e-5


def check_ranks(root, output, world):
    """Two processes and more, started by our launcher, end with the same weights on every rank."""
    from fastreid_star.engine.launch import launch

    launch(_train_and_compare, int(world), device="npu", args=(root, output))


def _train_and_compare(root, output):
    import torch.distributed as dist
    from fastreid.utils import comm

    from fastreid_star.engine.defaults import load_config
    from fastreid_star.engine.trainer import Trainer

    options = {
        **OPTIONS,
        "DATASETS.ROOT": root,
        "OUTPUT_DIR": output,
        "MODEL.DEVICE": "npu",
        "SOLVER.IMS_PER_BATCH": 16,
    }
    options |= {
        "MODEL.LOSSES.TRI.ALL_RANKS": True,
        "SOLVER.MAX_EPOCH": 3,
        "SOLVER.STEPS": [],
        "TEST.EVAL_PERIOD": 3,
    }
    pairs = [str(part) for pair in options.items() for part in pair]
    trainer = Trainer(load_config(str(SYNTHETIC / "STAR_demo.yml"), pairs))
    assert dist.get_backend() == "hccl"
    assert trainer.device == torch.device("npu", comm.get_local_rank())
    results = trainer.train()
    assert bool(results) == comm.is_main_process()
    mine = {name: value.detach().cpu() for name, value in trainer.model.module.named_parameters()}
    for theirs in comm.all_gather(mine):
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.parametrize("world", ["2", pytest.param("4", marks=pytest.mark.long)])
def test_processes_end_with_equal_weights(root, tmp_path, world):
    simulated_npu.run(
        check_ranks, str(root), str(tmp_path), world, OMP_NUM_THREADS="1", SIMULATED_NPU_COUNT="4"
    )


def check_switches():
    import torch_npu  # noqa: F401

    from fastreid_star.engine import device as devices

    npu = devices.choose_device("npu")
    devices.configure(npu)
    expected = {"jit_compile": False, "allow_internal_format": False}
    assert simulated_npu.settings() == {
        **expected,
        "matmul.allow_hf32": False,
        "conv.allow_hf32": False,
    }
    devices.configure(npu, fast_float32=True, jit_compile=True, internal_format=True)
    assert set(simulated_npu.settings().values()) == {True}
    assert "NPU" in devices.describe(npu)
    assert devices.collective_backend("auto") == "hccl"
    before = devices.peak_memory(npu)
    torch.ones(1024, 1024, device=npu)
    assert devices.peak_memory(npu) >= max(before, 4 * 2**20)
    devices.synchronize(npu)


def test_switches_memory_and_backend():
    simulated_npu.run(check_switches)


def check_operators(path):
    import torch_npu  # noqa: F401

    from fastreid_star.doctor import train_step

    train_step("npu")  # whatever is only done once
    with simulated_npu.recording() as operators:
        train_step("npu")
    Path(path).write_text("\n".join(operators) + "\n")


def test_a_step_takes_no_operator_that_torch_npu_has_not(tmp_path):
    """Building STAR, two steps of training with every loss: the list is committed, and the NPU has all of it."""
    simulated_npu.run(check_operators, str(tmp_path / "operators.txt"))
    taken = (tmp_path / "operators.txt").read_text().split()
    committed = (Path(__file__).parent / "star_step_operators.txt").read_text().split()
    assert len(taken) > 50
    assert taken == committed, (
        "the step's operators have changed: look at them, then commit the new list"
    )
    # shapes that follow from the data stop a device until the host knows them
    assert not {
        name
        for name in taken
        if re.match(r"aten::(nonzero|masked_select|_?unique|bincount|repeat_inter)", name)
    }
    lines = (REPOSITORY / "tests" / "engine" / "npu_registered_ops.txt").read_text().splitlines()
    registered = [line for line in lines if line and not line.startswith("#")]
    assert simulated_npu.missing(taken, registered) == []
    # and the check can fail: this one torch_npu has not
    assert simulated_npu.missing([*taken, "aten::huber_loss"], registered) == ["aten::huber_loss"]
