"""Drawings: well-formed SVG in the page's colors, with the numbers and names that were given."""

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from fastreid_star.report import diagrams, plots
from fastreid_star.report.similarity import Distribution

from .conftest import HOSTILE

SVG = "{http://www.w3.org/2000/svg}"


def texts(svg):
    return ["".join(element.itertext()) for element in ET.fromstring(svg).iter(f"{SVG}text")]


def drawings():
    values = np.linspace(0.01, 1, 19)
    found = Distribution(
        np.linspace(0, 1, 4),
        np.array([0, 0.4, 0.6]),
        np.array([0.7, 0.3, 0]),
        0.7,
        0.2,
        0.1,
        (5, 9),
    )
    return {
        "curves": plots.curves(
            {HOSTILE: ([0, 1], [2, 1]), "_b": ([1], [3])}, title=HOSTILE, x_label="epoch", log=True
        ),
        "cmc": plots.cmc({HOSTILE: (plots.SERIES[0], "-", np.array([0.5, 1]))}, title="CMC"),
        "gain": plots.gain(
            {HOSTILE: {2: [3.0, 5.0]}, "b": {2: [1.5], 4: [2.0]}}, title="t", x_label="T"
        ),
        "distributions": plots.distributions(found, title=HOSTILE),
        "bones": diagrams.bone_figure(
            {"query": values, "match": values[::-1]}, title="Bones", label="Bones"
        ),
        "bars": diagrams.bars(
            {"q": np.array([0.25, -0.5])},
            ["head", "legs"],
            title="Parts",
            x_label="x",
            label="Parts",
        ),
        "matrices": diagrams.matrices(
            {"q": np.eye(2) * 0.75}, title="Frames", x_label="x", y_label="y", label="Frames"
        ),
    }


@pytest.fixture(scope="module")
def drawn():
    return drawings()


def test_all_are_well_formed_and_take_their_colors_from_the_page(drawn):
    for name, svg in drawn.items():
        root = ET.fromstring(svg)
        assert root.get("role") == "img", name
        assert root.get("aria-label"), name
        assert "var(--" in svg, name
        assert not re.search("#0a0b", svg), name
        assert not re.search(r"#(?!xlink)[0-9a-f]{6}", svg.replace('"#', "")), (
            f"{name} has a color of its own"
        )
        assert "http" not in re.sub(r'xmlns(:xlink)?="[^"]*"', "", svg), name
        assert "<metadata" not in svg
        assert "$\\math" not in svg, name


def test_names_are_text_and_nothing_else(drawn):
    assert HOSTILE in texts(drawn["distributions"]), "as it was given, dollars included"
    assert any(text.endswith("_b") for text in texts(drawn["curves"])), (
        "matplotlib hides names with an underscore"
    )
    for name in ("curves", "cmc", "gain", "distributions"):
        assert "<img" not in drawn[name]
    assert len(plots.plain("x" * 100)) < 30


def test_equal_drawings_are_equal_bytes_and_different_ones_share_no_ids(drawn):
    assert drawings() == drawn
    ids = [set(re.findall(r' id="([^"]+)"', svg)) for svg in drawn.values()]
    assert any(ids)
    assert all(not ids[i] & ids[j] for i in range(len(ids)) for j in range(i))
    for svg in drawn.values():
        assert set(re.findall(r"#([\w-]+)", svg)) == set(re.findall(r' id="([^"]+)"', svg)), (
            "a name is lost or not used"
        )


def test_numbers_are_those_given(drawn):
    assert {"+0.2500", "−0.5000", "head", "legs"} <= set(texts(drawn["bars"]))
    assert texts(drawn["matrices"]).count(".75") == 2
    assert texts(drawn["gain"]).count("+2.5") == 1, (
        "the mean of 3 and 5 against 1.5, where both were measured"
    )
    assert {"10", "1"} & set(
        texts(plots.curves({"a": ([0, 1], [20, 0.5])}, title="t", x_label="x", log=True))
    )


def test_the_area_between_two_lines_has_the_color_of_the_better():
    def shaded(ours, theirs):
        svg = plots.gain(
            {"a": dict(enumerate(ours)), "b": dict(enumerate(theirs))}, title="t", x_label="x"
        )
        return set(re.findall(r"fill: var\(--series-(\d)\); fill-opacity: 0\.16", svg))

    assert shaded([[3], [4]], [[1], [2]]) == {"1"}
    assert shaded([[1], [2]], [[3], [4]]) == {"2"}
    assert shaded([[1], [4]], [[3], [2]]) == {"1", "2"}
    assert shaded([], []) == set()


def test_a_bone_is_as_thick_as_it_weighs():
    weights = np.zeros(19)
    weights[4] = 0.5
    weights[7] = 0.25
    svg = diagrams.bone_figure({"q": weights}, title="t", label="t")
    widths = {
        float(width)
        for width in re.findall(r"stroke: var\(--series-1\);[^\"]*stroke-width: ([\d.]+)", svg)
    }
    assert widths == {8.5, 5.0, 1.5}
