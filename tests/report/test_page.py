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
    percent,
    signed,
    write_file,
)
from fastreid_star.report.sections import ClipRow, Shown
from fastreid_star.structures import Modality, Tracklet


def test_numbers():
    assert [number(value) for value in (1.005, None, math.nan, 0)] == ["1.00", "–", "–", "0.00"]
    assert number(0.12345, 3) == "0.123"
    assert [signed(x) for x in (1.234, -1.234, 0.001, -0.001)] == ["+1.23", "−1.23", "0.00", "0.00"]
    assert [percent(value) for value in (0.625, 1, None, math.nan)] == ["62", "100", "–", "–"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), ("", "(empty)"), ([], "(empty)"), (["a", 1], "a, 1"), (False, "False"), (0, "0")],
)
def test_config_values(value, text):
    assert config_value(value) == text


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


def test_a_file_is_written_completely_and_its_folder_is_created(tmp_path):
    path = tmp_path / "new" / "page.html"
    assert write_file(path, "é \udcff") == path
    assert path.read_bytes() == "é ?".encode(), "names of files need not be UTF-8"
    assert [file.name for file in path.parent.iterdir()] == ["page.html"]


def test_a_file_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a folder"):
        write_file(tmp_path, "")
    with pytest.raises(UserError, match="cannot be written"):
        write_file(tmp_path / "file" / "page.html", "")
    write_file(tmp_path / "page.html", "before")

    def full(file):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left"):
        write_file(tmp_path / "page.html", "after")
    assert (tmp_path / "page.html").read_text() == "before"


@pytest.mark.parametrize(
    ("path", "name"), [("a/b.yml", "b.yml"), ("a/b/", "b"), ("a/\udcffé", "?é"), ("<b>", "<b>")]
)
def test_names_of_files(path, name):
    assert file_name(path) == name
