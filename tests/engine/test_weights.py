"""Weights from elsewhere are loaded whatever wraps them, or refused."""

import pytest
import torch

from fastreid_star.engine.trainer import Trainer, load_trained
from fastreid_star.errors import UserError
from fastreid_star.weights import read_checkpoint, read_weights

from ..tiny import tiny_config


def test_weights_of_another_model_are_refused(tiny_root, whole_run, tmp_path):
    path = str(whole_run.folder / "model_final.pth")
    more = ("MODEL.HEADS.GEM_P", "1.0")
    with pytest.raises(UserError, match=r"differs.*MODEL\.HEADS\.GEM_P"):
        load_trained(tiny_config(tiny_root, tmp_path, *more), path)
    load_trained(tiny_config(tiny_root, tmp_path, *more), path, allow_changed=True)
    cfg = tiny_config(tiny_root, tmp_path, "MODEL.BACKBONE.DEPTH", "small")
    with pytest.raises(UserError, match="another model"):
        load_trained(cfg, path, allow_changed=True)


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
