"""The methods on two simulated NPUs, in bfloat16."""

from pathlib import Path

import pytest
import torch

import simulated_npu

reason = simulated_npu.missing_compiler()
pytestmark = pytest.mark.skipif(reason is not None, reason=str(reason))


def check_ranks(root, folder):
    from fastreid_star.engine.launch import launch

    launch(_train_and_compare, 2, device="npu", args=(root, folder))


def _configs(root, folder):
    from tests.methods.dinogrl.test_model import config
    from tests.methods.test_runs import METHODS
    from tests.tiny import small_config

    amp = ("SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", "bfloat16")
    steps = ("SOLVER.MAX_EPOCH", "1", "SOLVER.STEPS", "[]")
    options = ("MODEL.DEVICE", "npu", "SOLVER.IMS_PER_BATCH", "16", *amp, *steps)
    yield config(root, f"{folder}/DinoGRL", *options, "MODEL.DINOGRL.BINS", "[1,2]")
    evaluation = ("TEST.EVAL_PERIOD", "0", "MODEL.MITML.CONFUSION_EPOCH", "0")
    evaluation += ("MODEL.IBAN.ANAGLYPH_EPOCH", "0")
    for name in METHODS:
        yield small_config(name, root, f"{folder}/{name}", *options, *evaluation)


def _train_and_compare(root, folder):
    from fastreid.utils import comm

    from fastreid_star.engine.trainer import Trainer
    from tests.simulated_npu.test_training import assert_on_the_device

    for cfg in _configs(root, folder):
        trainer = Trainer(cfg)
        trainer.train()
        model = trainer.model.module.train()
        state = {n: value.detach().cpu() for n, value in model.named_parameters()}
        for theirs in comm.all_gather(state):
            assert all(torch.equal(state[name], theirs[name]) for name in state)
        # a step's operators: torch_npu has them all, and no shape follows from the data
        images = torch.rand(4, 3, 3, 32, 16, device=trainer.device)
        batch = {"images": images, "modality": torch.tensor([1, 2, 1, 2])}
        batch["targets"] = torch.tensor([0, 0, 1, 1], device=trainer.device)
        with simulated_npu.recording() as taken:
            sum(model(batch).values()).backward()
        assert_on_the_device(taken)
        if cfg.MODEL.META_ARCHITECTURE == "DinoGRL":
            tokens = model.gait.tokens(images[0])
            assert tokens.last.dtype == tokens.blocks.dtype == torch.float16
    if comm.is_main_process():
        Path(folder, "done").touch()


def test_two_processes_train_in_bfloat16(tiny_root, tmp_path):
    simulated_npu.run(check_ranks, str(tiny_root), str(tmp_path), OMP_NUM_THREADS="1")
    assert (tmp_path / "done").exists()
