"""The README's blocks, run as they stand but for what a test must change: sizes, and the names of folders and files.

A command that no rule below takes fails here, and so does a block of the Chinese README that the English one has not.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from fastreid_star.data.datasets.synthetic import SyntheticOptions, write_synthetic_vcm
from fastreid_star.engine.defaults import argument_parser, load_config

from . import simulated_npu
from .engine.test_convert import Saadg, as_saved, make
from .engine.test_script import IMAGES, TRAIN_NET
from .pose.environment import needs_environment

REPOSITORY = Path(__file__).parents[1]
ENGLISH, CHINESE = "README.md", "README.zh-CN.md"

DATA = {"TRAIN_IDS": 6, "TEST_IDS": 4, "TRACKLETS": 2, "FRAMES": 12, "SIZE": [32, 16]}
DRAWN = " ".join(f"DATASETS.SYNTHETIC.{key} '{value}'" for key, value in DATA.items())
TINY = (
    "DATALOADER.NUM_WORKERS 0 INPUT.SIZE_TRAIN [32,16] INPUT.SIZE_TEST [32,16] INPUT.CLIP.LENGTH 2 TEST.EVAL_PERIOD 1 "
    "SOLVER.MAX_EPOCH 1 SOLVER.STEPS [] SOLVER.IMS_PER_BATCH 8"
)
CPU = f"MODEL.DEVICE cpu {TINY}"
R18 = "MODEL.BACKBONE.PRETRAIN False MODEL.BACKBONE.DEPTH 18x"  # ResNet-50 in small
TWO = f"SOLVER.IMS_PER_BATCH 16 {R18} DATASETS.ROOT datasets OUTPUT_DIR logs"


class Rule(NamedTuple):
    """How a test runs the commands that begin in some way.

    Args:
        scene: blocks of one scene run in the README's order, in one folder.
        start: what the commands begin with.
        more: what is added at their end.
        changes: what they must say, and what stands there instead.
    """

    scene: str
    start: str
    more: str = ""
    changes: dict[str, str] | None = None

    def apply(self, command: str) -> str:
        for old, new in (self.changes or {}).items():
            assert old in command, f"{command!r} does not say {old!r}"
            command = command.replace(old, new)
        return f"{command.replace('/path/to/datasets', 'datasets')} {self.more}"


RULES = [
    Rule(
        "demo",
        "python tools/dev.py demo",
        f"--output $PWD/demo {CPU} {DRAWN} MODEL.BACKBONE.DEPTH tiny",
    ),
    Rule("demo", "python tools/report.py demo/", "--device cpu"),
    Rule("demo", "python tools/extract_features.py demo/", "--device cpu"),
    Rule("demo", "python tools/search.py demo/", "--device cpu", {"Test/0081": "Test/0007"}),
    Rule("demo", "python tools/export_onnx.py --run demo/"),
    Rule("set-up", "python tools/dev.py setup"),
    Rule("set-up", "source .venv/bin/activate", '&& test "$VIRTUAL_ENV"'),
    Rule("set-up", "pip install -e .", "--dry-run --no-deps --no-build-isolation --no-index"),
    Rule("set-up", "pip install --no-deps fastreid==1.4.0", "--dry-run --no-index"),
    Rule("train", "python tools/train_net.py --config-file configs/HITSZ-VCM/", f"{CPU} {R18}"),
    Rule("train", "python tools/train_net.py --config-file configs/Synthetic/", f"{CPU} {DRAWN}"),
    Rule(
        "train",
        "python tools/ablate.py",
        f"--root datasets/drawn --set {CPU} {DRAWN}",
        {
            "STAR_small*.yml": "STAR_small.yml",
            "--seeds 0 1 2 --data-seeds 0 1": "--seeds 0 --data-seeds 0",
        },
    ),
    Rule("train", "python tools/convert_weights.py THEIRS.pth"),
    Rule("train", "python tools/check_dataset.py HITSZVCM", "--workers 1 || test $? = 1"),
    Rule(
        "train",
        "python tools/convert_skeletons.py skeletons.h5",
        "",
        {"/path/to/datasets/HITSZ-VCM": "new"},
    ),
    Rule(
        "scripts",
        "python tools/train_net.py --config-file path/to/market1501",
        "MODEL.DEVICE cpu OUTPUT_DIR logs",
    ),
    Rule(
        "scripts",
        "python -m fastreid_star path/to/",
        f"{CPU} {TWO}",
        {"--num-gpus 4": "--num-gpus 1"},
    ),
    Rule(
        "scripts",
        "torchrun --nproc-per-node 4 -m",
        f"{CPU} {TWO}",
        {"-node 4": "-node 1 --master-port 29519"},
    ),
    Rule("npu", "source /usr/local/Ascend/", "", {"/usr/local/Ascend/ascend-toolkit/": ""}),
    Rule("npu", "python tools/doctor.py --device npu", "", {"--num-devices 8": "--num-devices 2"}),
    Rule(
        "npu",
        "python tools/train_net.py --num-devices 8",
        f"{TINY} {TWO}",
        {"--num-devices 8": "--num-devices 2"},
    ),
    Rule(
        "npu",
        "torchrun --nnodes 2",
        f"{TINY} {TWO}",
        {
            "--nnodes 2": "--nnodes 1",
            "-node 8": "-node 2",
            "ADDRESS_OF_THE_FIRST": "127.0.0.1",
            "29500": "29517",
        },
    ),
    Rule("pose", "python tools/dev.py pose"),
    Rule(
        "pose",
        ".venv-pose/bin/python tools/extract_skeletons.py",
        "--device cpu --workers 0 --model rtmpose-t_8xb256-420e_coco-256x192",
        {"/path/to/hrnet_w32.pth": "pose.pth"},
    ),
]


class Block(NamedTuple):
    """A block of code: its language, its text and its line."""

    language: str
    text: str
    line: int

    def commands(self) -> list[str]:
        """Of a shell's block, continued lines joined; comments left out."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [re.sub(" +", " ", line) for line in lines if line and not line.startswith("#")]


def blocks(name: str) -> list[Block]:
    text = (REPOSITORY / name).read_text(encoding="utf-8")
    found = re.finditer(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [Block(match[1], match[2], text[: match.start()].count("\n") + 1) for match in found]


def rule_of(command: str) -> Rule:
    rules = [rule for rule in RULES if command.startswith(rule.start)]
    assert len(rules) == 1, (
        f"{len(rules)} rules for {command!r}: each command of the README needs one"
    )
    return rules[0]


def scripts(scene: str) -> list[str]:
    """The blocks of a scene as scripts for bash; Python's blocks belong to the scene of the block before them."""
    made, last = [], None
    for block in blocks(ENGLISH):
        if block.language == "bash":
            rules = [rule_of(command) for command in block.commands()]
            (last,) = {
                rule.scene for rule in rules
            }  # a block is run whole, so its commands share a scene
            text = "\n".join(
                rule.apply(command) for rule, command in zip(rules, block.commands(), strict=True)
            )
        else:
            assert block.language == "python"
            text = f"python - <<'END'\n{block.text.replace('0081', '0007')}END"
        if last == scene:
            made.append(f"# line {block.line} of {ENGLISH}\nset -euo pipefail\n{text}\n")
    assert made, f"the README has no block of the scene {scene}"
    return made


def run(script: str, place: Path, **variables: str) -> str:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    env = {**os.environ, **variables, "PATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["bash", "-c", script], cwd=place, env=env, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, f"{script}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture
def place(tmp_path):
    """A folder that looks like the repository, and keeps what is written out of it."""
    for name in (
        "tools",
        "configs",
        "setup.py",
        "README.md",
        "fastreid_star",
        ".venv",
        ".venv-pose",
    ):
        if (REPOSITORY / name).exists():
            (tmp_path / name).symlink_to(REPOSITORY / name)
    return tmp_path


def write_hitsz_vcm(place: Path) -> None:
    options = SyntheticOptions(
        **{key.lower(): value for key, value in DATA.items() if key != "SIZE"}, size=(32, 16)
    )
    write_synthetic_vcm(place / "datasets" / "HITSZ-VCM", options)


def test_every_block_is_run_by_a_test():
    assert {rule.scene for rule in RULES} == {"demo", "set-up", "train", "scripts", "npu", "pose"}
    shells = [block for block in blocks(ENGLISH) if block.language == "bash"]
    used = {rule_of(command).start for block in shells for command in block.commands()}
    assert used == {rule.start for rule in RULES}, "a rule for what the README no longer says"


def test_both_languages_have_the_same_blocks():
    def said(name):
        return [(block.language, re.sub(r"#.*", "#", block.text)) for block in blocks(name)]

    assert said(CHINESE) == said(ENGLISH)


@pytest.mark.parametrize("name", [ENGLISH, CHINESE])
def test_keys_and_values_in_the_text_are_the_configs(name):
    text = re.sub(
        r"^```.*?^```$",
        "",
        (REPOSITORY / name).read_text(encoding="utf-8"),
        flags=re.MULTILINE | re.DOTALL,
    )
    spans = re.findall(r"`((?:MODEL|SOLVER|DATASETS|INPUT|TEST|DATALOADER)\.[A-Z][^`]*)`", text)
    assert len(spans) > 25
    for span in spans:
        words = span.split()
        for key in words[::2] if len(words) % 2 == 0 else words[:1]:
            node = load_config()
            for part in key.split("."):
                assert part in node, f"there is no config key {key}"
                node = node[part]
        if len(words) % 2 == 0:
            load_config(opts=words)


@pytest.mark.parametrize("name", [ENGLISH, CHINESE])
def test_files_that_are_linked_or_shown_are_there(name):
    text = (REPOSITORY / name).read_text(encoding="utf-8")
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith("#"):
            assert target[1:] in anchors, target
        elif not target.startswith("http"):
            assert (REPOSITORY / target.partition("#")[0]).exists(), target


def test_the_demo_and_what_can_be_done_with_it(place):
    said = [run(script, place) for script in scripts("demo")]
    assert "report.html" in said[0]
    for made in ("report.html", "gallery", "lists", "star.onnx"):
        assert (place / "demo" / made).exists()
    line = re.compile(
        r"^0007/ir/\S+( 00\d\d/rgb/\S+){3}$", re.MULTILINE
    )  # a query's name and its three matches'
    assert any(len(line.findall(lines)) >= 2 for lines in said), (
        "the Python block prints a line a query"
    )


def test_set_up(place):
    if not (REPOSITORY / ".venv" / "fastreid-star.stamp").is_file():
        pytest.skip("python tools/dev.py setup has not made .venv here")
    for script in scripts("set-up"):
        run(script, place)


def test_training(place):
    write_hitsz_vcm(place)
    torch.save(as_saved(make(Saadg), "saadg"), place / "THEIRS.pth")
    run(
        "python tools/convert_skeletons.py datasets/HITSZ-VCM/skeletons skeletons.h5; mkdir new",
        place,
    )
    for script in scripts("train"):
        run(script, place)
    for made in (
        "logs/HITSZ-VCM/SAD_R50",
        "logs/HITSZ-VCM/STAR_R50",
        "logs/ablation",
        "OURS.pth",
        "new/skeletons",
    ):
        assert (place / made).exists()
    assert (place / "check" / "frame_grid.png").exists()


def test_scripts_for_fastreid(place):
    write_hitsz_vcm(place)
    (place / "path" / "to").mkdir(parents=True)
    (place / "path" / "to" / "train_net.py").write_text(TRAIN_NET)
    (place / "path" / "to" / "market1501_bagtricks.yml").write_text(IMAGES)
    people = {
        "bounding_box_train": range(1, 9),
        "query": range(9, 13),
        "bounding_box_test": range(9, 13),
    }
    for folder, pids in people.items():
        (place / "datasets" / "Market-1501-v15.09.15" / folder).mkdir(parents=True)
        for pid in pids:
            for number, camera in np.ndindex(3, 2):
                file = f"{pid:04d}_c{camera + 1}s1_{number:06d}_00.jpg"
                picture = Image.new("RGB", (16, 32), (20 * pid, 90 * camera, 80 * number))
                picture.save(place / "datasets" / "Market-1501-v15.09.15" / folder / file)
    for script in scripts("scripts"):
        run(script, place)


@pytest.mark.skipif(
    simulated_npu.missing_compiler() is not None, reason=str(simulated_npu.missing_compiler())
)
def test_ascend_on_the_simulated_npu(place):
    write_hitsz_vcm(place)
    (place / "set_env.sh").write_text("export ASCEND_TOOLKIT_HOME=$PWD\n")
    variables = simulated_npu.environment(SIMULATED_NPU_COUNT="2")
    for script in scripts("npu"):
        run(script, place, **variables)


@needs_environment
def test_the_pose_environment(place):
    write_hitsz_vcm(place)
    (place / "datasets" / "HITSZ-VCM" / "skeletons").rename(place / "drawn")
    untrained = """
        import torch
        from fastreid_star.pose import mmpose_backend as b
        path = b.config_path("rtmpose-t_8xb256-420e_coco-256x192")
        torch.save(b.init_model(b.read_config(path), None, device="cpu").state_dict(), "pose.pth")
    """
    run(
        "\n".join(
            [
                ".venv-pose/bin/python - <<'END'",
                *map(str.strip, untrained.strip().splitlines()),
                "END",
            ]
        ),
        place,
    )
    for script in scripts("pose"):
        run(script, place)
    assert (place / "datasets" / "HITSZ-VCM" / "skeletons" / "index.json").exists()


@pytest.mark.parametrize("name", [ENGLISH, CHINESE])
def test_the_arguments_named_in_the_text_exist(name):
    text = (REPOSITORY / name).read_text(encoding="utf-8")
    known = " ".join(file.read_text() for file in (REPOSITORY / "tools").glob("*.py"))
    known += argument_parser("").format_help()
    flags = {
        flag
        for span in re.findall(r"`([^`\n]+)`", text)
        for flag in re.findall(r"(?<![\w-])--[a-z][\w-]+", span)
    }
    assert len(flags) > 8
    assert not [
        flag
        for flag in flags
        if f'"{flag}"' not in known and flag not in known and flag != "--no-deps"
    ]
