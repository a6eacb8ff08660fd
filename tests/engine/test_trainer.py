"""Whole runs on the tiny synthetic data: training, evaluation, resume, several processes."""

import json
import os
import shutil

import pytest
import torch
from fastreid.config import get_cfg
from fastreid.engine.train_loop import HookBase
from fastreid.utils import comm

from fastreid_star.engine.checkpoint import read_checkpoint
from fastreid_star.engine.defaults import argument_parser, load_config, setup
from fastreid_star.engine.launch import launch
from fastreid_star.engine.train_loop import step_seed
from fastreid_star.engine.trainer import Trainer, load_trained
from fastreid_star.errors import UserError

from .conftest import DEMO, tiny_config, tiny_options


def assert_same_checkpoint(one, other):
    one, other = (read_checkpoint(str(path)) for path in (one, other))
    for data in (one, other):
        assert "OUTPUT_DIR" in data.pop("config")  # in which they differ
    assert one.keys() == other.keys()
    assert torch.utils._pytree.tree_structure(one) == torch.utils._pytree.tree_structure(other)
    for a, b in zip(
        torch.utils._pytree.tree_leaves(one), torch.utils._pytree.tree_leaves(other), strict=True
    ):
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@pytest.fixture(scope="module")
def whole_run(tiny_root, tmp_path_factory):
    """One uninterrupted run: (output folder, results)."""
    output = tmp_path_factory.mktemp("whole")
    trainer = Trainer(tiny_config(tiny_root, output))
    trainer.resume_or_load(resume=False)
    return output, trainer.train()


def test_training_changes_every_weight_and_reports_both_directions(tiny_root, tmp_path):
    trainer = Trainer(tiny_config(tiny_root, tmp_path))
    before = {
        name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad
    }
    results = trainer.train()
    assert before
    for name, p in trainer.model.named_parameters():
        if p.requires_grad:
            assert not torch.equal(p, before[name]), name
    assert {
        f"{way}/{what}" for way in ("I2V", "V2I") for what in ("Rank-1", "Rank-20", "mAP", "mINP")
    } <= set(results)
    assert (
        results["metric"]
        == results["mean/mAP"]
        == pytest.approx((results["I2V/mAP"] + results["V2I/mAP"]) / 2)
    )
    assert all(0 <= value <= 100 for value in results.values())


def test_what_a_run_leaves_behind(whole_run):
    output, results = whole_run
    assert {
        "config.yaml",
        "metrics.json",
        "model_best.pth",
        "model_final.pth",
        "model_last.pth",
    } <= {*os.listdir(output)}
    assert any(name.startswith("events.out.tfevents") for name in os.listdir(output))
    assert (output / "per_query_SyntheticVCM.csv").read_text().count("\n") == 1 + 2 * 8
    final = read_checkpoint(str(output / "model_final.pth"))
    assert final["epoch"] == 2
    assert final["progress"] == {"seed": 0, "best_metric": pytest.approx(results["metric"])}


class StopAt(HookBase):
    def __init__(self, iteration):
        self.iteration = iteration

    def before_step(self):
        if self.trainer.iter == self.iteration:
            raise KeyboardInterrupt


@pytest.mark.parametrize("iteration", [3, 5, 7])
def test_interrupted_and_resumed_equals_uninterrupted(tiny_root, whole_run, tmp_path, iteration):
    cfg = tiny_config(tiny_root, tmp_path)
    trainer = Trainer(cfg)
    assert trainer.max_iter == 9
    trainer.register_hooks([StopAt(iteration)])
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    torch.manual_seed(99)  # whatever the process did before must not matter
    resumed = Trainer(cfg)
    resumed.resume_or_load(resume=True)
    assert resumed.start_epoch == iteration // 3
    results = resumed.train()
    assert results == whole_run[1]
    assert_same_checkpoint(tmp_path / "model_final.pth", whole_run[0] / "model_final.pth")


@pytest.mark.parametrize("size", [0, 1000])
def test_a_run_goes_on_from_the_last_good_checkpoint(tiny_root, whole_run, tmp_path, caplog, size):
    cfg = tiny_config(tiny_root, tmp_path)
    trainer = Trainer(cfg)
    trainer.register_hooks([StopAt(7)])
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    os.truncate(tmp_path / "model_last.pth", size)
    (tmp_path / "model_last.pth.1.0123abcd.tmp").write_text("half of the next one")
    with open(tmp_path / "metrics.json", "a") as file:
        file.write('{"epoch": 2.3, "iter')
    resumed = Trainer(cfg)
    resumed.resume_or_load(resume=True)
    assert f"goes on from {tmp_path}/model_last-1.pth instead" in caplog.text
    assert (resumed.start_epoch, resumed.start_iter) == (1, 3)
    assert resumed.train() == whole_run[1]
    assert_same_checkpoint(tmp_path / "model_final.pth", whole_run[0] / "model_final.pth")
    assert not list(tmp_path.glob("*.tmp"))
    for line in (tmp_path / "metrics.json").read_text().splitlines():
        json.loads(line)


def test_where_no_checkpoint_is_good_nothing_is_trained(tiny_root, tmp_path):
    (tmp_path / "last_checkpoint").write_text("model_last.pth")
    with pytest.raises(
        UserError, match=r"^--resume: .*last_checkpoint names 'model_last\.pth', which is not t"
    ):
        Trainer(tiny_config(tiny_root, tmp_path)).resume_or_load(resume=True)


def test_a_new_run_does_not_pass_an_earlier_ones_checkpoints_for_its_own(
    tiny_root, whole_run, tmp_path, caplog
):
    shutil.copytree(whole_run[0], tmp_path, dirs_exist_ok=True)
    weights = str(tmp_path / "model_best.pth")  # which is moved, but only once it is loaded
    options = (
        "TEST.EVAL_PERIOD",
        "0",
        "SOLVER.MAX_EPOCH",
        "1",
        "SOLVER.STEPS",
        "()",
        "MODEL.WEIGHTS",
        weights,
    )
    trainer = Trainer(tiny_config(tiny_root, tmp_path, *options))
    trainer.resume_or_load(resume=False)
    assert f"checkpoints of an earlier one are now in {tmp_path}/earlier-1" in caplog.text
    before = read_checkpoint(str(tmp_path / "earlier-1" / "model_best.pth"))["model"]
    assert all(
        torch.equal(before[name], value) for name, value in trainer.model.state_dict().items()
    )
    trainer.train()
    assert [path.name for path in tmp_path.glob("*.pth")] == ["model_final.pth"]
    names, aside = (
        {path.name for path in folder.glob("*.pth")}
        for folder in (whole_run[0], tmp_path / "earlier-1")
    )
    assert aside == names
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"


def test_a_checkpoint_tells_what_it_was_trained_with(tiny_root, whole_run, tmp_path):
    saved = read_checkpoint(str(whole_run[0] / "model_final.pth"))
    (tmp_path / "config.yaml").write_text(saved["config"])
    assert load_config(str(tmp_path / "config.yaml")) == tiny_config(tiny_root, whole_run[0])
    assert saved["versions"]["torch"] == torch.__version__
    assert (saved["iteration"], saved["iters_per_epoch"]) == (9, 3)


def test_a_finished_run_is_only_evaluated(tiny_root, whole_run):
    trainer = Trainer(tiny_config(tiny_root, whole_run[0]))
    trainer.resume_or_load(resume=True)
    assert trainer.train() == whole_run[1]


def test_trained_weights_evaluate_to_what_training_reported(tiny_root, whole_run, tmp_path):
    cfg = tiny_config(tiny_root, tmp_path)
    model = load_trained(cfg, str(whole_run[0] / "model_final.pth"))
    assert not model.training
    assert Trainer.test(cfg, model) == whole_run[1]


def test_weights_of_another_model_are_refused(tiny_root, whole_run, tmp_path):
    cfg = tiny_config(tiny_root, tmp_path, "MODEL.BACKBONE.DEPTH", "small")
    with pytest.raises(
        UserError, match=r"is of another model: .* use the config it was trained with"
    ):
        load_trained(cfg, str(whole_run[0] / "model_final.pth"))


def test_resuming_another_model_is_refused(tiny_root, whole_run):
    trainer = Trainer(tiny_config(tiny_root, whole_run[0], "MODEL.BACKBONE.DEPTH", "small"))
    with pytest.raises(UserError, match=r"--resume: .*model_final\.pth is of another model"):
        trainer.resume_or_load(resume=True)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_mixed_precision_trains_and_keeps_its_scaler(tiny_root, tmp_path, dtype):
    amp = ["SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", dtype, "SOLVER.MAX_EPOCH", "2"]
    # torch 2.13's bfloat16 convolution on the CPU gives NaN for maps of 4x2 with stride 2: keep the maps larger
    size = ["INPUT.SIZE_TRAIN", "[64, 32]", "INPUT.SIZE_TEST", "[64, 32]"]
    trainer = Trainer(tiny_config(tiny_root, tmp_path, *amp, *size))
    before = trainer.model.heads.weight.detach().clone()
    trainer.train()
    assert not torch.equal(trainer.model.heads.weight, before)
    saved = read_checkpoint(str(tmp_path / "model_final.pth"))
    assert ("grad_scaler" in saved) == (dtype == "float16")


def test_style_and_dropout_of_a_step_follow_from_its_number():
    seeds = {
        step_seed(seed, rank, step) for seed in range(3) for rank in range(3) for step in range(50)
    }
    assert len(seeds) == 450
    assert step_seed(1, 2, 3) == step_seed(1, 2, 3)
    assert min(seeds) >= 0
    assert max(seeds) < 2**63


def test_cross_entropy_alone_for_the_first_epochs(tiny_root, tmp_path):
    seen = []

    class Watch(HookBase):
        def after_step(self):
            seen.append(
                set(self.trainer.storage.latest()) & {"loss_cls", "loss_cls_frame", "loss_defense"}
            )

    trainer = Trainer(tiny_config(tiny_root, tmp_path, "TEST.EVAL_PERIOD", "0"))
    trainer.register_hooks([Watch()])
    assert trainer.train() == {}
    assert (
        seen
        == [{"loss_cls", "loss_cls_frame"}] * 3
        + [{"loss_cls", "loss_cls_frame", "loss_defense"}] * 6
    )


def train_on_ranks(root, output, config, *more):
    # two identities for each process, or there is no negative
    trainer = Trainer(
        load_config(config, tiny_options(root, output, "SOLVER.IMS_PER_BATCH", "16", *more))
    )
    results = trainer.train()
    weights = comm.gather(
        {name: value.clone() for name, value in trainer.model.module.named_parameters()}
    )
    if comm.is_main_process():
        torch.save({"weights": weights, "results": dict(results)}, os.path.join(output, "ranks.pt"))


def test_two_processes_end_with_equal_weights_and_evaluate_as_one(tiny_root, tmp_path):
    launch(train_on_ranks, 2, device="cpu", args=(str(tiny_root), str(tmp_path), DEMO))
    ranks = torch.load(tmp_path / "ranks.pt", weights_only=True)
    first, second = ranks["weights"]
    assert all(torch.equal(first[name], second[name]) for name in first)
    cfg = tiny_config(tiny_root, tmp_path)
    assert (
        dict(Trainer.test(cfg, load_trained(cfg, str(tmp_path / "model_final.pth"))))
        == ranks["results"]
    )


def test_star_trains_in_two_processes_while_some_of_its_losses_rest(tiny_root, tmp_path):
    star = DEMO.replace("SAD_demo", "STAR_demo")
    launch(
        train_on_ranks,
        2,
        device="cpu",
        args=(str(tiny_root), str(tmp_path), star, "TEST.EVAL_PERIOD", "0"),
    )
    first, second = torch.load(tmp_path / "ranks.pt", weights_only=True)["weights"]
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert "consistency.fc.weight" in first


def resume_in_own_folder(root, output):
    """As on machines that share no folder: only the first finds the checkpoint."""
    folder = os.path.join(output, str(comm.get_rank()))
    Trainer(tiny_config(root, folder, "SOLVER.IMS_PER_BATCH", "16")).resume_or_load(resume=True)


def test_resuming_from_folders_that_differ_is_refused(tiny_root, whole_run, tmp_path):
    shutil.copytree(whole_run[0], tmp_path / "0")
    with pytest.raises(UserError, match="must be one folder that all machines see"):
        launch(resume_in_own_folder, 2, device="cpu", args=(str(tiny_root), str(tmp_path)))


def draw_seed(root, output):
    arguments = ["--config-file", DEMO, *tiny_options(root, output, "SEED", "-1")]
    cfg = setup(argument_parser("test").parse_args(arguments))
    with open(os.path.join(output, f"seed{comm.get_rank()}"), "w") as file:
        file.write(str(cfg.SEED))


def test_a_fresh_seed_is_the_same_in_all_processes(tiny_root, tmp_path):
    launch(draw_seed, 2, device="cpu", args=(str(tiny_root), str(tmp_path)))
    first, second = ((tmp_path / f"seed{rank}").read_text() for rank in (0, 1))
    assert first == second
    assert int(first) == load_config(str(tmp_path / "config.yaml")).SEED


def test_one_identity_has_no_negative(tiny_root, tmp_path):
    with pytest.raises(
        UserError, match=r"TripletLoss needs two identities .* raise SOLVER\.IMS_PER_BATCH"
    ):
        Trainer(tiny_config(tiny_root, tmp_path, "SOLVER.IMS_PER_BATCH", "4"))


def test_the_config_of_the_demo_is_the_defaults_but_for_what_it_names():
    assert set(load_config(DEMO)) == set(get_cfg())


@pytest.mark.parametrize("keep", [True, False])
def test_the_config_says_whether_memory_is_kept(tiny_root, tmp_path, monkeypatch, keep):
    asked = []
    monkeypatch.setattr("fastreid_star.engine.device.keep_freed_memory", lambda: asked.append(True))
    Trainer.build_model(tiny_config(tiny_root, tmp_path, "MODEL.CPU.KEEP_MEMORY", keep))
    assert bool(asked) == keep


def test_channels_last_gives_the_same_step_in_another_layout(tiny_root, tmp_path):
    """Same losses and gradients up to the rounding of sums in another order, by maps that do lie otherwise."""
    star = (
        "MODEL.META_ARCHITECTURE",
        "STAR",
        "MODEL.HEADS.NAME",
        "GATGeMHead",
        "DATASETS.SKELETONS",
        "skeletons",
    )
    runs = {}
    for value in ("False", "True"):
        cfg = tiny_config(tiny_root, tmp_path / value, *star, "MODEL.CHANNELS_LAST", value)
        trainer = Trainer(cfg)
        layouts = []
        for stage in (trainer.model.backbone.visible_stem, *trainer.model.backbone.stages):
            stage.register_forward_hook(
                lambda module, inputs, maps, seen=layouts: seen.append(
                    maps.is_contiguous(memory_format=torch.channels_last)
                )
            )
        if runs:
            trainer.model.load_state_dict(runs["False"][0])
        weights = {name: value.clone() for name, value in trainer.model.state_dict().items()}
        torch.manual_seed(0)
        losses = trainer.model.train()(next(iter(trainer.data_loader)))
        sum(losses.values()).backward()
        parameters = dict(trainer.model.named_parameters())
        gradients = {name: p.grad for name, p in parameters.items() if p.grad is not None}
        assert all(p.grad is None or p.grad.stride() == p.stride() for p in parameters.values())
        runs[value] = (weights, losses, gradients, layouts)
    assert not any(runs["False"][3])
    assert len(runs["True"][3]) > 5
    assert all(runs["True"][3])
    for ours, theirs in zip(runs["True"][1].values(), runs["False"][1].values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert runs["True"][2].keys() == runs["False"][2].keys()
    for name, gradient in runs["True"][2].items():
        expected = runs["False"][2][name]
        assert (gradient - expected).norm() < 1e-4 * expected.norm() + 1e-7, name
