"""Numbers as text, escaping, and files that are whole."""

import errno
import math
import os

import pytest

from fastreid_star.errors import UserError
from fastreid_star.report.filmstrips import Filmstrip, Shown
from fastreid_star.report.html import (
    config_value,
    environment,
    file_name,
    number,
    percent,
    signed,
    write_page,
)
from fastreid_star.report.pictures import Clip, Picture
from fastreid_star.structures import Modality


def test_numbers():
    assert [number(value) for value in (1.005, None, math.nan, 0)] == ["1.00", "–", "–", "0.00"]
    assert number(0.12345, 3) == "0.123"
    assert [signed(value) for value in (1.234, -1.234, 0.001, -0.001)] == [
        "+1.23",
        "−1.23",
        "0.00",
        "0.00",
    ]
    assert [percent(value) for value in (0.625, 1, None, math.nan)] == ["62", "100", "–", "–"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), ("", "(empty)"), ([], "(empty)"), (["a", 1], "a, 1"), (False, "False"), (0, "0")],
)
def test_config_values(value, text):
    assert config_value(value) == text


def test_paths_and_names_are_escaped():
    script = "<script>alert(1)</script>"
    clip = Clip(0, None, None, None, 3, 4, Modality.INFRARED, f"{script}/1.jpg", {})
    picture = Picture("data:,", 10, 20, f'"{script}')
    strip = Filmstrip(
        script,
        Shown(clip, picture, "query"),
        [Shown(clip, picture, script, right=False, similarity=0.5)],
    )
    template = '{% from "macros.html" import filmstrip, changes %}{{ filmstrip(strip) }}{{ changes(rows, name, name) }}'
    page = (
        environment()
        .from_string(template)
        .render(strip=strip, rows=[(script, script, [script])], name=script)
    )
    assert "<script" not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 10
    assert 'alt="&#34;&lt;script' in page


def test_a_page_is_written_whole_into_a_folder_that_is_made(tmp_path):
    path = tmp_path / "new" / "page.html"
    assert write_page(path, "é") == 2
    assert path.read_bytes() == "é".encode()
    assert [file.name for file in path.parent.iterdir()] == ["page.html"]


def test_a_page_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    for path, message in (
        (tmp_path, "is a folder: name the file"),
        (tmp_path / "file" / "page.html", "cannot be written"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            write_page(path, "")
        assert "\n" not in str(caught.value)


def test_a_full_disk_is_one_line_and_the_page_before_stays(tmp_path, monkeypatch):
    write_page(tmp_path / "page.html", "before")

    def full(file):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"page\.html cannot be written: No space left on device$"):
        write_page(tmp_path / "page.html", "after")
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"page.html": "before"}


def test_names_of_other_bytes_than_utf_8_do_not_stop_a_page(tmp_path):
    write_page(tmp_path / "page.html", "a \udcff z")
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == "a ? z"


@pytest.mark.parametrize(
    ("path", "name"), [("a/b.yml", "b.yml"), ("a/b/", "b"), ("a/\udcffé", "?é"), ("<b>", "<b>")]
)
def test_names_of_files(path, name):
    assert file_name(path) == name
