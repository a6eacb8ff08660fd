"""docs/reliability.md promises nothing that no test holds it to."""

import ast
import functools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "reliability.md"
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def rows():
    """(fault, tests) of each row of the table of faults."""
    cells = [
        re.split(r"(?<!\\)\|", line)[1:-1]
        for line in PAGE.read_text().splitlines()
        if line.startswith("|")
    ]
    return [
        (row[0].strip(), NAMED.findall(row[3]))
        for row in cells
        if len(row) == 4 and NAMED.search(row[3])
    ]


@functools.cache
def functions_of(path):
    tree = ast.parse((ROOT / path).read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_there_are_many_and_each_once():
    faults = [fault for fault, _ in rows()]
    assert len(faults) >= 40
    assert len(set(faults)) == len(faults)


def test_every_row_of_the_page_is_a_fault_with_a_test():
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("|")]
    headings = [
        line for line in lines if re.fullmatch(r"[|\s:-]+", line) or line.startswith("| fault |")
    ]
    assert len(lines) - len(headings) == len(rows())


@pytest.mark.parametrize(("fault", "tests"), rows() if PAGE.exists() else [])
def test_its_tests_are_there(fault, tests):
    for path, name in tests:
        assert name.startswith("test_"), fault
        assert name in functions_of(path), f"{fault}: {path} has no {name}"
