"""Parameters and operations of a network, against a count by hand and against docs/methods.md."""

import re
from pathlib import Path

import pytest
import torch

from fastreid_star import training_step
from fastreid_star.cli.main import run
from fastreid_star.engine.configs import load_config, shipped_configs
from fastreid_star.engine.cost import cost_of_page, cost_table, count_cost
from fastreid_star.errors import UserError
from fastreid_star.methods.mitml import ModalityClassifier
from fastreid_star.modeling.layers.skeleton_graph import spatial_temporal_adjacency

PAGE = Path(__file__).parents[2] / "docs" / "methods.md"
TINY = [
    *("MODEL.BACKBONE.DEPTH", "tiny", "SOLVER.IMS_PER_BATCH", "4", "INPUT.CLIP.LENGTH", "2"),
    *("INPUT.SIZE_TRAIN", "[32,16]", "INPUT.SIZE_TEST", "[32,16]", "MODEL.HEADS.NUM_CLASSES", "4"),
]
DINO = ("MODEL.DINOGRL.DINOV2", "vits14")


def test_a_resnet_34_by_hand():
    """Two stems and one classifier; a frame passes one stem. Multiplications and additions."""
    options = (
        "INPUT.SIZE_TRAIN",
        "[64,32]",
        "INPUT.SIZE_TEST",
        "[64,32]",
        "INPUT.CLIP.LENGTH",
        "3",
    )
    cost = count_cost(load_config("HITSZ-VCM/AuxNet_R34_baseline.yml", options))
    stem = 64 * 3 * 49 + 2 * 64
    work = 64 * 3 * 49 * 32 * 16
    parameters, width, positions = 2 * stem, 64, 16 * 8
    for number, blocks in enumerate((3, 4, 6, 3)):
        wide = 64 * 2**number
        positions //= 4 if number in (1, 2) else 1  # the last stage keeps the size of the maps
        for block in range(blocks):
            inputs = width if block == 0 else wide
            weights = 9 * inputs * wide + 9 * wide * wide
            parameters += weights + 4 * wide
            work += weights * positions
            if block == 0 and number:
                parameters += inputs * wide + 2 * wide
                work += inputs * wide * positions
        width = wide
    parameters += 512 + 500 * 512  # the neck's scale, its shift is frozen; the classifier
    assert cost.parameters == parameters
    assert cost.flops == 3 * 2 * work


def test_a_network_works_after_one_of_its_kind_was_counted():
    cfg = load_config("Synthetic/STAR_small.yml", ["MODEL.HEADS.NUM_CLASSES", "2"])
    count_cost(cfg)
    adjacency = spatial_temporal_adjacency(
        cfg.INPUT.CLIP.LENGTH, "standardized", torch.device("cpu")
    )
    assert adjacency.any().item()  # a tensor without data has no item


def test_fused_attention_is_counted():
    """A block over T frames of 16 x 8 positions and 16 channels: two products of L x L x 16."""

    def work(length, blocks):
        opts = ["INPUT.CLIP.LENGTH", str(length), "MODEL.BACKBONE.NON_LOCAL", blocks]
        return count_cost(load_config("Synthetic/SAD_small.yml", opts)).flops

    assert work(4, "[]") == 2 * work(2, "[]")
    squares = (4 * 128) ** 2 - 2 * (2 * 128) ** 2
    assert work(4, "[0,1,0,0]") - 2 * work(2, "[0,1,0,0]") == 2 * 2 * squares * 16


def test_parameters_of_a_models_own_optimizer_are_counted():
    without = ["MODEL.LOSSES.NAME", "('CrossEntropyLoss','TripletLoss')"]
    costs = [count_cost(load_config("Synthetic/MITML_small.yml", opts)) for opts in ([], without)]
    width = 256  # of the small ResNet
    of_classifier = sum(p.numel() for p in ModalityClassifier(width).parameters())
    assert costs[0].parameters - costs[1].parameters == of_classifier
    assert costs[0].flops == costs[1].flops  # training only


def test_the_costs_on_the_page_are_those_of_the_configs(amount):
    """Of two methods; with ``--long`` of all."""
    page = PAGE.read_text(encoding="utf-8")
    table = re.search(r"cost: begin -->(.*)<!-- cost: end", page, re.S)[1]
    rows = [line for line in table.splitlines() if line.startswith("| `")]
    names = [re.search(r"`(.+)`", row)[1] for row in rows]
    shipped = shipped_configs()
    assert len(names) >= 5
    assert all(float(cell) > 0 for row in rows for cell in row.split("|")[-3:-1])  # measured
    assert set(names) == {n for n in re.findall(r"`([\w/-]+\.yml)`", page) if n in shipped}
    few = ["HITSZ-VCM/AuxNet_R34_baseline.yml", "HITSZ-VCM/STAR_R50.yml"]
    for name in amount(few, names):
        line = cost_table([name], DINO).splitlines()[-1]
        cells = [cell.strip() for cell in line.split("|")]
        assert [cell.strip() for cell in rows[names.index(name)].split("|")][:-3] == cells[:-1]


def test_a_measured_step_has_two_columns(monkeypatch, capsys):
    """SAD beside itself: only the command and the arithmetic show here."""
    monkeypatch.setitem(training_step.NETWORKS, "SAD", "Synthetic/SAD_small.yml")
    run("configs", "Synthetic/AuxNet_small.yml", "--cost", "--step", *TINY)
    header, _, row = capsys.readouterr().out.strip().splitlines()
    names = [cell.strip() for cell in header.split("|")[-3:-1]]
    assert names == ["step, SAD = 1", "MiB a frame"]
    time, kept = (float(cell) for cell in row.split("|")[-3:-1])
    assert 0.05 < time < 20
    assert kept < 10


def test_a_page_gets_the_configs_that_it_names(tmp_path):
    page = tmp_path / "page.md"
    named = "`Synthetic/AuxNet_small.yml`, `Synthetic/none.yml`, `Synthetic/AuxNet_small.yml`"
    page.write_text(
        f"{named}\n<!-- cost: begin -->\n`Synthetic/old.yml`\n<!-- cost: end -->\nend\n"
    )
    content = cost_of_page(str(page))
    assert content.count("| `") == 1
    assert "| `Synthetic/AuxNet_small.yml` | 6 x 64x32 |              1.4 |      0.4 |" in content
    assert "old" not in content
    assert content.endswith("end\n")
    page.write_text("no marks\n")
    with pytest.raises(UserError, match="cost: begin"):
        cost_of_page(str(page))


def test_the_command_counts_a_config_or_those_of_a_page(tmp_path, capsys):
    run("configs", "Synthetic/AuxNet_small.yml", "--cost", "INPUT.CLIP.LENGTH", "3")
    assert "| `Synthetic/AuxNet_small.yml` | 3 x 64x32 |              1.4 |      0.2 |" in (
        capsys.readouterr().out
    )
    page = tmp_path / "page.md"
    page.write_text("`Synthetic/AuxNet_small.yml`\n<!-- cost: begin -->\n<!-- cost: end -->\n")
    run("configs", "--cost", "--page", str(page), "INPUT.CLIP.LENGTH", "3")
    assert "| 3 x 64x32 |" in page.read_text()
    with pytest.raises(UserError, match="of what"):
        run("configs", "--cost")
