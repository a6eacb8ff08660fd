"""What is refused, or only mentioned, before a model is built. Most refusals are in tests/test_train_net.py."""

import pytest

from fastreid_star.engine.checks import all_video, check
from fastreid_star.engine.setup import load_config
from fastreid_star.errors import UserError

from .conftest import DEMO, tiny_options


@pytest.mark.parametrize(("store", "said"), [("", True), ("skeletons", False)])
def test_star_without_a_store_is_mentioned(tiny_root, tmp_path, caplog, store, said):
    star = DEMO.replace("SAD_demo", "STAR_demo")
    check(load_config(star, tiny_options(tiny_root, tmp_path, "DATASETS.SKELETONS", store)))
    assert ("DATASETS.SKELETONS is empty" in caplog.text) == said


def test_the_baseline_needs_no_store(tiny_root, tmp_path, caplog):
    check(load_config(DEMO, tiny_options(tiny_root, tmp_path)))
    assert "DATASETS.SKELETONS" not in caplog.text


def test_kinds_of_datasets():
    assert all_video(("HITSZVCM", "SyntheticVCM"))
    assert not all_video(("Market1501",))
    for names in ((), ("HITSZVCM", "Market1501")):
        with pytest.raises(UserError, match=r"DATASETS\.TESTS must name datasets of one kind"):
            all_video(names, "TESTS")
