"""Each row of docs/reliability.md names a test that exists."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LINES = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8").splitlines()
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def rows() -> list[tuple[str, list[tuple[str, str]]]]:
    """(fault, its tests) of each row of the tables."""
    tables = [line.strip("|").split(" | ") for line in LINES if line.startswith("|")]
    cells = [row for row in tables if not set(row[0]) <= set("-|") and row[0].strip() != "fault"]
    return [(row[0].strip(), NAMED.findall(row[-1])) for row in cells]


def test_at_least_forty_faults_are_listed_once_each():
    faults = [fault for fault, _ in rows()]
    assert len(set(faults)) == len(faults) >= 40


@pytest.mark.parametrize(("fault", "tests"), rows())
def test_the_tests_of_a_fault_exist(fault, tests):
    assert tests, "no test is named"
    for path, name in tests:
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        found = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        assert name.startswith("test_")
        assert name in found, f"{path} has no {name}"
