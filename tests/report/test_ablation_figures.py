"""Figures 5 and 6: which runs belong together is read from their configs, and the page has their numbers."""

import json
import re
from dataclasses import replace

import pytest

from fastreid_star.engine import ablation
from fastreid_star.engine.defaults import load_config
from fastreid_star.errors import UserError
from fastreid_star.report.ablation_figures import (
    LENGTH,
    build_ablation_report,
    exponent_maps,
    find_runs,
    heat_tables,
    length_curves,
)

from .conftest import REPOSITORY
from .page import Page

HITSZ = REPOSITORY / "configs" / "HITSZ-VCM"
CONFIGS = {
    HITSZ / "SAD_R50.yml": 50.0,
    HITSZ / "STAR_R50.yml": 56.0,
    HITSZ / "STAR_R50_frame.yml": 1.0,
    HITSZ / "figure5" / "SAD_R50_T4.yml": 40.0,
    HITSZ / "figure5" / "STAR_R50_T4.yml": 43.0,
    HITSZ / "figure5" / "STAR_R50_T6.yml": 47.0,
    HITSZ / "figure6" / "STAR_R50_b0a0.yml": 52.0,
    HITSZ / "figure6" / "STAR_R50_b2a1.yml": 54.0,
}


def finish(run, value):
    """Leave what tools/ablate.py leaves of a run whose mean mAP is `value`."""
    run.folder.mkdir(parents=True)
    options = ablation.options_of(run, [], None, "")
    made_with = {"options": options, "config": load_config(str(run.config), options).dump()}
    (run.folder / ablation.OPTIONS).write_text(json.dumps(made_with))
    shifts = dict(zip(ablation.COLUMNS, (10, -1, 11, 1, 0), strict=True))
    (run.folder / ablation.RESULT).write_text(
        json.dumps({key: value + shift for key, shift in shifts.items()})
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two seeds, the second two points better; and a warm start, a test under other conditions, an unfinished run."""
    output = tmp_path_factory.mktemp("ablation") / "<b>figures"
    for seed in (0, 1):
        for run in ablation.plan([str(path) for path in CONFIGS], [seed], [None], output):
            finish(run, CONFIGS[run.config] + 2 * seed)
    warm = ablation.Run(HITSZ / "SAD_R50.yml", 0, None, output / "seed0" / "warm-start")
    retest = ablation.Run(
        HITSZ / "SAD_R50.yml", 0, None, output / "seed0" / "SAD_R50" / "retest-blind", "blind"
    )
    for run in (warm, retest):
        finish(run, 5.0)
    (output / "seed2" / "SAD_R50").mkdir(parents=True)
    return output


@pytest.fixture(scope="module")
def runs(folder):
    return find_runs(folder)


def test_the_finished_training_runs_are_found(runs):
    assert sorted({found.run.name for found in runs}) == sorted(path.stem for path in CONFIGS)
    assert len(runs) == 2 * len(CONFIGS)


def test_figure_5_has_the_runs_that_differ_in_length_alone(runs):
    (curve,) = length_curves(runs)
    assert (curve.method, curve.baseline) == ("STAR_R50", "SAD_R50")
    assert curve.values["I2V"] == (
        {4: [42, 44], 6: [46, 48], 12: [55, 57]},
        {4: [39, 41], 12: [49, 51]},
    )
    assert curve.values["V2I"] == (
        {4: [44, 46], 6: [48, 50], 12: [57, 59]},
        {4: [41, 43], 12: [51, 53]},
    )


def test_names_end_with_a_word(runs):
    """The configs of Figure 5 without those of 12 frames, and of Figure 6 without the default."""
    some = [
        found for found in runs if found.run.name not in ("STAR_R50", "STAR_R50_frame", "SAD_R50")
    ]
    four = next(found for found in some if found.run.name == "SAD_R50_T4")
    six = replace(
        four,
        run=replace(four.run, config=HITSZ / "SAD_R50_T6.yml"),
        config={**four.config, LENGTH: 6},
    )
    (curve,) = length_curves([*some, six])
    assert (curve.method, curve.baseline) == ("STAR_R50", "SAD_R50")
    assert [found.method for found in exponent_maps(some)] == ["STAR_R50"]


def test_the_table_counts_10_after_2(tmp_path):
    for length in (10, 2):
        config = HITSZ / "figure5" / f"SAD_R50_T{length}.yml"
        finish(ablation.Run(config, 0, None, tmp_path / "seed0" / config.stem), 5.0)
    assert [found.run.name for found in find_runs(tmp_path)] == ["SAD_R50_T2", "SAD_R50_T10"]


def test_a_baseline_that_differs_otherwise_is_not_compared(runs):
    faster = [
        replace(found, config={**found.config, "SOLVER.BASE_LR": 7.0})
        if found.run.name.startswith("SAD")
        else found
        for found in runs
    ]
    assert length_curves(faster) == []


def test_figure_6_has_a_cell_for_each_set_of_exponents(runs):
    (found,) = exponent_maps(runs)
    assert found.method == "STAR_R50"
    assert found.values["I2V"] == {(0, 0): [51, 53], (1, 3): [55, 57], (2, 1): [53, 55]}
    assert found.exponents[1, 3] == [(0.7, 1.0, 3.0, 5.0, 7.0)]
    above, below, cells = heat_tables(found)["I2V"]
    assert (above, below) == ([0, 1, 3], [0, 1, 2])
    assert {cell: (made.text, made.share) for cell, made in cells.items()} == {
        (0, 0): ("52.00", 0),
        (1, 3): ("56.00", 100),
        (2, 1): ("54.00", 50),
    }
    assert cells[0, 0].title == "p = 1; 52.00 ± 1.41, 2 run(s)"


def test_the_page(folder):
    page = Page(build_ablation_report(folder))
    page.check()
    text = " ".join(page.text.split())
    assert "<b>figures" in text, "the name is text"
    assert "STAR_R50 2 67.00 ± 1.41 56.00 ± 1.41" in text
    assert (
        f"(paper) {' '.join(f'{value:.2f}' for value in ablation.PAPER['STAR_R50'])} 57.28" in text
    )
    assert re.search(r"below \\ above 0 1 3 0 52\.00 – – 1 – – 56\.00", text)
    assert text.count("frames of a clip") == 2, "a drawing a direction"


def test_what_was_not_varied_is_said(folder, tmp_path):
    finish(ablation.Run(HITSZ / "SAD_R50.yml", 0, None, tmp_path / "seed0" / "SAD_R50"), 5.0)
    text = Page(build_ablation_report(tmp_path)).text
    assert "No method and its baseline were both trained at several lengths" in text
    assert "No network was trained with several sets of exponents" in text


def test_a_folder_without_runs_or_with_a_damaged_one_is_refused(folder, tmp_path):
    with pytest.raises(UserError, match="holds no finished runs"):
        find_runs(tmp_path)
    run = ablation.Run(HITSZ / "SAD_R50.yml", 0, None, tmp_path / "seed0" / "SAD_R50")
    finish(run, 5.0)
    (run.folder / ablation.OPTIONS).write_text("{")
    with pytest.raises(UserError, match=r"SAD_R50 is damaged .*delete it"):
        find_runs(tmp_path)
