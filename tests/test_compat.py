"""fastreid 1.4.0 on today's torch: it imports, the standard library is as before, and the patches
do what they say.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from fastreid.config import get_cfg
from fastreid.modeling.backbones import build_backbone
from PIL import Image

from fastreid_star import compat

IMPORT_EVERYTHING = """
import collections, importlib, logging, pkgutil, signal, sys
import cv2, torch

def state():
    return (set(vars(collections)), list(sys.path), cv2.getNumThreads(), torch.get_num_threads(),
            signal.getsignal(signal.SIGTERM), logging.root.level, logging.root.handlers[:])

before = state()
import fastreid_star, fastreid, fastreid_star.engine.trainer
assert state() == before
# these two are scripts for building and comparing the Cython ranking, not modules
scripts = {"fastreid.evaluation.rank_cylib.setup", "fastreid.evaluation.rank_cylib.test_cython"}
names = []
def fail(name): raise ImportError(name)
for module in pkgutil.walk_packages(fastreid.__path__, "fastreid.", onerror=fail):
    if module.name not in scripts:
        importlib.import_module(module.name)
        names.append(module.name)
assert "torch._six" not in sys.modules
print(len(names))
"""


def test_all_of_fastreid_imports_and_the_process_is_as_before():
    run = subprocess.run([sys.executable, "-c", IMPORT_EVERYTHING], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout.split()[-1]) > 100


def test_a_device_package_that_cannot_be_loaded_is_one_line(tmp_path):
    """With torch_npu installed and CANN not sourced, `import torch` itself fails."""
    (tmp_path / "torch").mkdir()
    failing = "raise RuntimeError('Failed to load the backend extension: torch_npu.')"
    (tmp_path / "torch" / "__init__.py").write_text(failing)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path(__file__).parents[1])]),
    }
    run = subprocess.run(
        [sys.executable, "-c", "import fastreid_star"],
        env=environment,
        capture_output=True,
        text=True,
    )
    last = run.stderr.strip().splitlines()[-1]
    assert "source CANN's set_env.sh" in last
    assert "TORCH_DEVICE_BACKEND_AUTOLOAD=0" in last


def test_torchvision_operators_are_declared_only_where_torchvision_needs_it():
    plain = subprocess.run(
        [sys.executable, "-c", "import torchvision"], capture_output=True, text=True
    )
    assert bool(compat._torchvision_schemas) == ("operator torchvision::" in plain.stderr)
    import torchvision.transforms

    assert torchvision.transforms.Resize((2, 2))(Image.new("RGB", (4, 4))).size == (2, 2)


def test_fastreids_own_optimizer_changes_the_weights():
    """With fastreid's flat buffer of all weights it changes none of them on torch 2."""
    from fastreid.engine import defaults
    from fastreid.solver import build_optimizer

    assert defaults.build_optimizer is build_optimizer
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    before = [parameter.clone() for parameter in model.parameters()]
    optimizer, _ = build_optimizer(get_cfg(), model, contiguous=True)
    for _ in range(2):
        optimizer.zero_grad()
        (model(torch.randn(4, 3)) ** 3).sum().backward()
        optimizer.step()
    after = list(model.parameters())
    assert not any(torch.equal(old, new) for old, new in zip(before, after, strict=True))


def test_random_affine_takes_the_arguments_fastreid_gives_it():
    from fastreid.data.transforms import build_transforms

    cfg = get_cfg()
    cfg.INPUT.SIZE_TRAIN = [32, 16]
    cfg.INPUT.AFFINE.ENABLED = True
    torch.manual_seed(1)
    image = Image.fromarray(np.full((32, 16, 3), 200, np.uint8))
    out = build_transforms(cfg, is_train=True)(image)
    assert out.shape == (3, 32, 16)
    assert set(out.unique().tolist()) == {0.0, 200.0}, "nearest neighbor with black outside"


def test_reranking_runs_without_a_gpu():
    from fastreid.utils.compute_dist import build_dist

    features = torch.nn.functional.normalize(torch.randn(12, 8))
    distances = build_dist(features[:4], features[4:], metric="jaccard", k1=6, k2=2)
    assert distances.shape == (4, 8)
    assert ((distances >= 0) & (distances <= 1)).all()
    same = build_dist(features[:4], features[:4], metric="jaccard", k1=6, k2=2)
    assert np.allclose(np.diag(same), 0, atol=1e-5)


def test_cmc_is_as_long_as_its_reader_expects_in_a_small_gallery():
    from fastreid.evaluation.rank import evaluate_rank

    distances = np.array([[0.2, 0.1, 0.3]])
    cmc, ap, inp = evaluate_rank(
        distances, np.array([7]), np.array([7, 8, 9]), np.array([0]), np.array([1, 1, 1])
    )
    assert cmc.tolist() == [0.0, 1.0, 1.0] + [1.0] * 7
    assert ap == [0.5]
    assert inp == [0.5]


def test_queries_that_keep_different_numbers_of_gallery_images():
    from fastreid.evaluation.rank import evaluate_rank

    # the first query loses one gallery image to the camera rule, the second two
    distances = np.array([[0.1, 0.2, 0.3, 0.4], [0.4, 0.1, 0.2, 0.3]])
    cmc, ap, _ = evaluate_rank(
        distances,
        np.array([1, 2]),
        np.array([1, 1, 2, 2]),
        np.array([0, 5]),
        np.array([0, 1, 5, 6]),
    )
    assert ap == [1.0, 0.5]
    assert cmc.tolist() == [0.5, 1.0] + [1.0] * 8


@pytest.mark.parametrize("name", ["Baseline", "MGN"])
def test_preprocessing_leaves_the_callers_batch_alone(name):
    from fastreid.modeling.meta_arch import META_ARCH_REGISTRY

    model = torch.nn.Module()
    model.pixel_mean = torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1)
    model.pixel_std = torch.tensor([2.0, 2.0, 2.0]).view(1, 3, 1, 1)
    images = torch.full((1, 3, 1, 1), 5.0)
    out = META_ARCH_REGISTRY.get(name).preprocess_image(model, {"images": images})
    assert images.flatten().tolist() == [5.0, 5.0, 5.0]
    assert out.flatten().tolist() == [2.0, 1.5, 1.0]


def test_packaged_yaml_is_found_from_anywhere_and_leaves_no_trace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def parameters(name, depth):
        cfg = get_cfg()
        cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.DEPTH = name, depth
        return sum(p.numel() for p in build_backbone(cfg).parameters())

    first = parameters("build_regnet_backbone", "800x")
    with_se = parameters("build_regnet_backbone", "800y")
    assert parameters("build_regnet_backbone", "800x") == first != with_se
    assert parameters("build_effnet_backbone", "b0") > 3e6
