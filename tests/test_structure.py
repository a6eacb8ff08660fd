"""The structure of the package: who imports whom, and the size of its files."""

import ast
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "fastreid_star"
FILES = sorted(PACKAGE.rglob("*.py"))
NAMES = [path.relative_to(PACKAGE).as_posix() for path in FILES]
# A part imports itself and parts that stand before it.
ORDER = [
    *("errors", "files", "structures", "coco", "compat", "upgrade"),
    *("arguments", "weights", "config", "data", "modeling", "methods", "evaluation", "engine"),
    *(
        "ablation",
        "doctor",
        "inference",
        "pose",
        "tracking",
        "report",
        "training_step",
        "benchmark",
        "cli",
        "__main__",
    ),
]
LAST_OF_LEVEL = {"config": "methods"}  # config adds the keys of the methods


def part_of(name):
    return name.partition("/")[0].removesuffix(".py")


def module_of(path):
    parts = list(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in FILES}


def imports(path, *, at_top_only=False):
    """The modules of this package that a file imports."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body if at_top_only else ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fastreid_star"):
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in MODULES else node.module
        elif isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.startswith("fastreid_star."))


@pytest.mark.parametrize("name", NAMES)
def test_imports_run_one_way(name):
    part = part_of(name)
    if part == "__init__":
        return
    allowed = ORDER[: ORDER.index(LAST_OF_LEVEL.get(part, part)) + 1]
    own = {part_of(i.removeprefix("fastreid_star.").split(".")[0]) for i in imports(PACKAGE / name)}
    assert own - {"fastreid_star"} <= set(allowed), f"{part} imports {sorted(own - set(allowed))}"


def test_there_is_no_import_cycle():
    graph = {
        module: {i for i in imports(path, at_top_only=True) if i != module}
        for module, path in MODULES.items()
        if module != "fastreid_star"
    }
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError with the modules


@pytest.mark.parametrize("folder", ["fastreid_star", "tests", "tools"])
def test_a_file_has_at_most_350_lines(folder):
    lines = {
        path.relative_to(ROOT).as_posix(): len(path.read_text(encoding="utf-8").splitlines())
        for path in (ROOT / folder).rglob("*.py")
    }
    assert lines
    assert {name: number for name, number in lines.items() if number > 350} == {}


@pytest.mark.parametrize("name", NAMES)
def test_no_star_imports_path_tricks_or_device_names(name):
    source = (PACKAGE / name).read_text(encoding="utf-8")
    tree = ast.parse(source)
    from_imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert not [node for node in from_imports if node.names[0].name == "*"]
    # a script is run as Python runs one, with its folder first
    assert "sys.path" not in source or name in ("engine/script.py", "arguments.py")
    assert ".cuda(" not in source
    if name not in ("engine/device.py", "compat.py"):
        strings = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
        # "cpu" is where files are read to, not a choice of a device
        assert not strings & {"cuda", "npu", "hccl", "nccl", "gloo"}


@pytest.mark.parametrize("name", NAMES)
def test_only_methods_name_a_method(name):
    """Core code works with every method: it imports none of them."""
    if part_of(name) in ("data", "modeling", "evaluation", "engine"):
        found = [i for i in imports(PACKAGE / name) if i.startswith("fastreid_star.methods.")]
        assert not found, f"{name} imports {found}"
