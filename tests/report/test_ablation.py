"""Figures 5 and 6: runs are grouped by their configs, and the page has their numbers."""

import json
import re
from dataclasses import replace

import pytest

from fastreid_star.ablation.published import TABLE_3
from fastreid_star.ablation.tables import COLUMNS, OPTIONS, RESULT
from fastreid_star.engine.defaults import load_config
from fastreid_star.errors import UserError
from fastreid_star.report import plots
from fastreid_star.report.ablation import (
    exponent_maps,
    find_runs,
    length_charts,
    write_ablation_page,
)

from ..tiny import REPOSITORY
from .page import Page

HITSZ = REPOSITORY / "configs" / "HITSZ-VCM"
CONFIGS = {
    "SAD_R50": 50.0,
    "STAR_R50": 56.0,
    "STAR_R50_frame": 1.0,
    "figure5/SAD_R50_T4": 40.0,
    "figure5/STAR_R50_T4": 43.0,
    "figure5/STAR_R50_T10": 47.0,
    "figure6/STAR_R50_b0a0": 52.0,
    "figure6/STAR_R50_b2a1": 54.0,
}


def finish(folder, config, value, seed=0):
    """Write what an ablation leaves of a run whose mean mAP is `value`."""
    folder.mkdir(parents=True)
    cfg = load_config(str(HITSZ / f"{config}.yml"), ["SEED", str(seed), "OUTPUT_DIR", str(folder)])
    (folder / OPTIONS).write_text(json.dumps({"config": cfg.dump()}))
    shifts = dict(zip(COLUMNS, (10, -1, 11, 1, 0), strict=True))
    (folder / RESULT).write_text(json.dumps({key: value + shifts[key] for key in COLUMNS}))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two seeds, the second two points better; a warm start, a retest and an unfinished run."""
    output = tmp_path_factory.mktemp("ablation") / "<b>figures"
    for config, value in CONFIGS.items():
        for seed in (0, 1):
            name = config.rpartition("/")[2]
            finish(output / f"seed{seed}" / name, config, value + 2 * seed, seed)
    finish(output / "seed0" / "warm-start", "SAD_R50", 5.0)
    finish(output / "seed0" / "SAD_R50" / "retest-blind", "SAD_R50", 5.0)
    (output / "seed2" / "SAD_R50").mkdir(parents=True)
    return output


@pytest.fixture(scope="module")
def runs(folder):
    return find_runs(folder)


def test_the_finished_training_runs_are_found_in_natural_order(runs):
    names = [run.name for run in runs]
    assert sorted(set(names)) == sorted(config.rpartition("/")[2] for config in CONFIGS)
    assert len(names) == 2 * len(CONFIGS)
    assert names.index("STAR_R50_T4") < names.index("STAR_R50_T10")


def test_figure_5_has_a_line_for_runs_that_differ_in_length_alone(runs, monkeypatch):
    drawn = {}
    monkeypatch.setattr(plots, "means", lambda values, title, **_: drawn.update({title: values}))
    length_charts(runs)
    assert drawn["I2V, mAP in %"] == {
        "SAD_R50": {4: [39, 41], 12: [49, 51]},
        "STAR_R50": {4: [42, 44], 10: [46, 48], 12: [55, 57]},
    }
    assert drawn["V2I, mAP in %"]["SAD_R50"] == {4: [41, 43], 12: [51, 53]}
    drawn.clear()
    faster = {"SOLVER.BASE_LR": 7.0}
    changed = [
        replace(run, config={**run.config, **faster}) if run.name == "SAD_R50_T4" else run
        for run in runs
    ]
    length_charts(changed)
    assert list(drawn["I2V, mAP in %"]) == ["STAR_R50"]


def test_figure_6_has_a_cell_for_each_set_of_exponents(runs):
    (found,) = exponent_maps(runs).values()
    above, below, cells = found["I2V"]
    assert (above, below) == ([0, 1, 3], [0, 1, 2])
    assert {cell: (made["text"], made["share"]) for cell, made in cells.items()} == {
        (0, 0): ("52.00", 0),
        (1, 3): ("56.00", 100),
        (2, 1): ("54.00", 50),
    }
    assert cells[0, 0]["title"] == "p = 1; 52.00 ± 1.41, 2 run(s)"


def test_the_page(folder):
    path = write_ablation_page(folder)
    assert path == folder / "report.html"
    page = Page(path.read_text(encoding="utf-8"))
    page.check()
    text = " ".join(page.text.split())
    assert "<b>figures" in text, "the name is text"
    assert "STAR_R50 2 67.00 ± 1.41 56.00 ± 1.41" in text
    printed = " ".join(f"{value:.2f}" for value in TABLE_3["STAR_R50"])
    assert f"(paper) {printed} 57.28" in text
    assert re.search(r"below \\ above 0 1 3 0 52\.00 – – 1 – – 56\.00", text)
    assert text.count("frames of a clip") == 2, "a figure for each direction"


def test_what_was_not_varied_is_said(tmp_path):
    finish(tmp_path / "seed0" / "SAD_R50", "SAD_R50", 5.0)
    path = write_ablation_page(tmp_path, output=tmp_path / "new" / "page.html")
    text = Page(path.read_text(encoding="utf-8")).text
    assert "INPUT.CLIP.LENGTH" in text
    assert "MODEL.STAR.EXPONENTS" in text


def test_a_folder_without_runs_or_with_a_damaged_one(tmp_path):
    with pytest.raises(UserError, match="no finished runs"):
        write_ablation_page(tmp_path)
    finish(tmp_path / "seed0" / "SAD_R50", "SAD_R50", 5.0)
    (tmp_path / "seed0" / "SAD_R50" / OPTIONS).write_text("{")
    with pytest.raises(UserError, match="damaged"):
        find_runs(tmp_path)
