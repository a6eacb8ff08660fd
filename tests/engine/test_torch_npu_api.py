"""What this package uses of torch_npu is in the real torch_npu, which needs no Ascend and no CANN to be asked.

Opt-in: set TORCH_NPU_WHEEL to the wheel's file. It is unpacked beside the environment, never installed into it (without
CANN it breaks `import torch`), and loads against one stub library in place of CANN's.

    pip download --no-deps torch-npu==2.13.0
    TORCH_NPU_WHEEL=torch_npu-2.13.0-....whl pytest tests/engine/test_torch_npu_api.py

`python tests/engine/test_torch_npu_api.py WHEEL` writes npu_registered_ops.txt anew.
"""

import ast
import importlib
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import pytest
import torch

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
OPERATORS = HERE / "npu_registered_ops.txt"
ROOTS = ("torch.npu", "torch.cuda", "torch_npu")
NO_NPU = "no NPU is visible"


# ------------------------------------------------------------------------------------------ what the package uses


class Use(NamedTuple):
    """One place where the package reads, assigns or calls a device's name."""

    where: str
    name: str
    kind: str  # read, assign or call
    positional: int = 0
    keywords: tuple[str, ...] = ()


def uses_of_package() -> list[Use]:
    sources = sorted((REPOSITORY / "fastreid_star").rglob("*.py"))
    return [
        use
        for path in sources
        for use in uses_in(path.read_text(), path.relative_to(REPOSITORY).as_posix())
    ]


def uses_in(source: str, file: str) -> list[Use]:
    """All uses of torch.npu, torch.cuda and torch_npu, also by another name or through ``_module(kind)``.

    Raises:
        ValueError: one that cannot be followed, such as a module put into a variable.
    """
    tree = ast.parse(source)
    imported, uses = _imports(tree, file)
    seen = set()

    def note(node, kind, positional=0, keywords=()):
        for name in _names(node, imported):
            where = f"{file}:{node.lineno}"
            if name in ROOTS:
                raise ValueError(f"{where}: {name} must be followed by the name that is used of it")
            uses.append(Use(where, name, kind, positional, keywords))
        while isinstance(node, ast.Attribute):
            seen.add(node)
            node = node.value
        seen.add(node)

    for node in ast.walk(tree):  # the outer ones first
        if node in seen:
            continue
        if isinstance(node, ast.Call) and _names(node.func, imported):
            if any(isinstance(part, ast.Starred) for part in node.args) or any(
                k.arg is None for k in node.keywords
            ):
                raise ValueError(f"{file}:{node.lineno}: write the arguments out, not * and **")
            note(node.func, "call", len(node.args), tuple(keyword.arg for keyword in node.keywords))
        elif isinstance(node, ast.Attribute) and _names(node, imported):
            note(node, "assign" if isinstance(node.ctx, ast.Store) else "read")
        elif isinstance(node, ast.Call) or (
            isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
        ):
            note(node, "read")
    return uses


def _imports(tree: ast.Module, file: str) -> tuple[dict[str, str], list[Use]]:
    """What each imported name of a file stands for, and the imports that are uses themselves."""
    imported, uses = {}, []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
            imported |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            imported |= {
                alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names
            }
        else:
            continue
        uses += [
            Use(f"{file}:{node.lineno}", name, "read") for name in names if name.startswith(_INSIDE)
        ]
    return imported, uses


_INSIDE = tuple(f"{root}." for root in ROOTS)


def _names(node: ast.expr, imported: dict[str, str]) -> list[str]:
    """The dotted names below or at ROOTS that an expression stands for: two where it starts with ``_module(kind)``."""
    attributes = []
    while isinstance(node, ast.Attribute):
        attributes.insert(0, node.attr)
        node = node.value
    if isinstance(node, ast.Name):
        starts = [imported.get(node.id, node.id)]
    elif (
        isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "_module"
    ):
        starts = ["torch.npu", "torch.cuda"]
    else:
        return []
    names = [".".join([start, *attributes]) for start in starts]
    return [name for name in names if name in ROOTS or name.startswith(_INSIDE)]


# ------------------------------------------------------------------------------------------ held against a module


def problem(use: Use) -> str | None:
    """What is wrong with a use, by the modules of this process; None: nothing."""
    path, _, last = use.name.rpartition(".")
    try:
        owner = _find(path)
        if use.kind == "assign":
            return None if _takes(owner, last) else f"{use.where}: {use.name} takes no value"
        value = getattr(
            owner, last, None
        )  # torch.npu.matmul and its like answer None to names they do not have
        value = _find(use.name) if value is None else value
        if use.kind == "call":
            inspect.signature(value).bind(*range(use.positional), **dict.fromkeys(use.keywords))
    except ImportError:
        return f"{use.where}: {use.name} does not exist"
    except (TypeError, ValueError) as error:
        return f"{use.where}: {use.name}: {error}"
    return None


def _find(name: str):
    """The object of a dotted name, submodules that nobody has imported yet among them."""
    path, _, last = name.rpartition(".")
    found = getattr(_find(path), last, None) if path else None
    return importlib.import_module(name) if found is None else found


def _takes(owner, name: str) -> bool:
    """Whether an assignment arrives: torch_npu's objects of options swallow any name, some cannot be read."""
    import torch_npu

    existed = getattr(owner, name, None) is not None
    with mock.patch.object(
        torch_npu._C, "_npu_setOption", wraps=torch_npu._C._npu_setOption
    ) as set_option:
        setattr(owner, name, False)
    return existed or set_option.called


def answers(uses: list) -> dict:
    """All that is asked of the real torch_npu, in a process that can load it."""
    before = [name for name in torch._C._dispatch_get_all_op_names() if not _registered(name)]
    import torch_npu

    from fastreid_star.engine import device

    said = [device._why_no_npu() for _ in range(2)]
    with mock.patch.object(torch_npu, "__version__", "2.1.0.post3"):
        mismatch = device._why_no_npu()
    with mock.patch.object(torch_npu, "__version__", f"{torch_npu.__version__}.post1"):
        said.append(device._why_no_npu())
    return {
        "version": torch_npu.__version__,
        "problems": [problem(Use(*use)) for use in uses],
        "said": said,
        "mismatch": mismatch,
        "backends": torch.distributed.Backend.default_device_backend_map,
        "operators": sorted(filter(_registered, before)),
    }


def _registered(operator: str) -> bool:
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    return has_kernel(operator, "PrivateUse1") or has_kernel(operator, "AutogradPrivateUse1")


def refusals() -> list[str]:
    """What is said, twice, in a process that cannot load it."""
    from fastreid_star.engine import device

    return [device._why_no_npu() for _ in range(2)]


def ask(environment: dict[str, str], function: str, *arguments):
    """Call a function of this file in a process of its own."""
    call = f"here.{function}(*json.load(sys.stdin))"
    run = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import json, sys, {Path(__file__).stem} as here; print(json.dumps({call}))",
        ],
        env=environment,
        input=json.dumps(arguments),
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    return json.loads(run.stdout.splitlines()[-1])


# ------------------------------------------------------------------------------------------ torch_npu without CANN


def unpack(wheel: Path, folder: Path) -> dict[str, str]:
    """The environment of a process that finds the wheel's torch_npu, but not CANN."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    environment = {key: value for key, value in os.environ.items() if key != "LD_LIBRARY_PATH"}
    return environment | {
        "PYTHONPATH": os.pathsep.join(map(str, (folder, REPOSITORY, HERE))),
        "TORCH_DEVICE_BACKEND_AUTOLOAD": "0",
    }


def with_stubs(environment: dict[str, str], wheel: Path, folder: Path) -> dict[str, str]:
    """That environment with a library in CANN's place, whose functions all do nothing and return 0."""
    (extension,) = wheel.glob("torch_npu/_C.*.so")
    libraries = {**environment, "LD_LIBRARY_PATH": str(Path(torch.__file__).parent / "lib")}
    linked = subprocess.run(["ldd", "-r", extension], env=libraries, capture_output=True, text=True)
    report = linked.stdout + linked.stderr
    symbols = set(re.findall(r"undefined symbol:\s+(\w+)", report))
    functions = sorted(
        name for name in symbols if not re.match("_?Py", name)
    )  # Python's are in the executable
    missing = sorted(set(re.findall(r"(\S+) => not found", report)))
    assert functions, report
    assert missing, report
    folder.mkdir()
    (folder / "stubs.c").write_text(
        "".join(f"int {name}(void) {{ return 0; }}\n" for name in functions)
    )
    subprocess.run(
        [compiler(), "-shared", "-fPIC", "-o", "stubs.so", "stubs.c"], cwd=folder, check=True
    )
    for library in missing:
        (folder / library).symlink_to("stubs.so")
    return {**environment, "LD_LIBRARY_PATH": str(folder)}


def compiler() -> str | None:
    return shutil.which("cc") or shutil.which("gcc")


@pytest.fixture(scope="session")
def environments(tmp_path_factory):
    """Without the stubs and with them."""
    wheel = os.environ.get("TORCH_NPU_WHEEL")
    if not wheel:
        pytest.skip(
            "set TORCH_NPU_WHEEL to the file that `pip download --no-deps torch-npu==2.13.0` gets"
        )
    if not compiler() or not shutil.which("ldd"):
        pytest.skip("needs a C compiler and ldd")
    folder = tmp_path_factory.mktemp("torch_npu")
    without = unpack(Path(wheel), folder / "wheel")
    return without, with_stubs(without, folder / "wheel", folder / "stubs")


PLANTED = [
    Use("planted", "torch.npu.synchronize", "call"),
    Use("planted", "torch.npu.no_such.thing", "read"),
    Use("planted", "torch.npu.matmul.allow_hf33", "read"),
    Use("planted", "torch.npu.matmul.allow_hf33", "assign"),
    Use("planted", "torch.npu.config.allow_internal_layout", "assign"),
    Use("planted", "torch.npu.set_compile_mode", "call", 0, ("jit",)),
    Use("planted", "torch.npu.device_count", "call", 1),
    Use("planted", "torch.npu.set_device", "call"),
]


@pytest.fixture(scope="session")
def real(environments):
    """The answers of the real torch_npu: first about the uses of the package, then about the planted ones."""
    return ask(environments[1], "answers", [*uses_of_package(), *PLANTED])


# ------------------------------------------------------------------------------------------ tests without the wheel


def test_the_collector_finds_what_is_known():
    uses = {(use.name, use.kind, use.positional, use.keywords) for use in uses_of_package()}
    assert uses >= {
        ("torch.npu.is_available", "call", 0, ()),
        ("torch.npu.device_count", "call", 0, ()),
        ("torch.cuda.device_count", "call", 0, ()),
        ("torch.npu.set_device", "call", 1, ()),
        ("torch.cuda.set_device", "call", 1, ()),
        ("torch.npu.set_compile_mode", "call", 0, ("jit_compile",)),
        ("torch.npu.config.allow_internal_format", "assign", 0, ()),
        ("torch_npu.__version__", "read", 0, ()),
    }


def test_the_collector_follows_other_names():
    source = """
import torch.npu as device
import torch_npu.contrib
from torch_npu.optim import NpuFusedSGD as SGD

torch.npu.a.b(torch_npu.c, 1, key=SGD).d = device.e
_module(kind).f(g=0)
"""
    uses = {use[1:] for use in uses_in(source, "file")}
    assert uses == {
        ("torch_npu.contrib", "read", 0, ()),
        ("torch_npu.optim.NpuFusedSGD", "read", 0, ()),
        ("torch.npu.a.b", "call", 2, ("key",)),
        ("torch_npu.c", "read", 0, ()),
        ("torch.npu.e", "read", 0, ()),
        ("torch.npu.f", "call", 0, ("g",)),
        ("torch.cuda.f", "call", 0, ("g",)),
    }


@pytest.mark.parametrize(
    "source", ["x = _module(kind)", "f(torch.npu)", "x = torch_npu", "torch.npu.f(*x)"]
)
def test_the_collector_refuses_what_it_cannot_follow(source):
    with pytest.raises(ValueError, match="file:1"):
        uses_in(source, "file")


def test_a_wrong_use_is_found():
    assert problem(Use("here", "torch.cuda.synchronize", "call", 1)) is None
    assert (
        problem(Use("here", "torch.cuda.synchronise", "call"))
        == "here: torch.cuda.synchronise does not exist"
    )
    assert "unexpected keyword argument 'jit'" in problem(
        Use("here", "torch.cuda.synchronize", "call", 0, ("jit",))
    )
    assert "too many positional" in problem(Use("here", "torch.cuda.synchronize", "call", 2))


def test_the_list_of_operators_is_in_order():
    operators = OPERATORS.read_text().splitlines()[2:]
    assert operators == sorted(set(operators))
    assert {"aten::convolution_overrideable", "aten::add.Tensor", "aten::gather"} <= set(operators)


# ------------------------------------------------------------------------------------------ tests with the wheel


def test_every_use_is_right(real):
    assert [found for found in real["problems"][: -len(PLANTED)] if found] == []


def test_planted_uses_are_wrong(real):
    assert all(real["problems"][-len(PLANTED) :]), real["problems"][-len(PLANTED) :]


def test_the_version_is_accepted_and_no_npu_is_seen(real):
    assert all(NO_NPU in reason for reason in real["said"]), real["said"]
    assert "torch_npu 2.1.0 must be the same release" in real["mismatch"]


def test_the_backend_of_collectives(real):
    from fastreid_star.engine import device

    assert real["backends"]["npu"] == device._BACKENDS["npu"]


def test_without_cann(environments):
    for reason in ask(environments[0], "refusals"):
        assert re.search(
            r"does not load \(lib\w+\.so: cannot open shared object file.*set_env\.sh", reason
        )


def test_the_list_of_operators(real):
    assert OPERATORS.read_text() == operators_text(real), (
        f"python {Path(__file__).name} WHEEL writes it anew"
    )


def operators_text(real: dict) -> str:
    header = [
        f"# torch's own operators that torch_npu {real['version']} registers for PrivateUse1 or AutogradPrivateUse1.",
        f"# Made from its wheel: python tests/engine/{Path(__file__).name} WHEEL",
    ]
    return "\n".join([*header, *real["operators"], ""])


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        plain = unpack(Path(sys.argv[1]), Path(scratch, "wheel"))
        found = ask(
            with_stubs(plain, Path(scratch, "wheel"), Path(scratch, "stubs")), "answers", []
        )
    OPERATORS.write_text(operators_text(found))
