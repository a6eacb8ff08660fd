"""Commands, flags, configs, keys and links in README and docs exist. Quick commands are run."""

from __future__ import annotations

import argparse
import ast
import functools
import re
import shlex
from pathlib import Path

import pytest

from fastreid_star.cli import main as cli
from fastreid_star.engine.defaults import load_config

ROOT = Path(__file__).parents[1]
README, CHINESE = "README.md", "README.zh-CN.md"
PAGES = [README, CHINESE, "CONTRIBUTING.md", "configs/README.md"]
PAGES += sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md"))
# not our programs
FOREIGN = (
    "pip",
    "sh",
    "source",
    "python",
    "cp",
    "atc",
    "mutmut",
    "torchrun",
    "apt-get",
    "dpkg-deb",
    "docker",
)
DEV = {"setup", "demo", "test", "pose", "oldest"}  # commands of tools/dev.py


@functools.cache
def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


@functools.cache
def defaults():
    return load_config()


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text_of(page), re.M | re.S)


def commands(page: str) -> list[str]:
    """The commands in the shell blocks of a page; continued lines are joined."""
    lines = "".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.strip() and not line.startswith("#")]


def ours(command: str) -> list[str] | None:
    """The arguments of fastreid-star in a command; None for other programs."""
    words = shlex.split(re.sub(r"^\w+=\S+ ", "", command))
    if words[0] == "torchrun" and "fastreid_star" in words:
        return words[words.index("fastreid_star") + 1 :]
    if words[:3] == ["python", "-m", "fastreid_star"]:
        return ["run-script", *words[3:]] if words[3].endswith(".py") else words[3:]
    if Path(words[0]).name == "fastreid-star":
        return words[1:]
    assert words[0] in FOREIGN, f"unknown program in {command!r}"
    return None


def parsed(arguments: list[str]) -> argparse.Namespace:
    """The parsed arguments of a command, without --import: there is no package of a user here."""
    parser, _ = cli.command_parser(arguments[0])
    if "--import" in arguments:
        assert "--import" in parser.format_help()
        where = arguments.index("--import")
        arguments = arguments[:where] + arguments[where + 2 :]
    pairs = arguments[0] in cli.PAIRS
    return (parser.parse_args if pairs else parser.parse_intermixed_args)(arguments[1:])


CASES = [(page, command) for page in PAGES for command in commands(page)]


@pytest.mark.parametrize(("page", "command"), CASES, ids=[f"{p}: {c[:40]}" for p, c in CASES])
def test_command_exists_and_its_flags_configs_and_keys_are_known(page, command):
    arguments = ours(command)
    if arguments is None:
        assert set(re.findall(r"tools/dev\.py (\w+)", command)) <= DEV
        return
    assert arguments[0] in cli.COMMANDS
    if arguments[0] == "run-script" or len(arguments) == 1:
        return
    args = parsed(arguments)
    pairs = [*(getattr(args, "opts", None) or []), *(getattr(args, "set", None) or [])]
    files = [getattr(args, "config_file", None), *(getattr(args, "configs", None) or [])]
    shipped = [name for name in files if name and not re.match("path|my_|logs", name)]
    for name in shipped or [""]:
        load_config(name, pairs)


@pytest.mark.parametrize("page", PAGES)
def test_config_keys_in_the_text_exist(page):
    prose = re.sub(r"^```.*?^```$", "", text_of(page), flags=re.M | re.S)
    pattern = r"`((?:MODEL|SOLVER|DATASETS|INPUT|TEST|DATALOADER)\.[A-Z][^`]*)`"
    for span in re.findall(pattern, prose):
        words = shlex.split(span)
        complete = len(words) % 2 == 0 and not span.endswith(("*", ".pth"))
        for key in words[::2] if complete else words[:1]:
            node = defaults()
            for part in key.removesuffix(".*").split("."):
                assert part in node, f"there is no config key {key}"
                node = node[part]
        if complete and "/path/to" not in span:
            load_config(opts=words)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        if target.startswith("http"):
            continue
        name, _, anchor = target.partition("#")
        path = (ROOT / page).parent / name if name else ROOT / page
        assert path.exists(), target
        if anchor:
            heads = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.M)
            slugs = {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}
            assert anchor in slugs, target


@pytest.mark.parametrize("page", PAGES)
def test_python_examples_parse_and_import_what_exists(page):
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Import | ast.ImportFrom):
                exec(compile(ast.Module([node], []), page, "exec"), {})


def test_both_languages_have_the_same_blocks():
    for language in ("bash", "text", "bibtex"):
        english, chinese = blocks(README, language), blocks(CHINESE, language)
        assert len(english) == len(chinese)
        if language != "text":  # folder trees have translated comments
            assert english == chinese


def test_the_configs_of_the_readme_are_listed(capsys):
    cli.run("configs")
    listed = capsys.readouterr().out
    named = re.findall(r"`((?:HITSZ-VCM|BUPTCampus)/\w+\.yml)`", text_of(README))
    assert len(named) > 5
    assert all(name in listed for name in named)
