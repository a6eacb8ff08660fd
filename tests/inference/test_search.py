"""tools/search.py as a user calls it: tables, JSON, CSV, contact sheets, and bad input."""

import csv
import json
import runpy
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from fastreid_star.data.folders import tracklets_in
from fastreid_star.inference.pictures import BOX, CAPTION, MARGIN, contact_sheet
from fastreid_star.engine.doctor import tiny_config
from fastreid_star.inference.gallery import Gallery
from fastreid_star.inference.predictor import StarPredictor
from fastreid_star.inference.search import ask, write_lists
from fastreid_star.engine.trainer import Trainer
from fastreid_star.errors import UserError
from fastreid_star.structures import Modality

PEOPLE = 5


def color(person, modality):
    return (40 * person, 200 if modality == "rgb" else 30, 250 - 40 * person)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A run, crops of solid colors, and a gallery of all of them."""
    root = tmp_path_factory.mktemp("root")
    cfg = tiny_config("cpu")
    cfg.INPUT.SIZE_TEST, cfg.INPUT.CLIP.LENGTH = [32, 16], 2
    (root / "run").mkdir()
    (root / "run" / "config.yaml").write_text(cfg.dump())
    torch.save({"model": Trainer.build_model(cfg).state_dict()}, root / "run" / "model_final.pth")
    for modality in ("rgb", "ir"):
        for person in range(PEOPLE):
            folder = root / "crops" / modality / f"p{person}"
            folder.mkdir(parents=True)
            for frame in range(2):
                Image.new("RGB", (16, 32), color(person, modality)).save(folder / f"{frame}.png")
    predictor = StarPredictor.from_run(root / "run", "cpu")
    tracklets = tracklets_in(root / "crops")
    gallery = Gallery(predictor)
    pictures = [{"picture": tracklet.frames[0]} for tracklet in tracklets]
    gallery.add(
        predictor.features(tracklets),
        [t.name for t in tracklets],
        [t.modality for t in tracklets],
        pictures,
    )
    gallery.save(root / "gallery")
    return root


@pytest.fixture(scope="module")
def similarity(root):
    """Infrared against visible, [5, 5]."""
    predictor = StarPredictor.from_run(root / "run", "cpu")
    visible, infrared = (
        predictor.features(tracklets_in(root / "crops" / name)) for name in ("rgb", "ir")
    )
    return (infrared @ visible.T).numpy()


@pytest.fixture
def search(root, monkeypatch, request):
    main = runpy.run_path(str(request.config.rootpath / "tools" / "search.py"))["main"]

    def call(*arguments):
        command = [
            "search.py",
            root / "gallery",
            "--run",
            root / "run",
            "--device",
            "cpu",
            "--workers",
            0,
            *arguments,
        ]
        monkeypatch.setattr(sys, "argv", [str(argument) for argument in command])
        main()

    return call


def test_the_table(root, search, similarity, capsys):
    search(root / "crops" / "ir", "--top", 3)
    blocks = capsys.readouterr().out.strip().split("\n\n")
    assert len(blocks) == PEOPLE
    for person, block in enumerate(blocks):
        lines = block.splitlines()
        assert lines[0] == f"p{person} (infrared) among visible entries:"
        assert lines[1].split() == ["rank", "similarity", "name"]
        assert len({line.index(line.split()[-1]) for line in lines[3:]}) == 1  # aligned
        order = np.argsort(-similarity[person], kind="stable")[:3]
        assert [line.split() for line in lines[3:]] == [
            [str(rank), f"{similarity[person, k]:.4f}", f"rgb/p{k}"]
            for rank, k in enumerate(order, start=1)
        ]


def test_json_and_csv_say_the_same(root, search, similarity, tmp_path, capsys):
    search(root / "crops" / "ir", "--top", 2,
           "--json", tmp_path / "l.json", "--csv", tmp_path / "l.csv")  # fmt: skip
    lists = json.loads((tmp_path / "l.json").read_text())
    with open(tmp_path / "l.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [entry["query"] for entry in lists] == ["p0", "p1", "p2", "p3", "p4"]
    for person, entry in enumerate(lists):
        assert (entry["modality"], entry["among"]) == ("infrared", "visible")
        order = np.argsort(-similarity[person], kind="stable")[:2].tolist()
        assert [result["name"] for result in entry["results"]] == [f"rgb/p{k}" for k in order]
        assert [result["rank"] for result in entry["results"]] == [1, 2]
        assert [result["index"] for result in entry["results"]] == [
            PEOPLE + k for k in order
        ]  # after the infrared ones
        assert [result["similarity"] for result in entry["results"]] == pytest.approx(
            similarity[person, order], abs=1e-6
        )
        for result, k in zip(entry["results"], order, strict=True):
            assert result["modality"] == "visible"
            assert result["metadata"] == {
                "picture": str(root / "crops" / "rgb" / f"p{k}" / "0.png")
            }
    flat = [(entry["query"], result) for entry in lists for result in entry["results"]]
    assert [
        (row["query"], int(row["rank"]), row["name"], float(row["similarity"]), int(row["index"]))
        for row in rows
    ] == [
        (query, result["rank"], result["name"], result["similarity"], result["index"])
        for query, result in flat
    ]
    assert {row["query_modality"] for row in rows} == {"infrared"}


@pytest.mark.parametrize(
    ("among", "first", "ranked"),
    [("infrared", "ir/p3", 5), ("all", "ir/p3", 10), ("other", None, 5), ("visible", None, 5)],
)
def test_among(root, search, tmp_path, among, first, ranked):
    search(
        root / "crops" / "ir" / "p3",
        "--modality",
        "infrared",
        "--among",
        among,
        "--json",
        tmp_path / "l.json",
    )
    (entry,) = json.loads((tmp_path / "l.json").read_text())
    assert len(entry["results"]) == ranked
    assert {result["modality"] for result in entry["results"]} == {
        "other": {"visible"}, "all": {"visible", "infrared"}
    }.get(among, {among})  # fmt: skip
    if first:
        assert entry["results"][0]["name"] == first
        assert entry["results"][0]["similarity"] == pytest.approx(1, abs=1e-5)


def test_queries_of_both_modalities_keep_their_order(root):
    predictor = StarPredictor.from_run(root / "run", "cpu")
    gallery = Gallery.load(root / "gallery", predictor)
    names = ["rgb/p1", "ir/p0", "rgb/p4", "ir/p2"]
    features = gallery.features()[[gallery.position(name) for name in names]]
    modalities = [Modality.VISIBLE, Modality.INFRARED] * 2
    answers = ask(gallery, torch.from_numpy(features), names, modalities, k=10)
    assert [(answer.query, answer.modality, answer.among) for answer in answers] == [
        ("rgb/p1", Modality.VISIBLE, "infrared"),
        ("ir/p0", Modality.INFRARED, "visible"),
        ("rgb/p4", Modality.VISIBLE, "infrared"),
        ("ir/p2", Modality.INFRARED, "visible"),
    ]
    for answer, feature in zip(answers, features, strict=True):
        assert len(answer.ranked) == PEOPLE
        expected = gallery.features()[answer.ranked.indices] @ feature
        np.testing.assert_allclose(answer.ranked.similarities, expected, atol=1e-6)
        assert (np.diff(answer.ranked.similarities) <= 0).all()


def center(sheet, place):
    """The color in the middle of a sheet's picture, of one row."""
    x = MARGIN + place * (BOX[0] + MARGIN) + BOX[0] // 2
    return np.array(sheet.getpixel((x, MARGIN + BOX[1] // 2)))


def test_contact_sheets(root, search, similarity, tmp_path):
    search(root / "crops" / "ir", "--top", 3, "--pictures", tmp_path / "sheets")
    files = sorted((tmp_path / "sheets").iterdir())
    assert [file.name for file in files] == [f"{k + 1:03d}-p{k}.jpg" for k in range(PEOPLE)]
    for person, file in enumerate(files):
        with Image.open(file) as sheet:
            shown = [center(sheet, place) for place in range(4)]
        order = np.argsort(-similarity[person], kind="stable")[:3]
        expected = [color(person, "ir"), *(color(k, "rgb") for k in order)]
        np.testing.assert_allclose(shown, expected, atol=6)  # JPEG


def test_a_sheet_without_a_picture_and_with_many(caplog):
    red, wide = (
        np.full((64, 32, 3), (255, 0, 0), np.uint8),
        np.full((10, 100, 3), (0, 0, 255), np.uint8),
    )
    sheet = contact_sheet(
        [red, None, wide], [("query", "a"), ("1: 0.9", "é" * 60), ("2: 0.8", "c")]
    )
    assert sheet.size == (3 * (BOX[0] + MARGIN) + MARGIN, BOX[1] + CAPTION + 2 * MARGIN)
    assert [center(sheet, place).tolist() for place in range(3)] == [
        [255, 0, 0],
        [200, 200, 200],
        [0, 0, 255],
    ]
    below = np.asarray(sheet)[MARGIN + BOX[1] + 2 :, :]
    assert (below < 128).any()  # the captions
    margin = below[:, MARGIN + BOX[0] : 2 * MARGIN + BOX[0]]
    assert (margin == 255).all()  # and a long one is cut
    many = contact_sheet([red] * 12, [("", "")] * 12)
    assert many.size[1] == 2 * (BOX[1] + CAPTION + MARGIN) + MARGIN


def test_pictures_that_are_gone_are_grey(root, request, tmp_path, caplog):
    predictor = StarPredictor.from_run(root / "run", "cpu")
    gallery = Gallery(predictor)
    gallery.add(np.eye(2, predictor.features(tracklets_in(root / "crops" / "ir")).shape[1]), ["a", "b"], "visible",
                [{"picture": str(tmp_path / "gone.png")}, {}])  # fmt: skip
    gallery.save(tmp_path / "g")
    main = runpy.run_path(str(request.config.rootpath / "tools" / "search.py"))["main"]
    command = [
        "search.py",
        tmp_path / "g",
        root / "crops" / "ir" / "p0",
        "--modality",
        "infrared",
        "--run",
        root / "run",
    ]
    command += ["--device", "cpu", "--workers", 0, "--pictures", tmp_path / "sheets"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(argument) for argument in command])
        main()
    assert "No picture: " in caplog.text
    assert "gone.png" in caplog.text
    with Image.open(tmp_path / "sheets" / "001-p0.jpg") as sheet:
        for place in (1, 2):
            np.testing.assert_allclose(center(sheet, place), [200] * 3, atol=6)


def test_bad_input_is_one_line(root, search, tmp_path, monkeypatch):
    query = root / "crops" / "ir"
    (tmp_path / "file").write_text("")
    for message, arguments in (
        ("k is 0", [query, "--top", 0]),
        ("nowhere does not exist", ["nowhere"]),
        ("the folder .*none does not exist", [query, "--json", tmp_path / "none" / "l.json"]),
        ("the folder .*none does not exist", [query, "--csv", tmp_path / "none" / "l.csv"]),
        (f"{tmp_path} is a folder: name the file", [query, "--json", tmp_path]),
        (f"{tmp_path} is a folder: name the file", [query, "--csv", tmp_path]),
        ("file cannot be written", [query, "--pictures", tmp_path / "file"]),
        (
            r"MODEL\.HEADS\.GEM_P 3\.0 there, 1\.0 here",
            [query, "--set", "MODEL.HEADS.GEM_P", "1.0"],
        ),
        ("--workers -1", [query, "--workers", "-1"]),
    ):
        with pytest.raises(UserError, match=message) as caught:
            search(*arguments)
        assert "\n" not in str(caught.value)


def test_a_list_that_cannot_be_written_is_one_line(tmp_path):
    with pytest.raises(
        UserError, match=r"none/l\.csv cannot be written: No such file or directory"
    ):
        write_lists(str(tmp_path / "none" / "l.csv"), "")
