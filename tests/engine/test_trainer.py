"""Whole runs on the tiny synthetic data: training, evaluation, resume, several processes."""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from fastreid.engine.train_loop import HookBase
from fastreid.utils import comm

from fastreid_star.engine import weights as weights_module
from fastreid_star.engine.checkpoint import checkpoint_config, read_checkpoint
from fastreid_star.engine.defaults import argument_parser, load_config, setup
from fastreid_star.engine.trainer import Trainer, load_trained, train_or_evaluate
from fastreid_star.errors import UserError

from .conftest import DEMO, tiny_config, tiny_options
from .processes import call_in_processes

NO_EVALUATION = ("TEST.EVAL_PERIOD", "0")


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


@pytest.fixture
def copied(whole_run, tmp_path):
    """A folder with the complete run in it."""
    shutil.copytree(whole_run[0], tmp_path, dirs_exist_ok=True)
    return tmp_path


class StopAt(HookBase):
    def __init__(self, iteration):
        self.iteration = iteration

    def before_step(self):
        if self.trainer.iter == self.iteration:
            raise KeyboardInterrupt


def stopped(root, output, iteration, *more):
    """A run that ended before this iteration; its checkpoints are those of the epochs before."""
    trainer = Trainer(tiny_config(root, output, *more))
    trainer.register_hooks([StopAt(iteration)])
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    return trainer


def resumed(root, output, *more, **options):
    trainer = Trainer(tiny_config(root, output, *more))
    trainer.resume_or_load(resume=True, **options)
    return trainer


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
    names = ("Rank-1", "Rank-20", "mAP", "mINP")
    assert {f"{way}/{what}" for way in ("I2V", "V2I") for what in names} <= set(results)
    mean = (results["I2V/mAP"] + results["V2I/mAP"]) / 2
    assert results["metric"] == results["mean/mAP"] == pytest.approx(mean)
    assert all(0 <= value <= 100 for value in results.values())


def test_what_a_run_leaves_behind(tiny_root, whole_run):
    output, results = whole_run
    names = {*os.listdir(output)}
    assert {"config.yaml", "metrics.json", "model_best.pth", "model_last.pth"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert (output / "per_query_SyntheticVCM.csv").read_text().count("\n") == 1 + 2 * 8
    final = read_checkpoint(str(output / "model_final.pth"))
    assert (final["epoch"], final["iteration"], final["iters_per_epoch"]) == (2, 9, 3)
    assert final["progress"] == {"seed": 0, "best_metric": pytest.approx(results["metric"])}
    release = final["versions"]["torch"].partition("+")[0]  # a wheel may not state its build
    assert release == torch.__version__.partition("+")[0]
    cfg = tiny_config(tiny_root, output)
    assert checkpoint_config(str(output / "model_final.pth")) == cfg
    assert load_config(str(output / "config.yaml")) == cfg


@pytest.mark.parametrize("iteration", [3, 5, 7])
def test_interrupted_and_resumed_equals_uninterrupted(tiny_root, whole_run, tmp_path, iteration):
    stopped(tiny_root, tmp_path, iteration)
    torch.manual_seed(99)  # what the process did before must not matter
    trainer = resumed(tiny_root, tmp_path)
    assert trainer.start_epoch == iteration // 3
    assert trainer.train() == whole_run[1]
    assert_same_checkpoint(tmp_path / "model_final.pth", whole_run[0] / "model_final.pth")


@pytest.mark.parametrize("size", [0, 1000])
def test_a_run_goes_on_from_the_last_good_checkpoint(tiny_root, whole_run, tmp_path, caplog, size):
    stopped(tiny_root, tmp_path, 7)
    os.truncate(tmp_path / "model_last.pth", size)
    (tmp_path / "model_last.pth.1.0123abcd.tmp").write_text("half of the next one")
    with open(tmp_path / "metrics.json", "a") as file:
        file.write('{"epoch": 2.3, "iter')
    trainer = resumed(tiny_root, tmp_path)
    assert f"Resuming from {tmp_path}/model_last-1.pth" in caplog.text
    assert (trainer.start_epoch, trainer.start_iter) == (1, 3)
    assert trainer.train() == whole_run[1]
    assert_same_checkpoint(tmp_path / "model_final.pth", whole_run[0] / "model_final.pth")
    assert not list(tmp_path.glob("*.tmp"))
    for line in (tmp_path / "metrics.json").read_text().splitlines():
        json.loads(line)


def test_a_new_run_does_not_pass_an_earlier_ones_checkpoints_for_its_own(
    tiny_root, whole_run, copied, caplog
):
    weights = str(copied / "model_best.pth")  # is moved, but only after it was loaded
    short = ("SOLVER.MAX_EPOCH", "1", "SOLVER.STEPS", "()", "MODEL.WEIGHTS", weights)
    trainer = Trainer(tiny_config(tiny_root, copied, *NO_EVALUATION, *short))
    trainer.resume_or_load(resume=False)
    assert f"earlier run were moved to {copied}/earlier-1" in caplog.text
    before = read_checkpoint(str(copied / "earlier-1" / "model_best.pth"))["model"]
    state = trainer.model.state_dict()
    assert all(torch.equal(before[name], value) for name, value in state.items())
    trainer.train()
    assert [path.name for path in copied.glob("*.pth")] == ["model_final.pth"]
    aside = {path.name for path in (copied / "earlier-1").glob("*.pth")}
    assert aside == {path.name for path in whole_run[0].glob("*.pth")}


def test_a_finished_run_is_only_evaluated(tiny_root, whole_run):
    assert resumed(tiny_root, whole_run[0]).train() == whole_run[1]


def test_trained_weights_evaluate_to_what_training_reported(tiny_root, whole_run, tmp_path):
    cfg = tiny_config(tiny_root, tmp_path)
    model = load_trained(cfg, str(whole_run[0] / "model_final.pth"))
    assert not model.training
    assert Trainer.test(cfg, model) == whole_run[1]


# --- what is refused, and leaves the folder alone -------------------------------------------------


def content(folder):
    """Everything in a folder except the log and the lock."""
    paths = [path for path in folder.rglob("*") if path.name not in ("log.txt", ".lock")]
    return {p.name: hashlib.md5(p.read_bytes()).hexdigest() for p in paths if p.is_file()}


def arguments(root, output, *more):
    flags = [word for word in more if word.startswith("--")]
    words = [word for word in more if not word.startswith("--")]
    options = tiny_options(root, output, *words)
    return argument_parser("test").parse_args(["--config-file", DEMO, *flags, *options])


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("SOLVER.MAX_EPOCH", "0"), "MAX_EPOCH"),
        (("MODEL.BACKBONE.DEPTH", "99x"), "DEPTH.*99x"),
        (("--resume", "MODEL.BACKBONE.DEPTH", "small"), "another model|differs"),
        (("--resume", "INPUT.CLIP.LENGTH", "2"), "INPUT.CLIP.LENGTH"),
        (("TEST.RERANK.ENABLED", "True"), "RERANK"),
    ],
)
def test_a_refused_run_leaves_an_earlier_one_as_it_was(tiny_root, copied, more, words):
    before = content(copied)
    with pytest.raises(UserError, match=words):
        train_or_evaluate(arguments(tiny_root, copied, *more))
    assert content(copied) == before


LOCKING = """
import sys
from fastreid_star.files import locked
with locked(sys.argv[1]):
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_a_second_run_in_a_folder_is_refused(tiny_root, copied):
    before = content(copied)
    command = [sys.executable, "-c", LOCKING, str(copied)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as other:
        assert other.stdout.readline() == b"locked\n"
        for flags in ((), ("--resume",)):
            with pytest.raises(UserError, match="another run is writing"):
                train_or_evaluate(arguments(tiny_root, copied, *flags))
        assert content(copied) == before
        other.stdin.close()
    resumed(tiny_root, copied)


def test_without_locks_a_run_trains(tiny_root, tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", no_locks)
    resumed(tiny_root, tmp_path)


@pytest.mark.parametrize(
    "more",
    [
        ("SOLVER.BASE_LR", "0.01"),
        ("SOLVER.WEIGHT_DECAY", "0.01"),
        ("SOLVER.STEPS", "[1]"),
        ("SOLVER.OPT", "SGD"),
        ("SOLVER.BIAS_LR_FACTOR", "2.0"),
        ("INPUT.CLIP.LENGTH", "2"),
        ("MODEL.LOSSES.TRI.MARGIN", "0.5"),
    ],
)
def test_resuming_with_another_config_is_refused_by_its_key(tiny_root, whole_run, tmp_path, more):
    """Half of these had an effect, half had none, without a word."""
    shutil.copytree(whole_run[0], tmp_path, dirs_exist_ok=True)
    key, value = more
    with pytest.raises(
        UserError, match=rf"--resume.*{key} \(.* -> .?{value[:3].replace('[', '.')}"
    ):
        resumed(tiny_root, tmp_path, *more)


def test_changes_that_a_run_can_take_are_listed_or_allowed(tiny_root, tmp_path, caplog):
    stopped(tiny_root, tmp_path, 4)
    resumed(tiny_root, tmp_path, "DATALOADER.NUM_WORKERS", "1", "TEST.EVAL_PERIOD", "1")
    assert "differs" not in caplog.text
    trainer = resumed(tiny_root, tmp_path, "SOLVER.MAX_EPOCH", "4")
    assert "SOLVER.MAX_EPOCH (3 -> 4)" in caplog.text
    assert trainer.max_iter == 12
    more = ("MODEL.LOSSES.TRI.MARGIN", "0.5")
    trainer = resumed(tiny_root, tmp_path, *more, allow_changed=True)
    assert "MODEL.LOSSES.TRI.MARGIN (0.3 -> 0.5)" in caplog.text
    assert trainer.start_iter == 3
    assert trainer.model.losses["TripletLoss"].options["margin"] == 0.5


def test_a_cosine_cannot_be_lengthened(tiny_root, tmp_path):
    cosine = ("SOLVER.SCHED", "CosineAnnealingLR", "SOLVER.WARMUP_EPOCHS", "0")
    cosine += ("SOLVER.WARMUP_ITERS", "0", *NO_EVALUATION)
    stopped(tiny_root, tmp_path, 4, *cosine)
    with pytest.raises(UserError, match="MAX_EPOCH"):
        resumed(tiny_root, tmp_path, *cosine, "SOLVER.MAX_EPOCH", "9")


def test_resuming_inside_the_warm_up_with_longer_epochs_is_refused(tiny_root, tmp_path):
    """The rate stayed below BASE_LR for the rest of the run."""
    warm = ("SOLVER.WARMUP_EPOCHS", "2", *NO_EVALUATION)
    stopped(tiny_root, tmp_path, 4, *warm)
    with pytest.raises(UserError, match="from the warm-up with 3 steps"):
        resumed(tiny_root, tmp_path, *warm, "SOLVER.IMS_PER_BATCH", "12")
    resumed(tiny_root, tmp_path, *warm)


def test_resuming_another_model_is_refused(tiny_root, whole_run):
    with pytest.raises(UserError, match=r"--resume: .*MODEL\.BACKBONE\.DEPTH"):
        resumed(tiny_root, whole_run[0], "MODEL.BACKBONE.DEPTH", "small")
    trainer = Trainer(tiny_config(tiny_root, whole_run[0], "MODEL.BACKBONE.DEPTH", "small"))
    with pytest.raises(UserError, match="is of another model"):
        trainer.resume_or_load(resume=True, allow_changed=True)


def test_weights_of_another_model_are_refused(tiny_root, whole_run, tmp_path):
    path = str(whole_run[0] / "model_final.pth")
    for more in (("MODEL.BACKBONE.DEPTH", "small"), ("MODEL.HEADS.GEM_P", "1.0")):
        with pytest.raises(UserError, match=f"differs.*{more[0]}"):
            load_trained(tiny_config(tiny_root, tmp_path, *more), path)
    load_trained(tiny_config(tiny_root, tmp_path, *more), path, allow_changed=True)
    cfg = tiny_config(tiny_root, tmp_path, "MODEL.BACKBONE.DEPTH", "small")
    with pytest.raises(UserError, match="another model"):
        load_trained(cfg, path, allow_changed=True)


def test_features_asked_for_without_effect_are_refused_in_evaluation(tiny_root, copied):
    weights = ("MODEL.WEIGHTS", str(copied / "model_best.pth"))
    for key in ("TEST.AQE.ENABLED", "TEST.ROC.ENABLED"):
        with pytest.raises(UserError, match=key):
            train_or_evaluate(arguments(tiny_root, copied, "--eval-only", *weights, key, "True"))


# --- weights from elsewhere -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained_weights(whole_run):
    return read_checkpoint(str(whole_run[0] / "model_final.pth"))["model"]


def of_data_parallel(weights):
    return {"state_dict": {f"module.{name}": value for name, value in weights.items()}}


def of_the_model_zoo(weights):
    names = {"heads.weight": "heads.classifier.weight"}
    renamed = {}
    for name, value in weights.items():
        name = names.get(name, name).replace("heads.bottleneck.0", "heads.bnneck")
        renamed[name.replace("frame_heads.bnneck", "frame_heads.bottleneck.0")] = value
    return {"model": renamed}


@pytest.mark.parametrize("wrap", [dict, of_data_parallel, of_the_model_zoo])
def test_weights_of_any_wrapping_are_loaded(tiny_root, tmp_path, trained_weights, wrap):
    path = tmp_path / "weights.pth"
    torch.save(wrap(trained_weights), path)
    cfg = tiny_config(tiny_root, tmp_path / "run", "MODEL.WEIGHTS", path)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    for model in (trainer.model, load_trained(cfg, str(path))):
        for name, value in model.state_dict().items():
            assert torch.equal(value, trained_weights[name]), name


def test_weights_that_fit_nothing_are_refused(tiny_root, tmp_path, trained_weights):
    torch.save({f"encoder.{name}": v for name, v in trained_weights.items()}, tmp_path / "x.pth")
    trainer = Trainer(tiny_config(tiny_root, tmp_path, "MODEL.WEIGHTS", tmp_path / "x.pth"))
    with pytest.raises(UserError, match=r"MODEL\.WEIGHTS .*fits only 0 of .* random"):
        trainer.resume_or_load(resume=False)


def pretrained(root, output, path):
    depth = ("MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.BACKBONE.DEPTH", "18x")
    use = ("MODEL.BACKBONE.PRETRAIN", "True", "MODEL.BACKBONE.PRETRAIN_PATH", path)
    return tiny_config(root, output, *depth, *use, "MODEL.BACKBONE.FEAT_DIM", "0")


def test_pretrained_weights_are_unwrapped_and_must_fit(tiny_root, tmp_path):
    from fastreid.modeling.backbones import build_backbone

    path = tmp_path / "imagenet.pth"
    cfg = tiny_config(tiny_root, tmp_path, "MODEL.BACKBONE.NAME", "build_resnet_backbone",
                      "MODEL.BACKBONE.DEPTH", "18x", "MODEL.BACKBONE.FEAT_DIM", "0")  # fmt: skip
    weights = build_backbone(cfg).state_dict()
    torch.save(of_data_parallel(weights), path)
    model = Trainer.build_model(pretrained(tiny_root, tmp_path, path))
    for stem in (model.backbone.visible_stem, model.backbone.infrared_stem):
        assert torch.equal(stem[0].weight, weights["conv1.weight"])
    torch.save({f"encoder.{name}": value for name, value in weights.items()}, path)
    with pytest.raises(UserError, match=r"PRETRAIN_PATH .*fits only 0 of"):
        Trainer.build_model(pretrained(tiny_root, tmp_path, path))
    path.write_text("hello")
    with pytest.raises(UserError, match="damaged or not a checkpoint"):
        Trainer.build_model(pretrained(tiny_root, tmp_path, path))


def test_a_read_that_fails_for_a_moment_is_repeated_and_nothing_is_renamed(
    tiny_root, tmp_path, monkeypatch
):
    stopped(tiny_root, tmp_path, 7)
    names = sorted(os.listdir(tmp_path))
    load, failures = weights_module.load_plain, [2, 99]

    def failing(path):
        if failures[0]:
            failures[0] -= 1
            raise OSError(errno.EIO, "Input/output error", path)
        return load(path)

    monkeypatch.setattr(weights_module, "load_plain", failing)
    monkeypatch.setattr(weights_module, "PAUSE", 0)
    assert resumed(tiny_root, tmp_path).start_iter == 6
    failures[0] = 99
    with pytest.raises(UserError, match=r"model_last\.pth cannot be read \(Input/output error\)"):
        resumed(tiny_root, tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted({*names, ".lock"})


# --- losses, precision, layout --------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_mixed_precision_trains_and_keeps_its_scaler(tiny_root, tmp_path, dtype):
    amp = ["SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", dtype, "SOLVER.MAX_EPOCH", "2"]
    # torch 2.13's bfloat16 convolution on the CPU gives NaN for maps of 4x2 with stride 2
    size = ["INPUT.SIZE_TRAIN", "[64, 32]", "INPUT.SIZE_TEST", "[64, 32]"]
    trainer = Trainer(tiny_config(tiny_root, tmp_path, *amp, *size))
    before = trainer.model.heads.weight.detach().clone()
    trainer.train()
    assert not torch.equal(trainer.model.heads.weight, before)
    saved = read_checkpoint(str(tmp_path / "model_final.pth"))
    assert ("grad_scaler" in saved) == (dtype == "float16")


def test_cross_entropy_alone_for_the_first_epochs(tiny_root, tmp_path):
    seen = []

    class Watch(HookBase):
        def after_step(self):
            latest = {name for name in self.trainer.storage.latest() if name.startswith("loss_")}
            seen.append("loss_defense" in latest)

    trainer = Trainer(tiny_config(tiny_root, tmp_path, *NO_EVALUATION))
    trainer.register_hooks([Watch()])
    assert trainer.train() == {}
    assert seen == [False] * 3 + [True] * 6


def test_the_log_counts_epochs_from_one(tiny_root, tmp_path, caplog):
    trainer = Trainer(tiny_config(tiny_root, tmp_path, *NO_EVALUATION, "SOLVER.LOG_PERIOD", "1"))
    with caplog.at_level("INFO"):
        trainer.train()
    assert "from epoch 1 of 3" in caplog.text
    lines = [r.getMessage() for r in caplog.records if "epoch/iter" in r.getMessage()]
    assert [line.split("epoch/iter: ")[1].split("/")[0] for line in lines] == list("111222333")


def test_channels_last_gives_the_same_step_in_another_layout(tiny_root, tmp_path):
    """Same losses and gradients up to the rounding of sums in another order."""
    runs = {}
    for value in ("False", "True"):
        cfg = tiny_config(tiny_root, tmp_path / value, "MODEL.CHANNELS_LAST", value)
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
        gradients = {n: p.grad for n, p in trainer.model.named_parameters() if p.grad is not None}
        runs[value] = (weights, losses, gradients, layouts)
    assert not any(runs["False"][3])
    assert runs["True"][3]
    assert all(runs["True"][3])
    for ours, theirs in zip(runs["True"][1].values(), runs["False"][1].values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    for name, gradient in runs["True"][2].items():
        expected = runs["False"][2][name]
        assert (gradient - expected).norm() < 1e-4 * expected.norm() + 1e-7, name


# --- several processes ----------------------------------------------------------------------------


def train_on_ranks(root, output, config, *more):
    # two identities for each process, or there is no negative
    options = tiny_options(root, output, "SOLVER.IMS_PER_BATCH", "16", *more)
    trainer = Trainer(load_config(config, options))
    results = trainer.train()
    weights = comm.gather({n: v.clone() for n, v in trainer.model.module.named_parameters()})
    if comm.is_main_process():
        torch.save({"weights": weights, "results": dict(results)}, os.path.join(output, "ranks.pt"))


def test_two_processes_end_with_equal_weights_and_evaluate_as_one(tiny_root, tmp_path):
    call_in_processes(train_on_ranks, 2, tiny_root, tmp_path, DEMO)
    ranks = torch.load(tmp_path / "ranks.pt", weights_only=True)
    first, second = ranks["weights"]
    assert all(torch.equal(first[name], second[name]) for name in first)
    cfg = tiny_config(tiny_root, tmp_path)
    model = load_trained(cfg, str(tmp_path / "model_final.pth"))
    assert dict(Trainer.test(cfg, model)) == ranks["results"]


def test_star_trains_in_two_processes_while_some_of_its_losses_rest(tiny_root, tmp_path):
    star = DEMO.replace("SAD_demo", "STAR_demo")
    call_in_processes(train_on_ranks, 2, tiny_root, tmp_path, star, *NO_EVALUATION)
    first, second = torch.load(tmp_path / "ranks.pt", weights_only=True)["weights"]
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert "losses.SkeletonConsistencyLoss.fc.weight" in first


def resume_in_own_folder(root, output):
    """As on machines that share no folder: only the first finds the checkpoint."""
    folder = os.path.join(output, str(comm.get_rank()))
    Trainer(tiny_config(root, folder, "SOLVER.IMS_PER_BATCH", "16")).resume_or_load(resume=True)


def test_resuming_from_folders_that_differ_is_refused(tiny_root, whole_run, tmp_path):
    shutil.copytree(whole_run[0], tmp_path / "0")
    with pytest.raises(UserError, match="do not see the same checkpoint"):
        call_in_processes(resume_in_own_folder, 2, tiny_root, tmp_path)


def draw_seed(root, output):
    cfg = setup(
        argument_parser("t").parse_args(
            ["--config-file", DEMO, *tiny_options(root, output, "SEED", "-1")]
        )
    )
    with open(os.path.join(output, f"seed{comm.get_rank()}"), "w") as file:
        file.write(str(cfg.SEED))


@pytest.mark.long
def test_a_fresh_seed_is_the_same_in_all_processes(tiny_root, tmp_path):
    call_in_processes(draw_seed, 2, tiny_root, tmp_path)
    first, second = ((tmp_path / f"seed{rank}").read_text() for rank in (0, 1))
    assert first == second
