"""Numbers as text, escaping, and files that are complete."""

import errno
import math
import os

import pytest

from fastreid_star.errors import UserError
from fastreid_star.report.draw import Picture
from fastreid_star.report.page import (
    config_value,
    environment,
    file_name,
    number,
    signed,
    write_page,
)
from fastreid_star.report.sections import ClipRow, Shown
from fastreid_star.structures import Modality, Tracklet


def test_values_as_text():
    assert [number(value) for value in (1.005, None, math.nan, 0)] == ["1.00", "–", "–", "0.00"]
    assert number(0.12345, 3) == "0.123"
    assert [signed(x) for x in (1.234, -1.234, 0.001, -0.001)] == ["+1.23", "−1.23", "0.00", "0.00"]
    values = (None, "", [], ["a", 1], False, 0)
    assert [*map(config_value, values)] == ["–", "(empty)", "(empty)", "a, 1", "False", "0"]
    names = [file_name(path) for path in ("a/b.yml", "a/b/", "a/\udcffé")]
    assert names == ["b.yml", "b", "?é"], "names of files need not be UTF-8"


def test_text_is_escaped():
    script = '"><script>alert(1)</script>'
    picture = Picture("data:,", 10, 20, script)
    tracklet = Tracklet(3, 4, Modality.INFRARED, ".", ("1.jpg",))
    row = ClipRow(script, [Shown(tracklet, picture, script, False, 0.5)])
    template = (
        '{% from "macros.html" import cliprow, changes, table %}{{ cliprow(row) }}'
        "{{ changes([(name, name, [name])], name, name) }}{{ table([name, name], [[name, name]]) }}"
    )
    page = environment().from_string(template).render(row=row, name=script)
    assert "<script" not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 12
    assert 'alt="&#34;&gt;&lt;script' in page


ABLATION = {"datasets": ["é \udcff"], "columns": [], "rows": [], "paper": {}, "lengths": []}


def test_a_file_that_cannot_be_written(tmp_path, monkeypatch):
    """The file is complete or the earlier one stays."""
    (tmp_path / "file").write_text("")
    for path, message in (
        (tmp_path, "is a folder"),
        (tmp_path / "file" / "page.html", "cannot be written"),
    ):
        with pytest.raises(UserError, match=message):
            write_page(path, "ablation", **ABLATION, maps={}, name="")
    path = write_page(tmp_path / "new" / "page.html", "ablation", **ABLATION, maps={}, name="one")
    assert "é ?" in path.read_text(encoding="utf-8"), "names of files need not be UTF-8"

    def full(file):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left"):
        write_page(path, "ablation", **ABLATION, maps={}, name="two")
    assert "<h1>Ablation: one" in path.read_text(encoding="utf-8")
