import json

import pytest

from fastreid_star.benchmark.figures import (
    BEGIN,
    END,
    Figure,
    format_markdown,
    format_table,
    read_json,
    write_json,
    write_markdown,
)
from fastreid_star.errors import UserError

FIGURES = [
    Figure.against("star_step_frames_per_s", 12.5, "frames/s", 50.0, "the bare backbone"),
    Figure("cores", 2, "", note="cpu"),
    Figure("dataset_open_file_calls", 34, "calls", limit=463259, ratio=34 / 463259),
]


def test_a_ratio_is_the_value_over_its_limit():
    assert FIGURES[0].ratio == 0.25
    assert (FIGURES[1].limit, FIGURES[1].ratio) == (None, None)


@pytest.mark.parametrize("name", ["", "Star", "frames/s", "9lives", "two words"])
def test_names_are_plain(name):
    with pytest.raises(ValueError, match="no name of a figure"):
        Figure(name, 1.0, "s")


@pytest.mark.parametrize("numbers", [(float("nan"), None), (1.0, float("inf"))])
def test_what_is_no_number_is_no_figure(numbers):
    value, limit = numbers
    with pytest.raises(ValueError, match="figure x has a number that is not finite"):
        Figure("x", value, "s", limit)


def test_json_has_the_agreed_keys_and_comes_back(tmp_path):
    write_json(tmp_path / "figures.json", FIGURES)
    rows = json.loads((tmp_path / "figures.json").read_text())
    assert rows[0] == {
        "name": "star_step_frames_per_s",
        "value": 12.5,
        "unit": "frames/s",
        "limit": 50.0,
        "ratio": 0.25,
        "note": "the bare backbone",
    }
    assert list(rows[2]) == ["name", "value", "unit", "limit", "ratio"], "no note, no key"
    assert read_json(tmp_path / "figures.json") == FIGURES


@pytest.mark.parametrize(
    "text", ["{", "[1]", '[{"name": "x"}]', '[{"name": "x", "value": 1, "unit": "", "more": 2}]']
)
def test_other_files_are_refused(tmp_path, text):
    (tmp_path / "other.json").write_text(text)
    with pytest.raises(UserError, match=r"other\.json is no list of figures"):
        read_json(tmp_path / "other.json")
    with pytest.raises(UserError, match=r"none\.json cannot be read"):
        read_json(tmp_path / "none.json")


def test_a_table_for_a_terminal():
    lines = format_table([*FIGURES, Figure("long", 1234567.0, "B", note="word " * 40)]).splitlines()
    assert lines[0].split()[:5] == ["figure", "value", "unit", "limit", "ratio"]
    assert lines[1].split() == [
        "star_step_frames_per_s",
        "12.5",
        "frames/s",
        "50",
        "0.25",
        "the",
        "bare",
        "backbone",
    ]
    assert lines[2].split() == ["cores", "2", "cpu"]
    assert lines[3].split() == ["dataset_open_file_calls", "34", "calls", "463,259", "7.34e-05"]
    assert lines[4].split()[:2] == ["long", "1,234,567"]
    assert len(lines) > 6, "long notes take several lines"
    assert max(map(len, lines)) < 160


def test_a_table_for_a_document():
    lines = format_markdown(FIGURES).splitlines()
    assert [cell.strip() for cell in lines[2].strip("|").split("|")] == [
        "`star_step_frames_per_s`",
        "12.5",
        "frames/s",
        "50",
        "0.25",
        "the bare backbone",
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.912345, "0.912"),
        (1.0, "1"),
        (12.345, "12.3"),
        (100.4, "100"),
        (-0.05, "-0.05"),
    ],
)
def test_numbers_have_three_digits(value, text):
    assert format_table([Figure("x", value, "s")]).splitlines()[1].split()[1] == text


def test_the_table_of_a_document_is_replaced_and_nothing_else(tmp_path):
    path = tmp_path / "performance.md"
    path.write_text(f"before\n\n{BEGIN}\n\nold\n\n{END}\n\nafter\n")
    for _ in range(2):
        write_markdown(path, FIGURES)
        assert (
            path.read_text()
            == f"before\n\n{BEGIN}\n\n{format_markdown(FIGURES)}\n\n{END}\n\nafter\n"
        )


def test_a_document_that_is_not_there_is_made(tmp_path):
    write_markdown(tmp_path / "new.md", FIGURES)
    assert (tmp_path / "new.md").read_text() == f"{BEGIN}\n\n{format_markdown(FIGURES)}\n\n{END}\n"


@pytest.mark.parametrize(
    "text", ["", BEGIN, f"{END}{BEGIN}", f"{BEGIN}{END}{BEGIN}", f"{BEGIN}{END}{END}"]
)
def test_a_document_without_a_place_stays_as_it_is(tmp_path, text):
    path = tmp_path / "README.md"
    path.write_text(text)
    with pytest.raises(UserError, match=r"README\.md has no place for the table"):
        write_markdown(path, FIGURES)
    assert path.read_text() == text
