"""Earlier configs load through one key map; runs of 0.1.0 give the features that they gave."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from fastreid.config import CfgNode, get_cfg
from fastreid.modeling.meta_arch import META_ARCH_REGISTRY

from fastreid_star.data.datasets.synthetic.render import SCALE
from fastreid_star.data.transforms import RandomErasing
from fastreid_star.engine.checkpoint import parse_config
from fastreid_star.engine.config_changes import flatten
from fastreid_star.engine.configs import load_config
from fastreid_star.engine.train_loop import StepRunner
from fastreid_star.errors import UserError
from fastreid_star.methods.sad.model import STYLE_RANGE
from fastreid_star.methods.star.heads import GATGeMHead
from fastreid_star.upgrade import FOLLOWING, REMOVED, upgrade_config, upgrade_weights

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


OLD = """
DATASETS: {SYNTHETIC: {SCALE: 0.1}}
INPUT: {REA: {AREA: "(0.02, 0.4)", PROB: 0.3}}
MODEL:
  CPU: {KEEP_MEMORY: False}
  SAD: {AUGMENT_RANGE: [0.5, 1.5]}
  STAR: {ATTENTION_DROPOUT: 0.6, GAT_DROPOUT: 0.3, KL_LAST: last_step, SPLIT_LSTM: False}
SOLVER: {AMP: {MAX_SKIPPED: 50}}
TEST: {PER_QUERY_CSV: True}
"""


def test_removed_keys_are_ignored(tmp_path, caplog):
    path = tmp_path / "own.yml"
    path.write_text(OLD)
    pairs = [str(part) for pair in flatten(yaml.safe_load(OLD)).items() for part in pair]
    found = [load_config(str(path)), load_config("", pairs), parse_config(OLD)]
    assert not caplog.records
    expected = get_cfg()
    expected.merge_from_list(pairs)  # without this project's own merging
    assert expected.INPUT.REA.PROB == 0.3
    assert found == [expected] * 3
    assert "KL_LAST" not in expected.MODEL.STAR


def test_a_value_that_is_not_used_any_more_is_said_once(tmp_path, caplog):
    path = tmp_path / "own.yml"
    path.write_text("MODEL: {STAR: {KL_LAST: final_states}, SAD: {AUGMENT_RANGE: [0.8, 1.2]}}\n")
    options = ["MODEL.STAR.GAT_DROPOUT", "0.2"]
    load_config("", options)
    (record,) = caplog.records
    assert "GAT_DROPOUT 0.2 is ignored: " in record.message
    assert "follows from MODEL.STAR.GRAPH" in record.message
    caplog.clear()
    options = ["MODEL.STAR.KL_LAST", "final_states", "INPUT.REA.AREA", "(0.02,0.33)"]
    load_config(str(path), options)
    parse_config(path.read_text())
    assert [record.message.partition(":")[0] for record in caplog.records] == [
        "MODEL.STAR.KL_LAST 'final_states' is ignored",
        "MODEL.SAD.AUGMENT_RANGE [0.8, 1.2] is ignored",
        "INPUT.REA.AREA [0.02, 0.33] is ignored",
    ]
    assert all(record.levelname == "WARNING" for record in caplog.records)
    assert "the key was removed, and 'last_step' is used" in caplog.text


def test_the_values_that_a_warning_names_are_the_ones_in_use():
    assert REMOVED["DATASETS.SYNTHETIC.SCALE"] == SCALE
    assert list(RandomErasing().area) == REMOVED["INPUT.REA.AREA"]
    assert list(STYLE_RANGE) == REMOVED["MODEL.SAD.AUGMENT_RANGE"]
    assert StepRunner.max_skipped == REMOVED["SOLVER.AMP.MAX_SKIPPED"]
    removed = REMOVED.keys() | FOLLOWING.keys()
    assert flatten(yaml.safe_load(OLD)).keys() - {"INPUT.REA.PROB"} == removed


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [("GRAPH", "paper", "called normalized"), ("GUIDE", "softmax", "has removed")],
)
def test_earlier_values_in_a_config_written_by_hand(key, value, said):
    cfg = load_config("Synthetic/STAR_small.yml", [f"MODEL.STAR.{key}", value])
    with pytest.raises(UserError, match=f"{key} is '{value}', .*{said}.*: choose one of"):
        GATGeMHead(cfg, feat_dim=16)
