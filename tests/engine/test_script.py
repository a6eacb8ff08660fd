"""Scripts written for fast-reid, run unmodified by ``python -m fastreid_star``, in one process and
in two.
"""

import argparse
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from fastreid_star.cli.main import main
from fastreid_star.engine.defaults import default_setup, load_config
from fastreid_star.engine.script import device_of, script_parser

from ..forked import command, run_forked
from ..tiny import REPOSITORY, tiny_options
from .scripts import IMAGES, PROJECT, TRAIN_NET

STAR = str(REPOSITORY / "configs" / "Synthetic" / "STAR_small.yml")


def start(*words):
    """``python -m fastreid_star SCRIPT ...`` in a forked process, from the repository."""

    def run():
        os.chdir(REPOSITORY)
        main(["run-script", *map(str, words)])

    ended = run_forked(run)
    assert ended.status == 0, ended.text


def weights(output):
    return torch.load(output / "model_final.pth", weights_only=True)["model"]


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


@pytest.fixture(scope="module")
def train_net(tmp_path_factory):
    path = tmp_path_factory.mktemp("upstream") / "train_net.py"
    path.write_text(TRAIN_NET)
    return path


# --- clips ---------------------------------------------------------------------------------------


def star_options(*arguments):
    """A tiny run of STAR_small.yml on the data of `tiny_root`."""
    drawn = ("OCCLUSION", 0.0), ("BLUR", 0.3), ("BACKGROUND", False)
    more = (part for key, value in drawn for part in (f"DATASETS.SYNTHETIC.{key}", value))
    return tiny_options(*arguments, *more)


@pytest.fixture(scope="module")
def star_run(train_net, tiny_root, tmp_path_factory):
    output = tmp_path_factory.mktemp("star")
    start(train_net, "--config-file", STAR, *star_options(tiny_root, output))
    return output


def test_the_script_trains_what_the_tool_trains(star_run, tiny_root, tmp_path):
    ended = command("train", "--config-file", STAR, *star_options(tiny_root, tmp_path))
    assert ended.status == 0, ended.text
    assert_same(weights(star_run), weights(tmp_path))
    saved = (star_run / "config.yaml").read_text()
    assert saved.replace(str(star_run), str(tmp_path)) == (tmp_path / "config.yaml").read_text()
    assert "1 process(es) on cpu" in (star_run / "log.txt").read_text()


def test_evaluation_and_resuming_give_the_same(star_run, train_net, tiny_root, tmp_path):
    options = star_options(
        tiny_root, tmp_path / "test", "MODEL.WEIGHTS", star_run / "model_final.pth"
    )
    start(train_net, "--config-file", STAR, "--eval-only", *options)
    name = "per_query_SyntheticVCM.csv"
    assert (tmp_path / "test" / name).read_bytes() == (star_run / name).read_bytes()
    assert not (tmp_path / "test" / "config.yaml").exists()
    shutil.copy(star_run / "model_last.pth", tmp_path)
    (tmp_path / "last_checkpoint").write_text("model_last.pth")
    options = star_options(tiny_root, tmp_path)
    start(train_net, *options, "--config-file", STAR, "--resume")
    assert_same(weights(star_run), weights(tmp_path))


@pytest.mark.long
def test_two_processes_of_ours_or_of_torchrun(train_net, tiny_root, tmp_path):
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    for name, words in (("ours", []), ("torchrun", torchrun)):
        more = ("SOLVER.IMS_PER_BATCH", "16", "SOLVER.MAX_EPOCH", "1")
        options = star_options(tiny_root, tmp_path / name, *more)
        command = [sys.executable, *words, "-m", "fastreid_star", str(train_net)]
        command += ["--config-file", STAR, "--num-gpus", "2", *options]
        subprocess.run(command, cwd=REPOSITORY, check=True)
        assert "2 process(es) on cpu" in (tmp_path / name / "log.txt").read_text()
    assert_same(weights(tmp_path / "ours"), weights(tmp_path / "torchrun"))


# --- images --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def market(tmp_path_factory):
    """Config and options for a folder in Market-1501's layout: people of one color each, two
    cameras.
    """
    root = tmp_path_factory.mktemp("market")
    rng = np.random.default_rng(0)
    for folder, people, images in (
        ("bounding_box_train", range(1, 9), 3),
        ("query", range(9, 13), 1),
        ("bounding_box_test", range(9, 13), 3),
    ):
        (root / "Market-1501-v15.09.15" / folder).mkdir(parents=True)
        for pid in people:
            color = np.random.default_rng(pid).integers(40, 215, 3)
            for camera, number in np.ndindex(2, images):
                image = np.clip(color + rng.normal(0, 20, (32, 16, 3)), 0, 255).astype(np.uint8)
                name = f"{pid:04d}_c{camera + 1}s1_{number:06d}_00.jpg"
                Image.fromarray(image).save(root / "Market-1501-v15.09.15" / folder / name)
    config = root / "bagtricks.yml"
    config.write_text(IMAGES)
    return ("--config-file", config), ("DATASETS.ROOT", root)


@pytest.fixture(scope="module")
def image_run(train_net, market, tmp_path_factory):
    output = tmp_path_factory.mktemp("images")
    config, options = market
    start(train_net, *config, *options, "OUTPUT_DIR", output)
    return output


def result_line(output):
    """The row of numbers of the last evaluation in the log."""
    return [
        line
        for line in (output / "log.txt").read_text().splitlines()
        if line.startswith("| Market1501")
    ][-1]


def test_images_train_and_evaluate(image_run, train_net, market, tmp_path):
    config, options = market
    more = ("OUTPUT_DIR", tmp_path, "MODEL.WEIGHTS", image_run / "model_final.pth")
    start(train_net, *config, "--eval-only", *options, *more)
    assert result_line(tmp_path) == result_line(image_run)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project's script, by a path relative to the working directory."""
    path = tmp_path_factory.mktemp("project") / "run.py"
    path.write_text(PROJECT)
    (path.parent / "neighbor.py").write_text('ENDING = ".txt"\n')
    return os.path.relpath(path, REPOSITORY)


def test_a_projects_own_trainer(project, image_run, market, tmp_path):
    config, options = market
    more = ("OUTPUT_DIR", tmp_path, "PROJECT.NOTE", "signed")
    start(project, *config, *options, *more)
    assert_same(weights(tmp_path), weights(image_run))
    assert (tmp_path / "rank0.txt").read_text() == "signed"
    assert "Note" in (tmp_path / "log.txt").read_text()


# --- errors --------------------------------------------------------------------------------------


def test_a_wrong_key_is_one_line(train_net):
    command = [sys.executable, "-m", "fastreid_star", str(train_net), "--config-file", STAR]
    ended = subprocess.run(
        [*command, "SOLVER.BASE_LT", "1"], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: ")
    assert "SOLVER.BASE_LR" in line


# --- the parts -----------------------------------------------------------------------------------


def test_arguments_are_those_of_fastreids_scripts():
    args = script_parser().parse_args(["--num-gpus", "2", "SOLVER.MAX_EPOCH", "1"])
    assert (args.config_file, args.num_gpus, args.opts) == ("", 2, ["SOLVER.MAX_EPOCH", "1"])


def test_a_negative_seed_becomes_a_fresh_one_in_the_scripts_own_config(tmp_path):
    cfg = load_config("", ["OUTPUT_DIR", str(tmp_path), "MODEL.DEVICE", "cpu"])
    cfg.defrost()
    cfg.SEED = -1
    cfg.freeze()
    default_setup(cfg, argparse.Namespace())
    assert cfg.SEED >= 0
    assert cfg.is_frozen()


def test_the_device_is_found_before_the_script_reads_its_config(tmp_path):
    (tmp_path / "base.yml").write_text("MODEL: {DEVICE: cuda}\n")
    (tmp_path / "own.yml").write_text("_BASE_: base.yml\nPROJECT: {KEY: 1}\n")

    def args(file, *opts):
        return argparse.Namespace(config_file=str(tmp_path / file) if file else "", opts=list(opts))

    assert device_of(("no command line", 3)) == "auto"
    assert device_of((1, args(""))) == "auto"
    assert device_of((args("own.yml"),)) == "cuda"
    assert device_of((args("own.yml", "PROJECT.KEY", "2", "MODEL.DEVICE", "npu"),)) == "npu"
    assert device_of((args("nowhere.yml", "MODEL.DEVICE", "cpu"),)) == "cpu"
    assert (
        device_of((argparse.Namespace(config_file=str(tmp_path / "base.yml"), opts=None),))
        == "cuda"
    )
