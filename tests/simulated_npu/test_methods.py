"""The methods beside SAD and STAR on two simulated NPUs, in bfloat16."""

from pathlib import Path

import pytest
import torch

import simulated_npu

reason = simulated_npu.missing_compiler()
OPTIONS = (
    "MODEL.DEVICE", "npu", "SOLVER.IMS_PER_BATCH", "16", "SOLVER.MAX_EPOCH", "1",
    "SOLVER.STEPS", "[]", "SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", "bfloat16",
)  # fmt: skip
pytestmark = pytest.mark.skipif(reason is not None, reason=str(reason))


def check_ranks(root, folder):
    from fastreid_star.engine.launch import launch

    launch(_train_and_compare, 2, device="npu", args=(root, folder))


def _train_and_compare(root, folder):
    from fastreid.utils import comm

    from tests.methods.dinogrl import test_model as dinogrl
    from tests.methods.m3reid import test_model as m3reid

    bins = ("MODEL.DINOGRL.BINS", "[1,2]")
    model = _step(dinogrl.config(root, f"{folder}/dinogrl", *OPTIONS, *bins))
    tokens = model.gait.tokens(torch.rand(2, 3, 32, 16, device=model.device))
    assert tokens.last.dtype == tokens.blocks.dtype == torch.float16
    erasing = ("MODEL.M3REID.ERASING", "0.5")
    _step(m3reid.config(root, f"{folder}/m3reid", *OPTIONS, *erasing))
    if comm.is_main_process():
        Path(folder, "done").touch()


def _step(cfg):
    """Train an epoch; the weights of both processes are equal, and the operators torch_npu's."""
    from fastreid.utils import comm

    from fastreid_star.engine.trainer import Trainer
    from tests.simulated_npu.test_training import assert_on_the_device

    trainer = Trainer(cfg)
    trainer.train()
    state = {n: value.detach().cpu() for n, value in trainer.model.module.named_parameters()}
    for theirs in comm.all_gather(state):
        assert all(torch.equal(state[name], theirs[name]) for name in state)
    # a step's operators: torch_npu has them all, and no shape follows from the data
    model = trainer.model.module.train()
    images = torch.rand(4, 3, 3, 32, 16, device=trainer.device)
    batch = {"images": images, "modality": torch.tensor([1, 2, 1, 2])}
    batch["targets"] = torch.tensor([0, 0, 1, 1], device=trainer.device)
    with simulated_npu.recording() as taken:
        sum(model(batch).values()).backward()
    assert_on_the_device(taken)
    return model


def test_two_processes_train_in_bfloat16(tiny_root, tmp_path):
    simulated_npu.run(check_ranks, str(tiny_root), str(tmp_path), OMP_NUM_THREADS="1")
    assert (tmp_path / "done").exists()
