"""Whole runs on the tiny synthetic data: training, evaluation, resume."""

import errno
import fcntl
import hashlib
import json
import logging
import os
import shutil
import time

import pytest
import torch
import yaml
from fastreid.engine.train_loop import HookBase

from fastreid_star.engine.checkpoint import checkpoint_config
from fastreid_star.engine.config_changes import check_resumed
from fastreid_star.engine.defaults import argument_parser, load_config
from fastreid_star.engine.trainer import Trainer, load_trained, train_or_evaluate
from fastreid_star.errors import UserError
from fastreid_star.files import locked
from fastreid_star.weights import read_checkpoint, read_weights

from ..forked import start_forked
from ..tiny import DEMO, tiny_config, tiny_options

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


class WholeRun:
    """One uninterrupted run, with what its log said and which losses each step had."""

    def __init__(self, root, folder):
        self.folder, self.losses, self.lines = folder, [], []
        trainer = Trainer(tiny_config(root, folder, "SOLVER.LOG_PERIOD", "1"))
        parameters = {n: p for n, p in trainer.model.named_parameters() if p.requires_grad}
        before = {name: p.detach().clone() for name, p in parameters.items()}
        trainer.model.register_forward_hook(self._note)
        handler = logging.Handler()
        handler.emit = lambda record: self.lines.append(record.getMessage())
        loggers = [logging.getLogger(name) for name in ("fastreid", "fastreid_star")]
        for logger in loggers:
            logger.addHandler(handler)
            logger.setLevel(logging.INFO)
        trainer.resume_or_load(resume=False)
        self.results = trainer.train()
        for logger in loggers:
            logger.removeHandler(handler)
        self.unchanged = [n for n, p in parameters.items() if torch.equal(p, before[n])]

    def _note(self, module, inputs, output):
        if module.training:
            self.losses.append(set(output))


@pytest.fixture(scope="module")
def whole_run(tiny_root, tmp_path_factory):
    return WholeRun(tiny_root, tmp_path_factory.mktemp("whole"))


@pytest.fixture
def copied(whole_run, tmp_path):
    """A folder with the complete run in it."""
    shutil.copytree(whole_run.folder, tmp_path, dirs_exist_ok=True)
    return tmp_path


class StopAt(HookBase):
    def __init__(self, iteration):
        self.iteration = iteration

    def before_step(self):
        if self.trainer.iter == self.iteration:
            raise KeyboardInterrupt


def stopped(root, output, iteration):
    """A run that ended before this iteration; its checkpoints are those of the epochs before."""
    trainer = Trainer(tiny_config(root, output))
    trainer.register_hooks([StopAt(iteration)])
    with pytest.raises(KeyboardInterrupt):
        trainer.train()


def resumed(root, output, *more, **options):
    trainer = Trainer(tiny_config(root, output, *more))
    trainer.resume_or_load(resume=True, **options)
    return trainer


def test_training_changes_every_weight_and_reports_both_directions(whole_run):
    assert whole_run.unchanged == []
    results = whole_run.results
    names = ("Rank-1", "Rank-20", "mAP", "mINP")
    assert {f"{way}/{what}" for way in ("I2V", "V2I") for what in names} <= set(results)
    mean = (results["I2V/mAP"] + results["V2I/mAP"]) / 2
    assert results["metric"] == results["mean/mAP"] == pytest.approx(mean)
    assert all(0 <= value <= 100 for value in results.values())


def test_cross_entropy_alone_for_the_first_epochs(whole_run):
    # before the first step, one sample of the test set is evaluated
    assert ["loss_defense" in losses for losses in whole_run.losses] == [False] * 3 + [True] * 6


def test_the_log_counts_epochs_from_one(whole_run):
    assert any("from epoch 1 of 3" in line for line in whole_run.lines)
    lines = [line for line in whole_run.lines if "epoch/iter" in line]
    assert [line.split("epoch/iter: ")[1].split("/")[0] for line in lines] == list("111222333")


def test_what_a_run_leaves_behind(tiny_root, whole_run):
    output = whole_run.folder
    names = {*os.listdir(output)}
    assert {"config.yaml", "metrics.json", "model_best.pth", "model_last.pth"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert (output / "per_query_SyntheticVCM.csv").read_text().count("\n") == 1 + 2 * 8
    final = read_checkpoint(str(output / "model_final.pth"))
    assert (final["epoch"], final["iteration"], final["iters_per_epoch"]) == (2, 9, 3)
    best = pytest.approx(whole_run.results["metric"])
    assert final["progress"] == {"seed": 0, "best_metric": best}
    release = final["versions"]["torch"].partition("+")[0]  # a wheel may not state its build
    assert release == torch.__version__.partition("+")[0]
    cfg = tiny_config(tiny_root, output, "SOLVER.LOG_PERIOD", "1")
    assert checkpoint_config(str(output / "model_final.pth")) == cfg
    assert load_config(str(output / "config.yaml")) == cfg


def test_interrupted_and_resumed_equals_uninterrupted(tiny_root, whole_run, tmp_path):
    stopped(tiny_root, tmp_path, 5)
    torch.manual_seed(99)  # what the process did before must not matter
    trainer = resumed(tiny_root, tmp_path, "SOLVER.LOG_PERIOD", "1")
    assert trainer.start_epoch == 1
    assert trainer.train() == whole_run.results
    assert_same_checkpoint(tmp_path / "model_final.pth", whole_run.folder / "model_final.pth")


def test_a_run_goes_on_from_the_last_good_checkpoint(tiny_root, whole_run, tmp_path, caplog):
    stopped(tiny_root, tmp_path, 7)
    os.truncate(tmp_path / "model_last.pth", 1000)
    (tmp_path / "model_last.pth.tmp").write_text("half of the next one")
    with open(tmp_path / "metrics.json", "a") as file:
        file.write('{"epoch": 2.3, "iter')
    trainer = resumed(tiny_root, tmp_path, "SOLVER.LOG_PERIOD", "1")
    assert f"Resuming from {tmp_path}/model_last-1.pth" in caplog.text
    assert (trainer.start_epoch, trainer.start_iter) == (1, 3)
    assert trainer.train() == whole_run.results
    assert_same_checkpoint(tmp_path / "model_final.pth", whole_run.folder / "model_final.pth")
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
    assert aside == {path.name for path in whole_run.folder.glob("*.pth")}


def test_a_finished_run_is_only_evaluated(tiny_root, whole_run):
    assert resumed(tiny_root, whole_run.folder).train() == whole_run.results


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
        (("--resume", "INPUT.CLIP.LENGTH", "2"), r"INPUT.CLIP.LENGTH \(3 -> 2\)"),
        (("TEST.FLIP.ENABLED", "True"), "FLIP"),
    ],
)
def test_a_refused_run_leaves_an_earlier_one_as_it_was(tiny_root, copied, more, words):
    before = content(copied)
    with pytest.raises(UserError, match=words):
        train_or_evaluate(arguments(tiny_root, copied, *more))
    assert content(copied) == before


def hold(folder):
    with locked(folder):
        (folder / "held").touch()
        time.sleep(100)


def test_a_second_run_in_a_folder_is_refused(tiny_root, copied):
    pid = start_forked(hold, copied)
    while not (copied / "held").exists():
        time.sleep(0.01)
    before = content(copied)
    with pytest.raises(UserError, match="another run is writing"):
        train_or_evaluate(arguments(tiny_root, copied, "--resume"))
    assert content(copied) == before
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    resumed(tiny_root, copied)


def test_without_locks_a_run_trains(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", no_locks)
    with locked(tmp_path):
        pass


@pytest.mark.parametrize(
    "more",
    [
        ("SOLVER.BASE_LR", "0.01"),
        ("SOLVER.STEPS", "[1]"),
        ("SOLVER.OPT", "SGD"),
        ("MODEL.LOSSES.TRI.MARGIN", "0.5"),
        ("SOLVER.SCHED", "CosineAnnealingLR"),
        ("SOLVER.SCHED", "CosineAnnealingLR", "SOLVER.MAX_EPOCH", "9"),
    ],
)
def test_resuming_with_another_config_is_refused_by_its_key(more):
    """Half of these had an effect, half had none, without a word."""
    key = more[-2]
    saved = load_config(DEMO, ["SEED", "0", *more[:-2]])
    with pytest.raises(UserError, match=rf"--resume.*{key} \(.* -> "):
        check_resumed(saved, load_config(DEMO, ["SEED", "0", *more]), allow=False)


def test_changes_that_a_run_can_take_are_listed_or_allowed(tiny_root, copied, caplog):
    resumed(tiny_root, copied, "DATALOADER.NUM_WORKERS", "1", "TEST.EVAL_PERIOD", "1")
    assert "differs" not in caplog.text
    more = ("MODEL.LOSSES.TRI.MARGIN", "0.5", "SOLVER.MAX_EPOCH", "4")
    trainer = resumed(tiny_root, copied, *more, allow_changed=True)
    assert "MODEL.LOSSES.TRI.MARGIN (0.3 -> 0.5)" in caplog.text
    assert "SOLVER.MAX_EPOCH (3 -> 4)" in caplog.text
    assert (trainer.start_iter, trainer.max_iter) == (9, 12)
    assert trainer.model.losses["TripletLoss"].options["margin"] == 0.5


def test_a_run_with_a_removed_key_is_resumed_and_evaluated(tiny_root, tmp_path, caplog):
    trainer = Trainer(tiny_config(tiny_root, tmp_path))
    config = yaml.safe_load(trainer.cfg_as_written.dump())
    config["SOLVER"]["AMP"]["MAX_SKIPPED"] = 7
    trainer.checkpointer.save(
        "model_last", epoch=0, iteration=3, iters_per_epoch=3, config=yaml.safe_dump(config)
    )
    trainer = resumed(tiny_root, tmp_path)
    assert trainer.start_iter == 3
    assert caplog.text.count("SOLVER.AMP.MAX_SKIPPED 7 is ignored") == 1
    load_trained(trainer.cfg_as_written, str(tmp_path / "model_last.pth"))
    assert caplog.text.count("MAX_SKIPPED") == 1


def test_resuming_inside_the_warm_up_with_longer_epochs_is_refused(tiny_root, tmp_path):
    """The rate stayed below BASE_LR for the rest of the run."""
    warm = ("SOLVER.WARMUP_EPOCHS", "2", *NO_EVALUATION)
    trainer = Trainer(tiny_config(tiny_root, tmp_path, *warm))
    trainer.checkpointer.save("model_last", epoch=0, iteration=3, iters_per_epoch=3)
    with pytest.raises(UserError, match="from the warm-up with 3 steps"):
        resumed(tiny_root, tmp_path, *warm, "SOLVER.IMS_PER_BATCH", "12")
    resumed(tiny_root, tmp_path, *warm)


def test_resuming_another_model_is_refused(tiny_root, whole_run):
    trainer = Trainer(tiny_config(tiny_root, whole_run.folder, "MODEL.BACKBONE.DEPTH", "small"))
    with pytest.raises(UserError, match=r"--resume: .*MODEL\.BACKBONE\.DEPTH"):
        trainer.resume_or_load(resume=True)
    with pytest.raises(UserError, match="is of another model"):
        trainer.resume_or_load(resume=True, allow_changed=True)


def test_weights_of_another_model_are_refused(tiny_root, whole_run, tmp_path):
    path = str(whole_run.folder / "model_final.pth")
    more = ("MODEL.HEADS.GEM_P", "1.0")
    with pytest.raises(UserError, match=r"differs.*MODEL\.HEADS\.GEM_P"):
        load_trained(tiny_config(tiny_root, tmp_path, *more), path)
    load_trained(tiny_config(tiny_root, tmp_path, *more), path, allow_changed=True)
    cfg = tiny_config(tiny_root, tmp_path, "MODEL.BACKBONE.DEPTH", "small")
    with pytest.raises(UserError, match="another model"):
        load_trained(cfg, path, allow_changed=True)


def test_features_asked_for_without_effect_are_refused_in_evaluation(tiny_root, copied):
    weights = ("MODEL.WEIGHTS", str(copied / "model_best.pth"), "TEST.FLIP.ENABLED", "True")
    with pytest.raises(UserError, match=r"TEST\.FLIP\.ENABLED"):
        train_or_evaluate(arguments(tiny_root, copied, "--eval-only", *weights))


# --- weights from elsewhere -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained_weights(whole_run):
    return read_checkpoint(str(whole_run.folder / "model_final.pth"))["model"]


def of_data_parallel(weights):
    return {"state_dict": {f"module.{name}": value for name, value in weights.items()}}


def of_the_model_zoo(weights):
    names = {"heads.weight": "heads.classifier.weight"}
    renamed = {}
    for name, value in weights.items():
        name = names.get(name, name).replace("heads.bottleneck.0", "heads.bnneck")
        renamed[name.replace("frame_heads.bnneck", "frame_heads.bottleneck.0")] = value
    return {"model": renamed}


def test_weights_of_any_wrapping_are_loaded(tiny_root, tmp_path, trained_weights):
    path = tmp_path / "weights.pth"
    for wrap in (dict, of_data_parallel, of_the_model_zoo):
        torch.save(wrap(trained_weights), path)
        assert read_weights(str(path)).keys() == trained_weights.keys()
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


# --- precision, layout ----------------------------------------------------------------------------


def test_mixed_precision_trains(tiny_root, tmp_path):
    amp = ["SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", "bfloat16", "SOLVER.MAX_EPOCH", "1"]
    # torch 2.13's bfloat16 convolution on the CPU gives NaN for maps of 4x2 with stride 2
    size = ["INPUT.SIZE_TRAIN", "[64, 32]", "SOLVER.STEPS", "()"]
    trainer = Trainer(tiny_config(tiny_root, tmp_path, *amp, *size, *NO_EVALUATION))
    before = trainer.model.heads.weight.detach().clone()
    trainer.train()
    assert not torch.equal(trainer.model.heads.weight, before)


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
