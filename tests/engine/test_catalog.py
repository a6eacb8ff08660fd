"""docs/losses.md: its tables are those of the registries, its configs load."""

import re
from pathlib import Path

import pytest
import yaml

from fastreid_star.cli.main import run
from fastreid_star.engine.catalog import augmentation_table, catalog, loss_table
from fastreid_star.engine.defaults import load_config
from fastreid_star.errors import UserError
from fastreid_star.modeling.augmentations import AUGMENTATION_REGISTRY
from fastreid_star.modeling.losses import LOSS_REGISTRY

PAGE = Path(__file__).parents[2] / "docs" / "losses.md"


def test_the_page_is_generated():
    text = PAGE.read_text(encoding="utf-8")
    found = re.search(r"<!-- catalog: begin -->\n\n(.*)\n\n<!-- catalog: end -->", text, re.S)
    assert found[1] == catalog(), "run fastreid-star configs --losses --page docs/losses.md"


def test_the_tables_have_every_registered_name():
    for table, registry in (
        (loss_table(), LOSS_REGISTRY),
        (augmentation_table(), AUGMENTATION_REGISTRY),
    ):
        names = re.findall(r"^\| `(\w+)`", table, re.M)
        ours = [
            name
            for name, entry in registry._obj_map.items()
            if entry.__module__.startswith("fastreid_star.") and ".example" not in entry.__module__
        ]
        assert len(names) >= 8
        assert sorted(names) == sorted(ours)
        assert len({line.replace(r"\|", "").count("|") for line in table.splitlines()}) == 1


def test_the_configs_of_the_page_load(tmp_path):
    blocks = re.findall(r"^```yaml\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    assert len(blocks) == 2
    for number, block in enumerate(blocks):
        path = tmp_path / f"{number}.yml"
        path.write_text(block)
        cfg = load_config(str(path))
        node = yaml.safe_load(block)
        if number == 0:
            assert node["MODEL"]["LOSSES"]["OPTIONS"] == cfg.MODEL.LOSSES.OPTIONS
        else:
            assert cfg.INPUT.AUGMENTATIONS == ["erasing", ["channel_choice", 0.3]]


def test_the_command_fills_a_page(tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- catalog: begin -->\nold\n<!-- catalog: end -->\nafter\n")
    run("configs", "--losses", "--page", str(page))
    text = page.read_text()
    assert catalog() in text
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    run("configs", "--losses")
    assert "HeteroCenterLoss" in capsys.readouterr().out
    page.write_text("nothing")
    with pytest.raises(UserError, match="catalog: begin"):
        run("configs", "--losses", "--page", str(page))
