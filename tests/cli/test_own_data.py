"""docs/own_data.md as a user follows it: a tree and a CSV file with their usual faults, to a trained model."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastreid_star.cli.main import run
from fastreid_star.engine.defaults import load_config

from ..tiny import REPOSITORY, tiny_options

TEXT = (REPOSITORY / "docs" / "own_data.md").read_text(encoding="utf-8")
NETWORK = {"NAME": "build_small_resnet_backbone", "LAST_STRIDE": 2, "PRETRAIN": False}


def section(title):
    return TEXT[TEXT.index(f"## {title}\n") :].partition("\n## ")[0]


def block(title, language):
    (text,) = re.findall(rf"^```{language}\n(.*?)^```$", section(title), re.M | re.S)
    return text


def draw(*paths):
    """Images of people with a color each, which also shows in infrared."""
    rng = np.random.default_rng(0)
    for path in map(Path, paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        color = np.random.default_rng(list(path.parts[-2].encode())).integers(40, 215, 3)
        image = np.clip(color + rng.normal(0, 20, (32, 16, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(image).save(path)


def tree(*people, suffixes=("jpg", "jpg")):
    """The tree of the page."""
    for person in people:
        for place in ("visible/1", "infrared/2"):
            draw(*(f"mine/{person}/{place}/monday/{k}.{s}" for k, s in enumerate(suffixes, 1)))


def follow(commands, *more):
    """Run the commands of a block; a training gets further options. Returns their exit statuses."""
    statuses = []
    for line in commands.splitlines():
        words = shlex.split(line)[1:]
        statuses.append(run(*words, *(more if words[0] == "train" else ())))
    return statuses


@pytest.fixture
def small(tmp_path, monkeypatch):
    """In an empty folder: options that make Folders/SAD_R50.yml fit a test."""
    monkeypatch.chdir(tmp_path)
    left_out = ("DATASETS.", "OUTPUT_DIR", "INPUT.CLIP", "SOLVER.MAX_EPOCH", "SOLVER.STEPS")
    words = tiny_options("", "")
    pairs = [
        pair
        for pair in zip(words[::2], words[1::2], strict=True)
        if not pair[0].startswith(left_out)
    ]
    pairs += [(f"MODEL.BACKBONE.{key}", value) for key, value in NETWORK.items()]
    pairs += [
        ("SOLVER.MAX_EPOCH", 1),
        ("SOLVER.STEPS", [1]),
        ("SOLVER.WARMUP_EPOCHS", 0),
        ("SOLVER.WARMUP_ITERS", 0),
    ]
    return [str(word) for pair in pairs for word in pair]


def test_a_tree_from_check_to_search(small, capsys):
    """Spaces, letters of other alphabets, mixed types, empty folders, a person in one modality."""
    tree("anna", "ben", "carla", "dan")
    (Path("mine.csv")).write_text(block("A CSV file", "csv"))
    assert follow(block("Check", "bash")) == [0, 0]
    first, second = capsys.readouterr().out.split("all is well")[:2]
    assert (
        "8 tracklets, 0 of one frame; infrared is infrared; visible is visible; 2 cameras" in first
    )
    assert "split drawn by identity, 30% for testing, seed 0" in first
    assert "8 tracklets, 1 of one frame" in second
    assert "split as given" in second

    tree("Zoë M. 王", suffixes=("PNG", "bmp", "webp", "tif"))
    draw("mine/eve/visible/1/monday/1.jpg", "mine/logo.png")
    Path("mine/anna/visible/1/empty").mkdir()
    assert run("check", "Folders", "--root", "mine") == 1
    faults = re.findall(r"^FAULT +(.*)$", capsys.readouterr().out, re.M)
    expected = (
        "1 images are not where .* logo.png",
        "1 folders .* anna/visible/1/empty",
        "eve .only visible",
    )
    assert len(faults) == 3
    assert all(map(re.search, expected, faults))

    Path("mine/logo.png").unlink()  # features would ask for its modality
    follow(block("Train, evaluate, search", "bash"), *small)
    log = Path("logs/Folders/SAD_R50/log.txt").read_text(encoding="utf-8")
    assert all(re.search(text, log) for text in expected[1:])
    assert (
        "Folders: tracklets of any length; same identity and camera removed from the gallery" in log
    )
    assert Path("logs/Folders/SAD_R50/results_Folders.json").is_file()
    found = capsys.readouterr().out
    assert "11 tracklets added" in found
    assert len(re.findall(r"/visible/1/monday", found)) == 3


def test_the_camera_rule_is_that_of_the_config(small, capsys):
    for person in "abcd":
        draw(*(f"mine/{person}/{modality}/1/t/1.jpg" for modality in ("ir", "rgb")))
    assert run("check", "Folders", "--root", "mine") == 1
    assert "from the query's own camera, which is left out: set TEST.CAMERA_FILTER False" in (
        capsys.readouterr().out
    )
    assert run("check", "Folders", "--root", "mine", "--set", "TEST.CAMERA_FILTER", "False") == 0


def test_single_images(small):
    draw(*(f"photos/{m}/p{i}/{k}.jpg" for m in ("RGB", "IR") for i in range(4) for k in range(2)))
    Path("my_photos.yml").write_text(block("Single images", "yaml"))
    assert follow(block("Single images", "bash"), *small)[0] == 0
    assert Path("logs/photos/model_final.pth").is_file()
    log = Path("logs/photos/log.txt").read_text()
    assert "16 tracklets, 16 of one frame" in log
    assert "INPUT.CLIP.LENGTH is" not in log


def test_a_csv_file_with_its_usual_faults_trains(small, capsys):
    """BOM, CRLF, semicolons, a row twice, and files that are missing."""
    rows = ["Path;Identity;Modality", ""]
    for person in range(4):
        for modality in ("color", "thermal"):
            draw(f"my crops/{modality}/p {person}/1.jpg", f"my crops/{modality}/p {person}/2.jpg")
            rows.append(f"my crops\\{modality}\\p {person};Pérson {person};{modality.title()}")
    rows += [rows[-1], "my crops/gone.jpg;Pérson 0;Color", "my crops/*/nobody;Pérson 1;Color"]
    Path("list.csv").write_bytes("\r\n".join(rows).encode("utf-8-sig"))
    assert run("check", "Folders", "--root", "list.csv") == 1
    faults = re.findall(r"^FAULT .*list\.csv: (.*)$", capsys.readouterr().out, re.M)
    assert faults == [
        "2 rows name no image that exists, such as line 12, my crops/gone.jpg",
        "1 rows repeat another row, such as line 11, my crops/thermal/p 3",
    ]
    run(
        *("train", "--config-file", "Folders/SAD_R50.yml", *small, "INPUT.CLIP.LENGTH", 3),
        *("DATASETS.ROOT", "list.csv", "OUTPUT_DIR", "out"),
    )
    assert Path("out/model_final.pth").is_file()
    log = Path("out/log.txt").read_text(encoding="utf-8")
    assert all(fault in log for fault in faults)
    assert "INPUT.CLIP.LENGTH is 3, but the longest tracklet has 2 frames" in log


def test_the_config_is_the_baseline_with_every_tracklet():
    own, base = load_config("Folders/SAD_R50.yml"), load_config("HITSZ-VCM/SAD_R50.yml")
    assert (own.MODEL, own.SOLVER, own.INPUT) == (base.MODEL, base.SOLVER, base.INPUT)
    assert own.DATASETS.NAMES == own.DATASETS.TESTS == ("Folders",)
    assert own.DATASETS.MIN_FRAMES == 1
