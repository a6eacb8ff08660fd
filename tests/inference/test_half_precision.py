"""Features in 16 bits rank as those in float32 do, with every method."""

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fastreid_star.cli import main as cli
from fastreid_star.engine import device as devices
from fastreid_star.errors import UserError
from fastreid_star.inference import StarPredictor

from ..tiny import REPOSITORY
from .exported import build, clips, config
from .tracklets import from_files

HALVES = ("float16", "bfloat16")
CLOSE = 2e-2  # cosine distance
# oneDNN 3.x computes a convolution of stride 2 in bfloat16 wrongly with Intel's AMX, if its result
# is one pixel wide: images of 32 x 16 get there
LARGER = ("INPUT.SIZE_TEST", "[64,32]")


def distance(found, expected):
    return float((1 - F.cosine_similarity(found.flatten(1), expected.flatten(1))).max())


def are_close(found, expected):
    """Whether features are near enough, and not those of float32: 16 bits are used."""
    assert float((found - expected).abs().max()) > 2e-5
    return distance(found, expected) < CLOSE


def first_hits(features, tracklets):
    """For each infrared query, whether the most similar visible tracklet shows the same person."""
    infrared = torch.tensor([t.modality == 1 for t in tracklets])
    pids = np.array([t.pid for t in tracklets])
    nearest = (features[infrared] @ features[~infrared].T).argmax(1).numpy()
    return pids[infrared.numpy()] == pids[~infrared.numpy()][nearest]


@pytest.mark.parametrize("name", ["SAD", "STAR"])
def test_a_trained_network_ranks_the_same_in_16_bits(runs, data, name):
    inputs = from_files(*data)

    def features(dtype):
        predictor = StarPredictor.from_run(runs / name, "cpu", opts=LARGER, dtype=dtype)
        return predictor.features(inputs)

    expected = features("float32")
    hits = first_hits(expected, data[0])
    assert hits.sum() > 0
    for dtype in HALVES:
        found = features(dtype)
        assert found.dtype == torch.float32
        assert are_close(found, expected)
        assert (first_hits(found, data[0]) == hits).all()


METHODS = ["SAADG", "MITML", "IBAN", "M3ReID", "AuxNet", "STAR_M3"]
SIZES = [part for key in ("TRAIN", "TEST") for part in (f"INPUT.SIZE_{key}", "[64,32]")]


@pytest.mark.parametrize("name", [*(f"{method}_small" for method in METHODS), "DinoGRL_tiny"])
@torch.no_grad()
def test_every_method_in_16_bits(name):
    cfg = config(f"Synthetic/{name}", *SIZES, "MODEL.BACKBONE.DEPTH", "tiny")
    with torch.enable_grad():
        model = build(cfg)
    batch = clips(4, cfg.INPUT.SIZE_TEST)
    expected = model(batch)
    assert F.pdist(expected.flatten(1)).min() > 0.02, "different clips have different features"
    for dtype in HALVES:
        with devices.autocast(model.device, dtype):
            assert are_close(model(batch), expected)


def test_the_command_and_the_lines_on_the_page(runs, star, data, tmp_path, monkeypatch):
    page = (REPOSITORY / "docs" / "inference.md").read_text(encoding="utf-8")
    section = page.partition("## Half precision")[2].partition("\n## ")[0]
    (command,) = re.findall(r"```bash\n(.*?)```", section, re.S)
    root = str(star.cfg.DATASETS.ROOT)
    words = command.replace("\\\n", " ").replace("demo/datasets", root).split()[1:]
    words = [str(runs / "STAR") if word == "demo/runs/STAR" else word for word in words]
    words = [str(tmp_path / "half.npz") if word == "half.npz" else word for word in words]
    assert cli.run(*words, "--workers", "0") in (None, 0)
    found = torch.from_numpy(np.load(tmp_path / "half.npz")["features"])
    expected = star.features(from_files(*data))
    assert found.shape == expected.shape
    assert are_close(found, expected[(found @ expected.T).argmax(1)])
    (example,) = re.findall(r"```python\n(.*?)```", section, re.S)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").symlink_to(tmp_path)
    (tmp_path / "runs").symlink_to(runs)
    names: dict = {}
    exec(compile(example, "docs/inference.md", "exec"), names)
    assert names["predictor"].dtype == "bfloat16"


def test_another_dtype_is_refused(runs):
    with pytest.raises(UserError, match=r"float64.*bfloat16"):
        StarPredictor.from_run(runs / "SAD", "cpu", dtype="float64")
