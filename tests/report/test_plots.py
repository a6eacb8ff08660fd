"""Figures: well-formed SVG in the page's colors, with the numbers and names that were given."""

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from fastreid_star.report import plots
from fastreid_star.report.ranking import Distribution
from fastreid_star.structures import Modality

from .conftest import HOSTILE

SVG = "{http://www.w3.org/2000/svg}"


def texts(svg):
    return ["".join(element.itertext()) for element in ET.fromstring(svg).iter(f"{SVG}text")]


def figures():
    shares = np.array([0, 0.4, 0.6]), np.array([0.7, 0.3, 0])
    found = Distribution(np.linspace(0, 1, 4), *shares, 0.7, 0.2, 0.1, (5, 9))
    losses = {HOSTILE: {"A": ([0, 1], [20, 1])}, "_b": {"A": ([1], [3]), "B": ([1, 2], [5, 0])}}
    modalities = [Modality.INFRARED, Modality.VISIBLE] * 3
    points = np.random.default_rng(0).normal(size=(6, 2))
    pids = [1, 1, 2, 2, 3, 3]
    return {
        "curves": plots.curves(losses, title="a", log=True),
        "cmc": plots.cmc({HOSTILE: (plots.SERIES[0], "-", np.array([0.5, 1]))}, title="b"),
        "means": plots.means({HOSTILE: {2: [3.0, 5.0]}, "b": {4: [2.0]}}, title="c", x_label="T"),
        "distributions": plots.distributions(found, title=HOSTILE, measure="cosine similarity"),
        "ranges": plots.ranges({"q": np.eye(2)}, ["head", "legs"], title="d", x_label="x"),
        "modality": plots.embedding(points, modalities, pids, title="e"),
        "identity": plots.embedding(points, modalities, pids, title="f", identities=[1, 2]),
    }


@pytest.fixture(scope="module")
def drawn():
    return figures()


def test_all_are_well_formed_and_take_their_colors_from_the_page(drawn):
    for name, svg in drawn.items():
        root = ET.fromstring(svg)
        assert root.get("role") == "img", name
        assert root.get("aria-label"), name
        assert "var(--" in svg, name
        assert not re.search(r"#(?!xlink)[0-9a-f]{6}", svg.replace('"#', "")), name
        assert "http" not in re.sub(r'xmlns(:xlink)?="[^"]*"', "", svg), name
        assert "<metadata" not in svg
        assert "<img" not in svg


def test_names_are_text(drawn):
    assert HOSTILE in texts(drawn["distributions"]), "dollars included"
    assert any(text.endswith("_b") for text in texts(drawn["curves"])), "with an underscore"
    assert {"identity 1", "identity 2"} <= set(texts(drawn["identity"]))
    assert {"infrared", "visible"} <= set(texts(drawn["modality"]))
    assert len(plots.plain("x" * 100)) < 30


def test_equal_figures_are_equal_and_different_ones_share_no_ids(drawn):
    assert figures() == drawn
    ids = [set(re.findall(r' id="([^"]+)"', svg)) for svg in drawn.values()]
    assert any(ids)
    assert all(not ids[i] & ids[j] for i in range(len(ids)) for j in range(i))
    for svg in drawn.values():
        used = set(re.findall(r"#([\w-]+)", svg))
        assert used == set(re.findall(r' id="([^"]+)"', svg))


def test_a_loss_has_one_color_and_a_run_one_style():
    points = ([0, 1], [1, 2])
    series = {"cls": {"A": points, "B": points}, "triplet": {"B": points}}
    svg = plots.curves(series, title="t")
    thick = re.findall(r'<path [^>]*style="([^"]*stroke-width: 1\.8[^"]*)"', svg)
    styles = [
        (re.search(r"series-\d", style)[0], "dasharray" in style)
        for style in thick
        if "series" in style
    ]
    assert styles[:3] == [("series-1", False), ("series-1", True), ("series-2", True)]
    assert {"cls", "triplet", "A", "B"} <= set(texts(svg))


def test_an_axis_can_start_at_zero():
    series = {"lr": {"A": ([0, 1], [0.5, 0.6])}}
    assert "0.0" not in texts(plots.curves(series, title="t"))
    assert "0.0" in texts(plots.curves(series, title="t", from_zero=True))


def test_the_axis_of_ranges_is_fixed():
    def ticks(values):
        svg = plots.ranges({"a": np.array(values)[:, None]}, ["p"], title="t", x_label="x")
        return [text for text in texts(svg) if re.fullmatch(r"\d\.\d", text)]

    assert ticks([0.49, 0.51]) == ticks([0.1, 0.9]) == ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]
