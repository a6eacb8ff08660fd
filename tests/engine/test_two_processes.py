"""Two processes give the results of one, stop together, and end with one line.

All that needs two processes is done by one pair of them, one thing after the other: starting a
process takes longer than most of it.
"""

import json
import math
import os
import signal
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from fastreid.utils import comm

from fastreid_star.engine.defaults import argument_parser, setup
from fastreid_star.engine.interruption import Interrupted
from fastreid_star.engine.replay import read_step
from fastreid_star.engine.trainer import Trainer, load_trained
from fastreid_star.errors import UserError
from fastreid_star.weights import read_checkpoint

from ..tiny import STAR_DEMO, small_config, star_config, tiny_options
from .gradients import gradients, largest_difference
from .processes import call_in_processes
from .runs import assert_same_checkpoint
from .test_interruption import SignalAfter

# 4 epochs of 2 steps with everything that has a state; batches of a test that do not divide by two
OPTIONS = (
    "SOLVER.IMS_PER_BATCH", "16", "SOLVER.MAX_EPOCH", "4", "TEST.EVAL_PERIOD", "4",
    "TEST.IMS_PER_BATCH", "6", "MODEL.FREEZE_LAYERS", "['backbone']", "SOLVER.FREEZE_ITERS", "3",
    "SOLVER.WARMUP_ITERS", "3",
)  # fmt: skip
FLOAT16 = ("SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", "float16")
FIRST = 4  # a step in the third epoch: the first has left a checkpoint


def everything(root, folder):
    folder = Path(folder)
    rank = comm.get_rank()
    meet(folder)
    for all_ranks in (True, False):
        found = gradients(torch.device("cpu"), all_ranks=all_ranks)
        torch.save(found, folder / f"gradients{all_ranks}{rank}.pth")
    draw_seed(root, folder)
    train_and_compare(root, folder / "whole")
    lack_a_modality(root, folder / "lack")
    train_methods(root, folder)
    stop_twice(root, folder)
    for what in ("gradient", "skipped", "loss"):
        end_by_rank_1(what, root, folder / what)
    # as on machines that share no folder: only the first finds the checkpoint
    own = folder / "whole" if rank == 0 else folder / "other"
    Trainer(star_config(root, own, *OPTIONS)).resume_or_load(resume=True)


def meet(folder):
    total = torch.tensor([float(comm.get_rank() + 1)])
    dist.all_reduce(total)
    sizes = f"{comm.get_world_size()} {comm.get_local_rank()} {comm.get_local_size()}"
    (folder / f"rank{comm.get_rank()}").write_text(f"{sizes} {total.item()}")


def lack_a_modality(root, output):
    """Where a process's share of a batch may lack a modality, a stem may have no gradient."""
    for sampler, may_lack in (("NaiveIdentitySampler", True), ("TrainingSampler", False)):
        options = (
            *("MODEL.META_ARCHITECTURE", "AuxNet", "MODEL.LOSSES.NAME", "('CrossEntropyLoss',)"),
            *("MODEL.HEADS.NAME", "ClipHead", "MODEL.FRAME_CORRECTOR.NAME", ""),
            *("MODEL.LOSSES.CE_ONLY_EPOCHS", "0", "DATALOADER.SAMPLER_TRAIN", sampler),
        )
        trainer = Trainer(star_config(root, output, *options))
        assert trainer.model.find_unused_parameters is may_lack


def draw_seed(root, folder):
    options = tiny_options(root, folder / "seed", "SEED", "-1")
    cfg = setup(argument_parser("t").parse_args(["--config-file", STAR_DEMO, *options]))
    (folder / f"seed{comm.get_rank()}").write_text(str(cfg.SEED))


def train_and_compare(root, output):
    trainer = Trainer(star_config(root, output, *OPTIONS))
    results = trainer.train()
    weights = comm.gather({n: v.clone() for n, v in trainer.model.module.named_parameters()})
    if comm.is_main_process():
        torch.save({"weights": weights, "results": dict(results)}, output / "ranks.pt")


def train_methods(root, folder):
    """Methods in which a step has its own losses, and the losses their own weights."""
    more = ("SOLVER.IMS_PER_BATCH", "16", "SOLVER.MAX_EPOCH", "4", "SOLVER.STEPS", "[]",
            "TEST.EVAL_PERIOD", "0", "INPUT.CLIP.TRAIN_LENGTH", "1")  # fmt: skip
    for name, options in (("DDAG", ()), ("SGIEL", ("MODEL.SGIEL.CUTMIX", "0.5"))):
        trainer = Trainer(small_config(name, root, folder / name, *more, *options))
        trainer.train()
        state = trainer.model.module.state_dict()
        own = {n: v for n, v in state.items() if n == "graph_weight.weight" or "average" in n}
        own = {n: v for n, v in own.items() if "running" not in n and "tracked" not in n}
        torch.save(own, folder / f"{name}{comm.get_rank()}.pth")


def stop_twice(root, folder):
    """One run that a signal to one rank ends, then one to the launching process."""
    stopped = []
    for step, rank, process in ((3, 1, os.getpid()), (5, 0, os.getppid())):
        trainer = Trainer(star_config(root, folder / "parts", *OPTIONS))
        if comm.get_rank() == rank:
            trainer.register_hooks([SignalAfter(step, process=process)])
        trainer.resume_or_load(resume=True)
        try:
            trainer.train()
        except Interrupted as error:
            saved = read_checkpoint(str(folder / "parts" / "model_last.pth"))
            stopped.append((error.code, saved["iteration"]))
    comm.synchronize()
    trainer = Trainer(star_config(root, folder / "parts", *OPTIONS))
    trainer.resume_or_load(resume=True)
    trainer.train()
    (folder / f"stopped{comm.get_rank()}.json").write_text(json.dumps(stopped))


def end_by_rank_1(what, root, folder):
    """A run in which something is not finite on rank 1 only; its error in ``said<rank>``."""
    more = (*OPTIONS, "MODEL.LOSSES.CE_ONLY_EPOCHS", "0", "TEST.EVAL_PERIOD", "0")
    cfg = star_config(root, folder, *more, *(FLOAT16 if what == "skipped" else ()))
    trainer = Trainer(cfg)
    if trainer.grad_scaler is not None:
        trainer.grad_scaler._init_scale = 1.0  # no overflow but the planted one
        trainer._trainer.max_skipped = 2
    if comm.get_rank() == 1:
        plant(trainer, what)
    with pytest.raises(UserError) as caught:
        trainer.train()
    (folder / f"said{comm.get_rank()}").write_text(str(caught.value))


def plant(trainer, what):
    model = trainer.model.module
    if what == "gradient":
        parameter = model.heads.bottleneck[0].weight
        parameter.register_hook(lambda g: g * (math.inf if trainer.iter >= FIRST else 1))
        return
    honest = model.forward

    def forward(batch):
        found = honest(batch)
        if trainer.iter >= FIRST:
            # its gradients are finite: only rank 1 can see it
            found["loss_defense"] = found["loss_defense"] + math.nan
        return found

    model.forward = forward


@pytest.fixture(scope="module")
def done(tiny_root, tmp_path_factory):
    """The folder in which two processes have done everything, and the line that ended them."""
    folder = tmp_path_factory.mktemp("two")
    with pytest.raises(UserError) as caught:
        call_in_processes(everything, 2, tiny_root, folder)
    return folder, str(caught.value)


def test_they_meet_and_draw_one_seed(done):
    folder, _ = done
    for rank in (0, 1):
        assert (folder / f"rank{rank}").read_text() == f"2 {rank} 2 3.0"
    assert (folder / "seed0").read_text() == (folder / "seed1").read_text()


def test_gradients_are_those_of_one_process_with_the_whole_batch(done):
    alone = gradients(torch.device("cpu"), all_ranks=True)
    assert len(alone) > 60
    assert max(gradient.abs().max().item() for gradient in alone.values()) > 0.1
    together, own = (torch.load(done[0] / f"gradients{which}0.pth") for which in (True, False))
    assert largest_difference(alone, together) < 1e-5
    # mined in each process's share alone, the hardest clips are others
    assert largest_difference(alone, own) > 1e-3


def test_they_end_with_equal_weights_and_evaluate_as_one(done, tiny_root, tmp_path):
    whole = done[0] / "whole"
    ranks = torch.load(whole / "ranks.pt", weights_only=True)
    first, second = ranks["weights"]
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert "losses.SkeletonConsistencyLoss.fc.weight" in first
    cfg = star_config(tiny_root, tmp_path, *OPTIONS)
    model = load_trained(cfg, str(whole / "model_final.pth"))
    assert dict(Trainer.test(cfg, model)) == ranks["results"]
    name = "per_query_SyntheticVCM.csv"
    assert (whole / name).read_text() == (tmp_path / name).read_text()
    assert (tmp_path / name).read_text().count("\n") == 1 + 2 * 8


@pytest.mark.parametrize("name", ["DDAG", "SGIEL"])
def test_numbers_beside_the_weights_are_equal_too(done, name):
    first, second = (torch.load(done[0] / f"{name}{rank}.pth") for rank in (0, 1))
    assert first
    assert all(torch.equal(first[n], second[n]) for n in first)
    assert all(value.abs().max() > 0 for value in first.values() if value.ndim != 1)


def test_two_processes_stop_after_the_same_step_whoever_gets_the_signal(done):
    folder, _ = done
    first, second = (json.loads((folder / f"stopped{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    one, other = first
    assert one == [128 + signal.SIGTERM, 4], "the other process reads the signal one step later"
    assert other[0] == 128 + signal.SIGTERM
    assert other[1] in (6, 7, 8), "forwarding it may take a step more"
    final = "model_final.pth"
    assert_same_checkpoint(folder / "parts" / final, folder / "whole" / final)


@pytest.mark.parametrize(
    ("what", "told", "kept"),
    [
        ("loss", "loss_defense is nan on rank 1 at iteration 4 ", ["nonfinite-4-rank1.pth"]),
        ("skipped", "2 steps in a row were skipped", ["nonfinite-5-rank1.pth"]),
        # gradients are averaged over the ranks
        ("gradient", "the losses are finite, but the gradient of heads.bottleneck.0.weight",
         ["nonfinite-4-rank0.pth", "nonfinite-4-rank1.pth"]),
    ],
)  # fmt: skip
def test_every_rank_is_told_the_same(done, what, told, kept):
    folder = done[0] / what
    said = [(folder / f"said{rank}").read_text() for rank in (0, 1)]
    assert said[0] == said[1]
    assert said[0].startswith(told)
    assert said[0].endswith(str(folder / kept[0]))
    assert sorted(path.name for path in folder.glob("nonfinite*")) == kept
    step = read_step(str(folder / kept[-1]))
    assert (step["rank"], step["world_size"]) == (1, 2)
    # what was saved before is there, and whole
    last = read_checkpoint(str(folder / "model_last.pth"))
    assert all(value.isfinite().all() for value in last["model"].values())


def test_resuming_from_folders_that_differ_is_refused(done):
    assert "do not see the same checkpoint" in done[1]
