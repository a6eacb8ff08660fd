"""Names that are HTML, quotes or no text at all stay text: in the page, its attributes and its drawings."""

import shutil

import numpy as np
import pytest
import yaml

from fastreid_star.report import diagrams, plots
from fastreid_star.report.build import build_report
from fastreid_star.report.gather import gather
from fastreid_star.report.html import write_page

from .page import Page

MARK = "alert(7)"
NASTY = [
    f"<script>{MARK}</script>",
    f'"><img src=x onerror={MARK}>',
    f"' onload='{MARK}' x='",
    f"</text></svg><script>{MARK}</script>",
    f"<!-- {MARK} --><b>",
    f"--><b>{MARK}</b>",
    f"]]><b>{MARK}</b>",
    f"&lt;b&gt;{MARK} &amp; &#60;",
    f'{MARK} id="x" #0a0b01',
    f"\x01\x1b[31m{MARK}\x7f\u202e",
]


def assert_harmless(source):
    """No element and no attribute is made by a name, and the names are there as text."""
    page = Page(source)
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "iframe", "object", "embed", "b", "img"}, tags
    for tag, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        told = {"aria-label", "title", "alt"}
        assert not [
            name for name, value in attributes.items() if MARK in (value or "") and name not in told
        ]
    return page


@pytest.mark.parametrize("name", NASTY, ids=range(len(NASTY)))
def test_drawings(name):
    values = np.array([0.25, 0.75])
    drawn = [
        plots.curves(
            {name: ([1, 2], [3, 4]), "b": ([1], [2])}, title=name, x_label=name, label=name
        ),
        plots.cmc({name: ("#0a0b10", "-", values), "other": ("#0a0b11", "-", values)}, title=name),
        plots.gain({name: {1: [2.0]}, "b": {1: [1.0]}}, title=name, x_label=name),
        diagrams.bars(
            {name: values, "b": values}, [name, "c"], title=name, x_label=name, label=name
        ),
        diagrams.matrices({name: np.eye(2)}, title=name, x_label=name, y_label=name, label=name),
    ]
    for drawing in drawn:
        page = assert_harmless(str(drawing))
        assert MARK in page.text
        assert MARK in page.all("svg")[0]["aria-label"]
        str(drawing).encode()


FOLDER = "<img src=x onerror=alert(7)> & \"q\" 's' \udcff"


def test_a_whole_page_of_a_run_whose_every_name_is_hostile(folders, tmp_path):
    run = tmp_path / FOLDER
    shutil.copytree(folders.star, run)
    (tmp_path / "root <script>alert(7)").symlink_to(folders.root)
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["DATASETS"]["ROOT"] = str(tmp_path / "root <script>alert(7)")
    config["OUTPUT_DIR"] = f"logs/{NASTY[1]}"
    config["KD"]["MODEL_CONFIG"] = NASTY
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    log = (run / "log.txt").read_text()
    (run / "log.txt").write_text(
        log.replace("Command line: ", f"Command line: {NASTY[0]} {NASTY[1]} ", 1)
    )
    source = build_report(
        gather(run, ["DATASETS.SYNTHETIC.SEED", "0"]), queries=1, with_gradcam=False
    )
    path = tmp_path / "page.html"
    write_page(path, source)
    page = Page(path.read_text(encoding="utf-8"))
    page.check()
    assert not [image for image in page.all("img") if image["src"] == "x"]
    for name in (NASTY[0], NASTY[1], "root <script>alert(7)"):
        assert name in page.text, name
    assert FOLDER.replace("\udcff", "?") in page.text
