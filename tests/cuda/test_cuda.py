"""The methods on a GPU give the numbers of the CPU: ``pytest tests/cuda --device cuda``.

``--device cpu`` compares the CPU with itself, which shows that the tests themselves work.
"""

import copy
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fastreid_star.coco import NUM_JOINTS
from fastreid_star.engine import device as devices
from fastreid_star.engine.defaults import load_config
from fastreid_star.engine.trainer import Trainer
from fastreid_star.modeling.layers import frozen_tokens

GOLDEN = Path(__file__).parents[1] / "golden" / "record.py"
# beside those of tests/golden: configs and own options
MORE = {
    "SAADG": ("SAADG_small.yml", {}),
    "MITML": ("MITML_small.yml", {"MODEL.MITML.CONFUSION_EPOCH": 1}),
    "IBAN": ("IBAN_small.yml", {"MODEL.IBAN.ANAGLYPH_EPOCH": 1}),
    "AuxNet": ("AuxNet_small.yml", {}),
    "M3ReID": ("M3ReID_small.yml", {"DATALOADER.NUM_INSTANCE": 4}),
    "DDAG": ("DDAG_small.yml", {}),
    "MPANet": ("MPANet_small.yml", {}),
    "LbA": ("LbA_small.yml", {}),
    "SGIEL": ("SGIEL_small.yml", {}),
    "VCD": ("VCD_small.yml", {}),
    "CAJL": ("CAJL_small.yml", {"SOLVER.IMS_PER_BATCH": 12}),
}
CASES = ["SAD", "STAR", "STAR_release", "DinoGRL", *MORE]
START = {"MODEL.LOSSES.CE_ONLY_EPOCHS": 0}
CLIPS, LENGTH, SIZE = 8, 3, (64, 32)
EXPECTED: dict[str, np.ndarray] = {}  # the CPU's losses of a case


@pytest.fixture(autouse=True)
def device(request):
    name = request.config.getoption("--device")
    if not name:
        pytest.skip("needs a GPU: give --device cuda")
    reason = devices.why_unusable(name)
    if reason:
        pytest.skip(reason)
    return name


@pytest.fixture
def golden(monkeypatch):
    """The small training runs of tests/golden, in the same arithmetic on both devices.

    Without dropout, since each device draws its own, and with tokens in the images' own type.
    """
    spec = importlib.util.spec_from_file_location("golden", GOLDEN)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.CASES.update({name: (f, {**START, **own}) for name, (f, own) in MORE.items()})
    monkeypatch.setattr(F, "dropout", lambda x, *args, **kwargs: x)
    monkeypatch.setattr(frozen_tokens, "computes_in_half", lambda device: False)
    return module


def config(golden, case, **changes):
    file, own = golden.CASES[case]
    options = {**golden.OPTIONS, **own, **changes}
    pairs = [str(part) for pair in options.items() for part in pair]
    return load_config(str(golden.CONFIGS / file), pairs)


def build(golden, case, device):
    """A tiny network in training mode, with the same weights on each device."""
    sizes = {"MODEL.HEADS.NUM_CLASSES": 2, "INPUT.SIZE_TRAIN": list(SIZE)}
    torch.manual_seed(0)
    weights = copy.deepcopy(Trainer.build_model(config(golden, case, **sizes)).state_dict())
    model = Trainer.build_model(config(golden, case, **sizes, **{"MODEL.DEVICE": device}))
    model.load_state_dict(weights)
    return model.train()


def batch_on(device):
    generator = torch.Generator().manual_seed(7)
    skeletons = torch.rand(CLIPS, LENGTH, NUM_JOINTS, 3, generator=generator)
    batch = {
        "images": torch.randint(0, 256, (CLIPS, LENGTH, 3, *SIZE), generator=generator).byte(),
        "targets": torch.tensor([0, 0, 1, 1] * 2),
        "skeletons": skeletons * torch.tensor([SIZE[1], SIZE[0], 1.0]),
        "has_skeleton": torch.rand(CLIPS, LENGTH, generator=generator) > 0.2,
        "shapes": torch.randint(0, 256, (CLIPS, LENGTH, *SIZE), generator=generator).byte(),
    }
    batch = {key: value.to(device) for key, value in batch.items()}
    return {**batch, "modality": torch.tensor([2, 1]).repeat_interleave(CLIPS // 2)}


def outputs_of_layers(model, batch):
    """Output of each layer that returns one floating point tensor; and that of the model."""
    found = {}

    def keep(name):
        def hook(module, inputs, output):
            if isinstance(output, torch.Tensor) and output.is_floating_point():
                # a copy, since a ReLU may work in place
                found.setdefault(name, output.detach().cpu().clone())

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in model.named_modules()]
    torch.manual_seed(3)
    output = model(batch)
    for handle in handles:
        handle.remove()
    return found, output


def distance(found, expected):
    """Relative Euclidean distance of two tensors."""
    found, expected = found.detach().cpu().double(), expected.detach().cpu().double()
    return float((found - expected).norm() / expected.norm().clamp(min=1e-6))


@pytest.mark.parametrize("case", CASES)
def test_each_layer_loss_and_gradient_is_the_cpus(case, device, golden):
    layers, losses, gradients = [], [], []
    for name in ("cpu", device):
        model = build(golden, case, name)
        outputs, found = outputs_of_layers(model, batch_on(name))
        sum(found.values()).backward()
        layers.append(outputs)
        losses.append({key: value.item() for key, value in found.items()})
        gradients.append({key: p.grad for key, p in model.named_parameters() if p.grad is not None})
    assert layers[0].keys() == layers[1].keys()
    assert gradients[0].keys() == gradients[1].keys()
    worst = max(layers[0], key=lambda key: distance(layers[1][key], layers[0][key]))
    layer = distance(layers[1][worst], layers[0][worst])
    whole = distance(
        *(torch.cat([g.cpu().flatten() for g in each.values()]) for each in gradients[::-1])
    )
    print(f"\n{case}: {len(layers[0])} layers within {layer:.1e} ({worst}), gradient {whole:.1e}")
    assert layer < 1e-4, worst
    assert losses[1] == pytest.approx(losses[0], rel=1e-4, abs=1e-6)
    assert whole < 5e-3
    for key, expected in gradients[0].items():
        # a bias in front of a BatchNorm has a gradient of rounding errors only
        if expected.norm() > 1e-4:
            assert distance(gradients[1][key], expected) < 1e-2, key


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("precision", ["float64", "float32", "bfloat16", "float16"])
def test_twenty_steps_give_the_cpus_losses(case, precision, device, golden, tmp_path):
    """The CPU's are in float64. What rounding leaves grows from step to step.

    float16 comes with a gradient scaler.
    """
    amp = precision in ("bfloat16", "float16")
    if amp and device == "cpu":
        pytest.skip("mixed precision on a CPU depends on its convolution library")
    if case not in EXPECTED:
        EXPECTED[case] = golden.run(case, tmp_path / "cpu")[f"{case}/losses"]
    expected = EXPECTED[case]
    golden.OPTIONS.update({"MODEL.DEVICE": device, "SOLVER.AMP.ENABLED": amp})
    golden.OPTIONS["SOLVER.AMP.DTYPE"] = precision if amp else "float16"
    found = golden.run(case, tmp_path / device, double=precision == "float64")[f"{case}/losses"]
    assert np.isfinite(found[:, 0]).all()
    totals = np.nansum(found, axis=1), np.nansum(expected, axis=1)
    error = np.abs(totals[0] - totals[1]) / totals[1]
    print(f"\n{case} {precision}: total loss off by {error[0]:.1e} at step 1,", end=" ")
    print(f"{error[9]:.1e} at step 10, {error[-1]:.1e} at step 20")
    limits = {"float64": (1e-12, 1e-6), "float32": (1e-5, 5e-2)}.get(precision, (3e-2, 0.2))
    assert error[0] < limits[0]
    assert error.max() < limits[1]


def test_tokens_in_half_precision_are_the_cpus(device):
    tokens = frozen_tokens.FrozenTokens.build("tiny", (8, 4))
    images = torch.randn(40, 3, 64, 32, generator=torch.Generator().manual_seed(0))
    expected = tokens(images)
    found = tokens.to(device)(images.to(device))
    for own, others in zip(found, expected, strict=True):
        assert own.dtype == (torch.float32 if device == "cpu" else torch.float16)
        error = distance(own, others)
        print(f"\ntokens in {own.dtype} are off by {error:.1e}")
        assert error < 5e-3


def test_a_checkpoint_of_the_device_gives_the_same_ranking_on_the_cpu(device, golden, tmp_path):
    """It is written on the device, and both evaluate it."""
    golden.OPTIONS.update({"MODEL.DEVICE": device, "SOLVER.CHECKPOINT_PERIOD": 4})
    golden.run("STAR", tmp_path, double=False)
    folder, results, features = tmp_path / "STAR", [], []
    for name in ("cpu", device):
        changes = {"MODEL.DEVICE": name, "MODEL.WEIGHTS": folder / "model_final.pth"}
        changes |= {"DATASETS.ROOT": folder, "OUTPUT_DIR": tmp_path / name}
        cfg = config(golden, "STAR", **changes)
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=False)
        model = trainer.model.eval()
        with torch.no_grad():
            features.append(model(batch_on(name)).cpu())
        results.append(Trainer.test(cfg, model))
    torch.testing.assert_close(features[1], features[0], rtol=1e-3, atol=1e-4)
    assert results[1] == pytest.approx(results[0], abs=1e-6)
