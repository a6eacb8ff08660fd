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
    # stride 1: on maps of 4x2, torch's bfloat16 convolution of stride 2 reads memory it must not
    own = ("MODEL.M3REID.ERASING", "0.5", "MODEL.BACKBONE.LAST_STRIDE", "1")
    _step(m3reid.config(root, f"{folder}/m3reid", *OPTIONS, *own))
    _align_the_whole_batch(model.device)
    if comm.is_main_process():
        Path(folder, "done").touch()


def _align_the_whole_batch(device):
    """Both processes have the loss of all rows, and after DDP's mean its gradient."""
    from fastreid.utils import comm

    from fastreid_star.methods.m3reid.losses import alignment

    x = torch.randn(8, 5, generator=torch.Generator().manual_seed(0)).to(device).requires_grad_()
    ids, visible = torch.arange(4, device=device).repeat(2), torch.arange(8) < 4
    whole = alignment(x, ids, visible)
    mine = torch.arange(8, device=device) % 2 == comm.get_rank()
    found = alignment(x[mine], ids[mine], visible[mine.cpu()], all_ranks=True)
    torch.testing.assert_close(found, whole)
    expected, own = (torch.autograd.grad(loss, x)[0] for loss in (whole, found))
    torch.testing.assert_close(own[mine], 2 * expected[mine])


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
