"""The house rules that can be read off the source: who imports whom, and who may name a device or patch."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "fastreid_star"
FILES = sorted(PACKAGE.rglob("*.py"))

# a part may import what stands below it, and itself
BELOW = {
    "__main__": {"engine", "errors"},
    "benchmark": {"engine", "evaluation", "data", "structures", "errors", "coco"},
    "report": {
        "engine",
        "evaluation",
        "modeling",
        "data",
        "config",
        "structures",
        "errors",
        "coco",
        "files",
    },
    "pose": {"engine", "data", "structures", "errors", "coco", "files"},
    "engine": {
        "evaluation",
        "modeling",
        "data",
        "config",
        "structures",
        "errors",
        "compat",
        "coco",
        "files",
    },
    "evaluation": {"structures", "errors", "files"},
    "modeling": {"structures", "errors", "coco"},
    "data": {"structures", "errors", "config", "coco"},
    "structures": {"errors"},
    "config": set(),
    "compat": set(),
    "errors": set(),
    "files": set(),
    "coco": set(),
}


def part_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def own_imports(tree):
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.ImportFrom)
            and (node.module or "").split(".")[0] == "fastreid_star"
        ):
            rest = node.module.split(".")[1:]
            yield from [rest[0]] if rest else [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            yield from (
                a.name.split(".")[1] for a in node.names if a.name.startswith("fastreid_star.")
            )


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_downward(path):
    part = part_of(path)
    if part == "__init__":
        return
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert set(own_imports(tree)) <= BELOW[part] | {part}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_star_imports_no_path_tricks_no_device_names(path):
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source)
    assert not any(
        isinstance(node, ast.ImportFrom) and node.names[0].name == "*" for node in ast.walk(tree)
    )
    # a script is run as python runs one, with its folder in front
    assert "sys.path" not in source or path.relative_to(PACKAGE).as_posix() == "engine/script.py"
    assert ".cuda(" not in source
    if path.name not in ("device.py", "compat.py"):
        strings = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
        # "cpu" is where files are read to and results are kept, not a choice of device
        assert not strings & {"cuda", "npu", "hccl", "nccl", "gloo"}
