"""Short runs of the methods: resumed bit for bit, exported, and in bfloat16."""

import copy

import pytest
import torch

from fastreid_star.engine.trainer import Trainer
from fastreid_star.errors import UserError
from fastreid_star.inference.export import export_onnx
from fastreid_star.inference.predictor import StarPredictor
from fastreid_star.weights import read_file

from ..tiny import interrupted_after_first_epoch, small_config

EPOCHS = ("SOLVER.MAX_EPOCH", "2", "SOLVER.STEPS", "[]", "TEST.EVAL_PERIOD", "2")
# the second epoch has other losses than the first, or other weights of them
METHODS = {
    "SAADG": (),
    "MITML": ("MODEL.MITML.CONFUSION_EPOCH", "1"),
    "IBAN": ("MODEL.IBAN.ANAGLYPH_EPOCH", "1"),
    "DDAG": (),
    "MPANet": (),
    "LbA": (),
    "CAJL": ("SOLVER.IMS_PER_BATCH", "12"),
    "SGIEL": ("MODEL.SGIEL.EMA", "[[0, 0.1], [1, 0.02]]", "MODEL.SGIEL.CUTMIX", "0.5"),
    "VCD": (),
}


def train(cfg, *, resume):
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=resume)
    assert trainer.start_epoch == int(resume)
    trainer.train()
    return trainer


def tensors(content, prefix=""):
    """Every tensor in a checkpoint, by its place."""
    if torch.is_tensor(content):
        return {prefix: content}
    if isinstance(content, list):
        content = dict(enumerate(content))
    found = {}
    for key, value in content.items() if isinstance(content, dict) else ():
        found |= tensors(value, f"{prefix}/{key}")
    return found


@pytest.mark.parametrize("name", METHODS)
def test_a_run_resumes_bit_for_bit_and_its_model_is_exported(tiny_root, tmp_path, name):
    """Weights, and the states of all optimizers, over an epoch in which other losses begin."""
    whole, part = tmp_path / "whole", tmp_path / "part"
    train(small_config(name, tiny_root, whole, *EPOCHS, *METHODS[name]), resume=False)
    interrupted_after_first_epoch(whole, part)
    resumed = train(small_config(name, tiny_root, part, *EPOCHS, *METHODS[name]), resume=True)
    first, second = (tensors(read_file(str(f / "model_final.pth"))) for f in (whole, part))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[place], second[place]) for place in first)
    if resumed.model.own_optimizer is not None:
        own = [place for place in first if place.startswith("/own_optimizer/")]
        assert len(own) == len(list(resumed.model.modality.parameters()))
        assert all(first[place].abs().max() > 0 for place in own[:3])
    predictor = StarPredictor.from_run(whole)
    done = export_onnx(predictor.model, predictor.cfg, tmp_path / "model.onnx")
    assert done.difference < 1e-5
    if hasattr(predictor.model, "gates"):  # tied to the number of frames
        with pytest.raises(UserError, match="clips of 3 frames"):
            export_onnx(predictor.model, predictor.cfg, tmp_path / "other.onnx", length=4)


@pytest.mark.parametrize("name", METHODS)
def test_bfloat16_trains_close_to_float32(tmp_path, name):
    options = ("MODEL.HEADS.NUM_CLASSES", "2", "MODEL.SAD.AUGMENT", "False")
    torch.manual_seed(0)
    model = Trainer.build_model(small_config(name, tmp_path, tmp_path, *options)).train()
    images = torch.randint(0, 256, (8, 3, 3, 64, 32))
    batch = {"images": images, "modality": torch.tensor([2] * 4 + [1] * 4)}
    batch["targets"] = torch.tensor([0, 0, 1, 1] * 2)
    batch["shapes"] = torch.randint(0, 256, (8, 3, 64, 32), dtype=torch.uint8)
    other = copy.deepcopy(model)
    torch.manual_seed(1)
    expected = model(batch)
    torch.manual_seed(1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = other(batch)
    assert found.keys() == expected.keys()
    for loss, value in expected.items():
        assert found[loss].dtype == torch.float32, loss
        assert found[loss].item() == pytest.approx(value.item(), rel=0.1, abs=0.05), loss
    sum(found.values()).backward()
    assert all(p.grad.isfinite().all() for p in other.parameters() if p.grad is not None)
