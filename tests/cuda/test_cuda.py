"""SAD and STAR on a GPU give the numbers of the CPU: ``pytest tests/cuda --device cuda``.

``--device cpu`` compares the CPU with itself, which shows that the tests themselves work.
"""

import copy
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from fastreid.config import get_cfg

from fastreid_star.coco import NUM_JOINTS
from fastreid_star.engine import device as devices
from fastreid_star.engine.defaults import load_config
from fastreid_star.engine.trainer import Trainer
from fastreid_star.modeling.style import adain

GOLDEN = Path(__file__).parents[1] / "golden" / "record.py"
CLIPS, LENGTH, SIZE = 8, 3, (64, 32)
SAD_LOSSES = ("CrossEntropyLoss", "TripletLoss", "StyleAttackLoss", "StyleDefenseLoss")
STAR_LOSSES = (*SAD_LOSSES, "SkeletonConsistencyLoss")
# a device draws its own dropout, so it is compared without
NO_DROPOUT = {"MODEL.STAR.ATTENTION_DROPOUT": 0.0, "MODEL.STAR.GAT_DROPOUT": 0.0}
RELEASE = dict.fromkeys(("BONES", "CORRECTOR", "GUIDE", "GRAPH", "KL"), "release")


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
    """The small training runs of tests/golden, without dropout."""
    spec = importlib.util.spec_from_file_location("golden", GOLDEN)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.OPTIONS.update(NO_DROPOUT)
    return module


def build(case, device):
    """A tiny network with the same weights on every device, in training mode."""
    cfg = get_cfg()
    cfg.MODEL.DEVICE = device
    cfg.MODEL.META_ARCHITECTURE = "SAD" if case == "SAD" else "STAR"
    cfg.MODEL.BACKBONE.NAME = "build_small_resnet_backbone"
    cfg.MODEL.BACKBONE.DEPTH = "tiny"
    cfg.MODEL.BACKBONE.FEAT_DIM = 0
    cfg.MODEL.HEADS.NAME = "ClipHead" if case == "SAD" else "GATGeMHead"
    cfg.MODEL.HEADS.NUM_CLASSES = 2
    cfg.MODEL.LOSSES.NAME = SAD_LOSSES if case == "SAD" else STAR_LOSSES
    cfg.MODEL.LOSSES.TRI.HARD_MINING = True
    cfg.INPUT.SIZE_TRAIN = list(SIZE)
    cfg.merge_from_list([part for pair in NO_DROPOUT.items() for part in pair])
    for key, value in RELEASE.items() if case == "STAR_release" else ():
        cfg.MODEL.STAR[key] = value
    torch.manual_seed(0)
    cfg.MODEL.DEVICE = "cpu"
    weights = copy.deepcopy(Trainer.build_model(cfg).state_dict())
    cfg.MODEL.DEVICE = device
    model = Trainer.build_model(cfg)
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
    }
    batch = {key: value.to(device) for key, value in batch.items()}
    return {**batch, "modality": torch.tensor([2, 1]).repeat_interleave(CLIPS // 2)}


def outputs_of_layers(model, batch):
    """Output of each layer that returns one floating point tensor; and that of the model."""
    found = {}

    def keep(name):
        def hook(module, inputs, output):
            if isinstance(output, torch.Tensor) and output.is_floating_point():
                found.setdefault(name, output.detach().cpu().clone())  # a ReLU may work in place

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


@pytest.mark.parametrize("case", ["SAD", "STAR", "STAR_release"])
def test_each_layer_loss_and_gradient_is_the_cpus(case, device):
    layers, losses, gradients = [], [], []
    for name in ("cpu", device):
        model = build(case, name)
        outputs, found = outputs_of_layers(model, batch_on(name))
        sum(found.values()).backward()
        layers.append(outputs)
        losses.append({key: value.item() for key, value in found.items()})
        gradients.append({key: p.grad for key, p in model.named_parameters() if p.grad is not None})
    assert layers[0].keys() == layers[1].keys()
    assert gradients[0].keys() == gradients[1].keys()
    worst = max(layers[0], key=lambda key: distance(layers[1][key], layers[0][key]))
    assert distance(layers[1][worst], layers[0][worst]) < 1e-4, worst
    assert losses[1] == pytest.approx(losses[0], rel=1e-4, abs=1e-6)
    # a bias in front of a BatchNorm has a gradient of rounding errors only
    for key in gradients[0]:
        size = gradients[0][key].norm()
        if size > 1e-4:
            assert distance(gradients[1][key], gradients[0][key]) < 1e-2, key
    everything = [
        torch.cat([g.cpu().flatten() for g in gradient.values()]) for gradient in gradients
    ]
    print(f"\n{case}: {len(layers[0])} layers, the largest distance {worst}", end=" ")
    print(f"{distance(layers[1][worst], layers[0][worst]):.1e}", end=", ")
    print(f"gradient {distance(*everything[::-1]):.1e}")
    assert distance(*everything[::-1]) < 1e-3


@pytest.mark.parametrize("std", ["sqrt_var", "release"])
@pytest.mark.parametrize(("shape", "dims"), [((6, 4, 9, 5), (2, 3)), ((6, 20, 8), (1,))])
def test_adain_is_the_cpus(std, shape, dims, device):
    x, weight = torch.randn(2, *shape)
    partner = torch.tensor([1, 0, 3, 3, 5, 4])
    found = []
    for name in ("cpu", device):
        here = x.detach().to(name).requires_grad_()
        out = adain(here, partner.to(name), dims, std)
        (out * weight.to(name)).sum().backward()
        found.append((out.detach().cpu(), here.grad.cpu()))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", ["SAD", "STAR", "STAR_release"])
@pytest.mark.parametrize("amp", [None, "bfloat16", "float16"])
def test_twenty_steps_give_the_cpus_losses(case, amp, device, golden, tmp_path):
    """The CPU's are in float32. What rounding leaves grows from step to step."""
    if amp and device == "cpu":
        pytest.skip("mixed precision on a CPU depends on its convolution library")
    expected = golden.run(case, tmp_path / "cpu")[f"{case}/losses"]
    golden.OPTIONS.update({"MODEL.DEVICE": device, "SOLVER.AMP.ENABLED": amp is not None})
    golden.OPTIONS["SOLVER.AMP.DTYPE"] = amp or "float16"  # float16 comes with a gradient scaler
    found = golden.run(case, tmp_path / device)[f"{case}/losses"]
    assert np.isfinite(found[:, 0]).all()
    totals = np.nansum(found, axis=1), np.nansum(expected, axis=1)
    error = np.abs(totals[0] - totals[1]) / totals[1]
    each = np.nanmax(np.abs(found - expected), axis=1)
    print(f"\n{case} {amp or 'float32'}: total loss off by {error[0]:.1e} at step 1,", end=" ")
    print(f"{error[9]:.1e} at step 10, {error[-1]:.1e} at step 20; a loss by {each.max():.1e}")
    assert error[0] < (3e-2 if amp else 1e-5)
    assert error[:10].max() < (0.1 if amp else 1e-3)
    assert error.max() < (0.2 if amp else 2e-2)


def test_a_checkpoint_of_the_device_gives_the_same_ranking_on_the_cpu(device, golden, tmp_path):
    """It is written on the device, and both evaluate it."""
    golden.OPTIONS.update({"MODEL.DEVICE": device, "SOLVER.CHECKPOINT_PERIOD": 4})
    golden.run("STAR", tmp_path)
    results, features = [], []
    for name in ("cpu", device):
        golden.OPTIONS["MODEL.DEVICE"] = name
        options = {
            **golden.OPTIONS,
            "DATASETS.ROOT": tmp_path / "STAR",
            "OUTPUT_DIR": tmp_path / name,
        }
        options["MODEL.WEIGHTS"] = tmp_path / "STAR" / "model_final.pth"
        pairs = [str(part) for pair in options.items() for part in pair]
        cfg = load_config(str(golden.CONFIGS / golden.CASES["STAR"]), pairs)
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=False)
        model = trainer.model.eval()
        with torch.no_grad():
            features.append(model(batch_on(name)).cpu())
        results.append(Trainer.test(cfg, model))
    torch.testing.assert_close(features[1], features[0], rtol=1e-3, atol=1e-4)
    for key, value in results[0].items():
        assert results[1][key] == pytest.approx(value, abs=1e-6), key


def test_peak_memory_is_reported(device):
    chosen = devices.choose_device(device)
    model = build("STAR", device)
    sum(model(batch_on(device)).values()).backward()
    devices.synchronize(chosen)
    if device != "cpu":
        weights = sum(4 * p.numel() for p in model.parameters())
        assert devices.peak_memory(chosen) > 2 * weights  # weights and gradients
