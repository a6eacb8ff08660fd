"""Runs of release 0.1.0 load through one key map and give the features that they gave."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from fastreid.config import CfgNode, get_cfg
from fastreid.modeling.meta_arch import META_ARCH_REGISTRY

from fastreid_star.upgrade import upgrade_config, upgrade_weights

path = Path(__file__).parent / "golden" / "old_runs.py"
spec = importlib.util.spec_from_file_location("old_runs", path)
old_runs = importlib.util.module_from_spec(spec)
spec.loader.exec_module(old_runs)


def load(case: str) -> torch.nn.Module:
    return build(old_runs.layouts()[case])


def build(old: dict) -> torch.nn.Module:
    cfg = get_cfg()
    cfg.merge_from_other_cfg(CfgNode(upgrade_config(yaml.safe_load(old["config"]))))
    model = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg)
    model.load_state_dict(upgrade_weights(old_runs.weights(old["shapes"])))
    return model.eval()


@pytest.mark.parametrize("case", old_runs.layouts())
def test_features_of_an_old_checkpoint_are_those_it_gave(case):
    batch = old_runs.batch()
    # they measured joints in the resized images, whatever the crops were
    batch["crop_sizes"] = torch.rand(*batch["has_skeleton"].shape, 2) * 200 + 50
    with torch.no_grad():
        features = load(case)(batch).numpy()
    np.testing.assert_allclose(features, old_runs.features()[case], atol=1e-5)


def test_an_encoder_without_the_frame_level_moves_into_the_bone_reader():
    old = old_runs.layouts()["STAR_normalized"]
    old["config"] = old["config"].replace("FRAME_LEVEL: true", "FRAME_LEVEL: false")
    names = {
        name: name.removeprefix("corrector.")
        for name in old["shapes"]
        if not name.startswith("corrector.") or name.startswith("corrector.encoder.")
    }
    old["shapes"] = {names[name]: shape for name, shape in old["shapes"].items() if name in names}
    model = build(old)  # every weight has its place
    assert type(model.corrector).__name__ == "BoneReader"


def test_what_is_of_today_stays_as_it_is():
    cfg = get_cfg()
    content = yaml.safe_load(cfg.dump())
    assert upgrade_config(yaml.safe_load(cfg.dump())) == content
    state = load("STAR_normalized").state_dict()
    upgraded = upgrade_weights(state)
    assert list(upgraded) == list(state)
    assert all(upgraded[name] is state[name] for name in state)
