"""The top of the report: the paper's numbers where they belong, and what a run is."""

import pytest

from fastreid_star.engine.ablation import PAPER
from fastreid_star.engine.defaults import load_config
from fastreid_star.report.overview import (
    describe_model,
    describe_skeletons,
    facts,
    paper_key,
    paper_rows,
    result_rows,
)

from .conftest import REPOSITORY

HITSZ = REPOSITORY / "configs" / "HITSZ-VCM"
COLUMNS = ["Rank-1", "Rank-5", "mAP", "mINP"]


@pytest.mark.parametrize("name", PAPER)
def test_each_config_of_table_3_has_the_papers_row(name):
    cfg = load_config(str(HITSZ / f"{name}.yml"))
    i2v, v2i, mean = paper_rows(cfg, COLUMNS)
    printed = PAPER[name]
    assert i2v.values == [printed[0], None, printed[1], None]
    assert v2i.values == [printed[2], None, printed[3], None]
    assert mean.values == pytest.approx(
        [(printed[0] + printed[2]) / 2, None, (printed[1] + printed[3]) / 2, None]
    )
    assert not any(row.ours for row in (i2v, v2i, mean))


def test_nothing_else_has_one():
    star = str(HITSZ / "STAR_R50.yml")
    assert (
        paper_key(
            load_config(star, ["MODEL.HEADS.NAME", "ClipHead", "MODEL.STAR.FRAME_LEVEL", "False"])
        )
        == "SAD_R50"
    )
    assert (
        paper_key(load_config(str(REPOSITORY / "configs" / "Synthetic" / "STAR_small.yml"))) is None
    )
    assert paper_key(load_config(str(HITSZ / "STAR_R18.yml"))) is None
    assert paper_key(load_config(str(HITSZ / "STAR_R50-IBN.yml"))) is None
    assert paper_key(load_config(star, ["MODEL.META_ARCHITECTURE", "Other"])) is None
    assert paper_rows(load_config(str(HITSZ / "STAR_R18.yml")), COLUMNS) == []


@pytest.mark.parametrize(
    "name", ["figure5/STAR_R50_T4", "figure5/SAD_R50_T10", "figure6/STAR_R50_b2a1", "SAD_R50_saadg"]
)
def test_other_clips_and_exponents_are_not_those_of_table_3(name):
    assert paper_key(load_config(str(HITSZ / f"{name}.yml"))) is None


@pytest.mark.parametrize(
    "options",
    [
        ("DATASETS.SKELETONS_TEST", "other"),
        ("DATASETS.SKELETONS_TRAIN", "none"),
        ("INPUT.BLANK", "True"),
    ],
)
def test_the_controls_have_no_row(options):
    assert paper_key(load_config(str(HITSZ / "STAR_R50.yml"), list(options))) is None


def test_rows_have_the_mean_of_both_directions():
    metrics = {
        "I2V/Rank-1": 10.0,
        "I2V/mAP": 20.0,
        "V2I/Rank-1": 30.0,
        "V2I/mAP": 50.0,
        "mean/mAP": 35.0,
    }
    assert [(row.direction, row.values) for row in result_rows("x", metrics)] == [
        ("I2V", [10.0, 20.0]),
        ("V2I", [30.0, 50.0]),
        ("mean", [20.0, 35.0]),
    ]


def test_models_and_skeletons_in_words():
    star = str(HITSZ / "STAR_R50.yml")
    assert describe_model(load_config(star)) == (
        "STAR (frame level, sequence level, consistency loss) on resnet 50x"
    )
    assert describe_model(load_config(str(HITSZ / "SAD_R50.yml"))) == "SAD on resnet 50x"
    assert describe_skeletons(load_config(star)) == "skeletons"
    assert describe_skeletons(load_config(star, ["DATASETS.SKELETONS_TEST", "none"])) == "none"
    assert "other people" in describe_skeletons(
        load_config(star, ["DATASETS.SKELETONS_TEST", "other"])
    )


def test_facts_of_a_run(star):
    told = dict(facts(star.run, star.parameters))
    assert told["Clip"] == "3 frames of 32×16 pixels"
    assert told["Seed"] == "0"
    assert told["Trained for"] == f"{star.run.weights.epochs} of 2 epochs"
    assert (
        told["While training"] == f"mean mAP {star.ranking.results.metrics()['mean/mAP']:.2f} %"
    ), "evaluated alike"
