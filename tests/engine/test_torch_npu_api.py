"""What engine/device.py uses of torch and torch_npu is in their releases.

The Python files of the wheels are read, not imported: torch_npu cannot be loaded without CANN.
Opt-in, for one wheel or for several with ":" between them:

    pip download --no-deps torch-npu==2.13.0
    TORCH_NPU_WHEEL=torch_npu-2.13.0-....whl pytest tests/engine/test_torch_npu_api.py

The table in docs/ascend.md says which releases were read.
"""

import ast
import inspect
import os
import re
import zipfile
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
PACKAGE = HERE.parents[1] / "fastreid_star"
WHEELS = [Path(name) for name in os.environ.get("TORCH_NPU_WHEEL", "").split(os.pathsep) if name]

OURS = """\
torch.npu.amp.GradScaler()
torch.npu.config.allow_internal_format = False
torch.npu.conv.allow_hf32 = False
torch.npu.device_count()
torch.npu.get_device_name(device)
torch.npu.is_available()
torch.npu.matmul.allow_hf32 = False
torch.npu.max_memory_allocated(device)
torch.npu.set_compile_mode(jit_compile=False)
torch.npu.set_device(device)
torch.npu.synchronize(device)
"""
# torch.autocast and torch.manual_seed call these of a device that is not their own
OF_TORCH = """\
torch.npu._is_in_bad_fork()
torch.npu.get_amp_supported_dtype()
torch.npu.manual_seed_all(seed)
"""


class Wheel:
    """The Python files of a wheel, or of a folder into which one was unpacked."""

    def __init__(self, path: Path):
        root = path if path.is_dir() else zipfile.Path(path)
        (self.files,) = (entry for entry in root.iterdir() if entry.name == "torch_npu")

    def tree(self, module: str) -> ast.Module | None:
        path = self.files
        for part in module.split(".")[1:]:
            path = path / part
        path = path / "__init__.py" if path.is_dir() else path.parent / f"{path.name}.py"
        return ast.parse(path.read_text(encoding="utf-8")) if path.is_file() else None

    def find(self, module: str, names: list[str]):
        """The statement that defines ``module.names``, also in a module below it; None: nothing does."""
        tree = self.tree(module)
        if tree is None or not names:
            return None
        first, *others = names
        found = None
        for node in tree.body:
            if isinstance(node, ast.Assign):
                defined = ast.unparse(node.targets[0])
            else:
                defined = getattr(node, "name", None)  # of a function or a class
            if defined == first:
                found = node
            elif isinstance(node, ast.ImportFrom):
                source = f"{module}.{node.module}" if node.level == 1 else str(node.module)
                if not source.startswith(f"{module}."):
                    continue
                for alias in node.names:
                    if alias.name == "*" or first in (alias.name, alias.asname):
                        original = first if alias.name == "*" else alias.name
                        found = self.find(source, [original, *others]) or found
        return found or self.find(f"{module}.{first}", others)

    def problem(self, use: str) -> str | None:
        """What is wrong with one line of OURS; None: nothing."""
        (statement,) = ast.parse(use).body
        if isinstance(statement, ast.Assign):  # a class says which options its object takes
            _, _, owner, option = ast.unparse(statement.targets[0]).split(".")
            made = self.find("torch_npu.npu", [owner])
            options = made and self.find("torch_npu.npu.npu_config", [made.value.func.attr])
            taken = options and f"name == {option!r}" in ast.unparse(options)
            return None if taken else f"{use}: not taken"
        name = ast.unparse(statement.value.func)
        node = self.find("torch_npu.npu", name.split(".")[2:])
        if node is None:
            return f"{name} does not exist"
        try:
            bind(node, statement.value)
        except TypeError as error:
            return f"{name}: {error}"
        return None


def bind(node: ast.FunctionDef | ast.ClassDef, call: ast.Call) -> None:
    """Raise a TypeError where a function, or a class, does not take the arguments of a call."""
    first = 0
    if isinstance(node, ast.ClassDef):
        (node,) = (part for part in node.body if getattr(part, "name", "") == "__init__")
        first = 1
    for argument in ast.walk(node.args):
        if isinstance(argument, ast.arg):
            argument.annotation = None
    node.args.defaults = [ast.Constant(None) for _ in node.args.defaults]
    node.args.kw_defaults = [default and ast.Constant(None) for default in node.args.kw_defaults]
    function = eval(f"lambda {ast.unparse(node.args)}: None")
    keywords = {keyword.arg: None for keyword in call.keywords}
    inspect.signature(function).bind(*[None] * (first + len(call.args)), **keywords)


def test_the_list_is_what_the_package_uses():
    text = "\n".join(path.read_text() for path in PACKAGE.rglob("*.py"))
    used = re.findall(r"(?:\btorch\.npu|\b_module\([\w.]+\))\.([\w.]+)", text)
    assert set(used) == set(re.findall(r"torch\.npu\.([\w.]+)", OURS))


@pytest.fixture
def small(tmp_path):
    """A torch_npu of a few lines, with every way in which the real one defines its names."""
    folder = tmp_path / "torch_npu" / "npu"
    (folder / "amp").mkdir(parents=True)
    (folder.parent / "__init__.py").touch()
    (folder / "__init__.py").write_text(
        "from . import npu_config\n"
        "from .utils import set_device as set_device\n"
        "from torch_npu.npu.memory import *\n"
        "conv = npu_config._Conv()\n"
        "def device_count() -> int: ...\n"
    )
    (folder / "utils.py").write_text("def set_device(device): ...\n")
    (folder / "memory.py").write_text("def max_memory_allocated(device: Any = x.y, *, a=z): ...\n")
    (folder / "npu_config.py").write_text(
        "class _Conv:\n  def __setattr__(self, name, value):\n    if name == 'allow_hf32': ...\n"
    )
    (folder / "amp" / "__init__.py").write_text("from .grad_scaler import GradScaler\n")
    (folder / "amp" / "grad_scaler.py").write_text(
        "class GradScaler:\n  def __init__(self, scale=2.0): ...\n"
    )
    return Wheel(tmp_path)


@pytest.mark.parametrize(
    ("use", "words"),
    [
        ("torch.npu.set_device(device)", None),
        ("torch.npu.max_memory_allocated(device)", None),
        ("torch.npu.max_memory_allocated(a=1)", None),
        ("torch.npu.amp.GradScaler()", None),
        ("torch.npu.conv.allow_hf32 = False", None),
        ("torch.npu.conv.allow_hf33 = False", "not taken"),
        ("torch.npu.synchronize(device)", "does not exist"),
        ("torch.npu.amp.autocast()", "does not exist"),
        ("torch.npu.set_device()", "missing a required argument"),
        ("torch.npu.device_count(1)", "too many positional"),
        ("torch.npu.max_memory_allocated(gpu=1)", "unexpected keyword"),
        ("torch.npu.amp.GradScaler(1, 2)", "too many positional"),
    ],
)
def test_a_wrong_use_is_found(small, use, words):
    found = small.problem(use)
    assert found is None if words is None else words in found


@pytest.mark.parametrize("path", WHEELS, ids=lambda path: path.name)
def test_every_use_is_right(path):
    wheel = Wheel(path)
    uses = (OURS + OF_TORCH).splitlines()
    assert [problem for problem in map(wheel.problem, uses) if problem] == []
    text = "\n".join(file.read_text(encoding="utf-8") for file in python_files(wheel.files))
    assert re.search(r"register_backend\(\s*[\"']hccl[\"'].{,200}devices=\[[\"']npu", text, re.S)


def python_files(folder):
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from python_files(entry)
        elif entry.name.endswith(".py"):
            yield entry


def test_the_list_of_operators_is_in_order():
    lines = (HERE / "npu_registered_ops.txt").read_text().splitlines()
    operators = [line for line in lines if not line.startswith("#")]
    assert operators == sorted(set(operators))
    assert {"aten::convolution_overrideable", "aten::add.Tensor", "aten::gather"} <= set(operators)
