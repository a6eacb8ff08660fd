"""The Dockerfiles: what they copy is in the build context, and the commands that they run exist."""

import fnmatch
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from fastreid_star.cli.main import COMMANDS, INSTALL_FASTREID

from .test_readme import commands

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "docker").iterdir())
INSTRUCTIONS = {"ARG", "FROM", "RUN", "WORKDIR", "COPY", "ENTRYPOINT", "CMD", "SHELL"}
BASES = {
    "Dockerfile": "pytorch/pytorch:2.8.0-cuda12.8-cudnn9-runtime",
    "Dockerfile.ascend": "ascendai/cann:8.5.0-910b-ubuntu22.04-py3.11",
}
pages = pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)


def instructions(path):
    """(instruction, rest) of a Dockerfile; comments are dropped and continued lines joined."""
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    whole = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [tuple(line.split(maxsplit=1)) for line in whole.splitlines() if line.strip()]


def of(path, name):
    return [rest for instruction, rest in instructions(path) if instruction == name]


def ignored(name):
    """Whether .dockerignore leaves a path out of the build context; the last match decides."""
    out = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.strip().removeprefix("!")
        if pattern and not pattern.startswith("#"):
            parts = [name, *map(str, Path(name).parents)][:-1] or [name]
            if any(fnmatch.fnmatch(part, pattern.replace("**/", "*")) for part in parts):
                out = not line.startswith("!")
    return out


def test_there_are_two():
    assert [path.name for path in FILES] == list(BASES)


@pages
def test_instructions_are_known_and_the_base_is_fixed(path):
    found = instructions(path)
    assert {name for name, _ in found} <= INSTRUCTIONS
    assert found[:2] == [("ARG", f"BASE={BASES[path.name]}"), ("FROM", "${BASE}")]
    for name in ("ENTRYPOINT", "CMD", "SHELL"):
        for words in of(path, name):
            assert all(isinstance(word, str) for word in json.loads(words))


@pages
def test_each_source_of_a_copy_is_in_the_build_context(path):
    sources = [word for rest in of(path, "COPY") for word in shlex.split(rest)[:-1]]
    assert {"setup.py", "configs", "fastreid_star"} <= set(sources)
    for source in sources:
        assert (ROOT / source).exists(), source
        assert not ignored(source)
    # what setup.py reads to build a wheel
    for name in re.findall(r'HERE / "([\w.]+)"', (ROOT / "setup.py").read_text()):
        assert name in sources


def test_data_runs_and_environments_stay_outside():
    for name in (".git", ".venv", "datasets", "logs/SAD_R50/model_best.pth", "tests/conftest.py"):
        assert ignored(name), name
    assert ignored("fastreid_star/__pycache__/config.pyc")
    assert not ignored("fastreid_star/cli/main.py")


@pages
def test_commands_exist_and_quoting_closes(path):
    text = path.read_text()
    runs = " && ".join(of(path, "RUN"))
    shlex.split(runs)  # raises ValueError for an open quote
    assert INSTALL_FASTREID.removeprefix("pip install ").split()[-1] in runs
    assert "--no-deps fastreid==1.4.0" in runs
    named = re.findall(r"fastreid-star (?:-\S+ )?([a-z]+)\b", runs)
    named += re.findall(r"fastreid-star(?:-ascend)? ([a-z]+)", text.partition("ARG BASE")[0])
    assert named
    assert set(named) <= set(COMMANDS)
    assert "fastreid-star" in of(path, "ENTRYPOINT")[0]
    assert of(path, "CMD") == ['["--help"]']


def test_the_page_names_files_arguments_and_commands_that_exist():
    docker = [shlex.split(command) for command in commands("docs/systems.md")]
    docker = [words[1:] for words in docker if words[0] == "docker"]
    built = {}
    for words in docker:
        if words[0] == "build":
            path = ROOT / words[words.index("-f") + 1]
            assert path in FILES
            built[words[words.index("-t") + 1]] = path
            arguments = {rest.partition("=")[0] for rest in of(path, "ARG")}
            assert words.count("--build-arg") <= 1
            if "--build-arg" in words:
                assert words[words.index("--build-arg") + 1].partition("=")[0] in arguments
            assert words[-1] == ".", "setup.py and the package are there"
        else:
            image = next(word for word in words if word in built)
            assert words[words.index(image) + 1] in COMMANDS
    assert set(built.values()) == set(FILES)


@pages
def test_hadolint_finds_nothing(path):
    program = shutil.which("hadolint")
    if program is None:
        pytest.skip("hadolint is not installed")
    done = subprocess.run([program, str(path)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
