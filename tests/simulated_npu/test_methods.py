"""The methods on two simulated NPUs, in bfloat16, in the same processes."""

from pathlib import Path

import pytest
import torch

import simulated_npu

reason = simulated_npu.missing_compiler()
pytestmark = pytest.mark.skipif(reason is not None, reason=str(reason))


def check_ranks(root, folder):
    from fastreid_star.engine.launch import launch

    launch(_train_and_compare, 2, device="npu", args=(root, folder))


AMP = ("SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", "bfloat16")
OPTIONS = ("MODEL.DEVICE", "npu", "SOLVER.MAX_EPOCH", "1", "SOLVER.STEPS", "[]", *AMP)


def _train_and_compare(root, folder):
    from fastreid.utils import comm

    _train_dinogrl(root, folder)
    _train_auxnet(root, f"{folder}/auxnet")
    _train_m3reid(root, f"{folder}/m3reid")
    _train_others(root, folder)
    if comm.is_main_process():
        Path(folder, "done").touch()


def _train(cfg):
    """The trained model, whose weights are the same in both processes."""
    from fastreid.utils import comm

    from fastreid_star.engine.trainer import Trainer

    trainer = Trainer(cfg)
    trainer.train()
    model = trainer.model.module.train()
    state = {n: value.detach().cpu() for n, value in model.named_parameters()}
    for theirs in comm.all_gather(state):
        assert all(torch.equal(state[name], theirs[name]) for name in state)
    return model


def _check_step(model, batch):
    """A step's operators: torch_npu has them all, and no shape follows from the data."""
    from tests.simulated_npu.test_training import assert_on_the_device

    with simulated_npu.recording() as taken:
        sum(model(batch).values()).backward()
    assert_on_the_device(taken)


def _batch(device):
    images = torch.rand(4, 3, 3, 32, 16, device=device)
    targets = torch.tensor([0, 0, 1, 1], device=device)
    batch = {"images": images, "modality": torch.tensor([1, 2, 1, 2]), "targets": targets}
    shapes = torch.randint(0, 256, (4, 3, 32, 16), dtype=torch.uint8)
    return {**batch, "shapes": shapes.to(device)}


def _train_dinogrl(root, folder):
    from tests.methods.dinogrl.test_model import config

    bins = ("SOLVER.IMS_PER_BATCH", "16", "MODEL.DINOGRL.BINS", "[1,2]")
    model = _train(config(root, folder, *OPTIONS, *bins))
    tokens = model.gait.tokens(torch.rand(2, 3, 32, 16, device=model.device))
    assert tokens.last.dtype == tokens.blocks.dtype == torch.float16
    _check_step(model, _batch(model.device))


def _train_auxnet(root, folder):
    """With an auxiliary set; each process has one identity of the two in a batch."""
    from tests.methods.auxnet.test_model import AUXILIARY, config

    model = _train(config(root, folder, *OPTIONS, *AUXILIARY, "MODEL.LOSSES.TRI.ALL_RANKS", "True"))
    images = torch.rand(8, 3, 3, 32, 16, device=model.device)
    batch = {"images": images, "modality": torch.tensor([2, 2, 1, 1] * 2)}
    batch["targets"] = torch.tensor([0, 1, 0, 1, -1, -2, -1, -2], device=model.device)
    _check_step(model, batch)


def _train_others(root, folder):
    from tests.methods.test_runs import METHODS
    from tests.tiny import small_config

    options = ("TEST.EVAL_PERIOD", "0")
    options += ("MODEL.MITML.CONFUSION_EPOCH", "0", "MODEL.IBAN.ANAGLYPH_EPOCH", "0")
    for name in METHODS:
        size = ("SOLVER.IMS_PER_BATCH", "24" if name == "CAJL" else "16")
        model = _train(small_config(name, root, f"{folder}/{name}", *OPTIONS, *options, *size))
        _check_step(model, _batch(model.device))


def _train_m3reid(root, folder):
    from tests.methods.m3reid.test_model import config

    # stride 1: on maps of 4x2, torch's bfloat16 convolution of stride 2 reads memory it must not
    own = ("MODEL.M3REID.ERASING", "0.5", "MODEL.BACKBONE.LAST_STRIDE", "1")
    model = _train(config(root, folder, "SOLVER.IMS_PER_BATCH", "16", *OPTIONS, *own))
    _check_step(model, _batch(model.device))
    _align_the_whole_batch(model.device)


def _align_the_whole_batch(device):
    """Both processes have the loss of all rows, and after DDP's mean its gradient."""
    from fastreid.utils import comm

    from fastreid_star.modeling.losses import ModalityAlignmentLoss

    x = torch.randn(8, 5, generator=torch.Generator().manual_seed(0)).to(device).requires_grad_()
    ids, visible = torch.arange(4, device=device).repeat(2), torch.arange(8) < 4
    whole = ModalityAlignmentLoss()(x, ids, visible)
    mine = torch.arange(8, device=device) % 2 == comm.get_rank()
    of_batch = ModalityAlignmentLoss(all_ranks=True)
    found = of_batch(x[mine], ids[mine], visible[mine.cpu()])
    torch.testing.assert_close(found, whole)
    expected, own = (torch.autograd.grad(loss, x)[0] for loss in (whole, found))
    torch.testing.assert_close(own[mine], 2 * expected[mine])


def test_two_processes_train_in_bfloat16(tiny_root, tmp_path):
    simulated_npu.run(check_ranks, str(tiny_root), str(tmp_path), OMP_NUM_THREADS="1")
    assert (tmp_path / "done").exists()
