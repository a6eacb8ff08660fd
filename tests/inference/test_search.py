"""Ranked lists of own tracklets: as a table, JSON, CSV and pictures."""

import csv
import functools
import json
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image, ImageFont

from fastreid_star.data.folders import tracklets_in
from fastreid_star.errors import UserError
from fastreid_star.inference import Gallery, pictures
from fastreid_star.inference.pictures import BOX, CAPTION, MARGIN, draw_list, write_pictures
from fastreid_star.inference.search import rank, search, to_table
from fastreid_star.structures import Modality

PEOPLE = 5


def color(person, modality):
    return (40 * person, 200 if modality == "rgb" else 30, 250 - 40 * person)


@pytest.fixture(scope="module")
def root(sad, tmp_path_factory):
    """Crops of solid colors, and a gallery of all of them."""
    root = tmp_path_factory.mktemp("root")
    for modality in ("rgb", "ir"):
        for person in range(PEOPLE):
            folder = root / "crops" / modality / f"p{person}"
            folder.mkdir(parents=True)
            for frame in range(2):
                Image.new("RGB", (16, 32), color(person, modality)).save(folder / f"{frame}.png")
    tracklets = tracklets_in(root / "crops")
    gallery = Gallery(sad)
    gallery.add(
        sad.features(tracklets),
        [tracklet.name for tracklet in tracklets],
        [tracklet.modality for tracklet in tracklets],
        [{"picture": tracklet.frames[0]} for tracklet in tracklets],
    )
    gallery.save(root / "gallery")
    return root


@pytest.fixture(scope="module")
def similarity(root, sad):
    """Infrared against visible, [5, 5]."""
    visible, infrared = (
        sad.features(tracklets_in(root / "crops" / name)) for name in ("rgb", "ir")
    )
    return (infrared @ visible.T).numpy()


@pytest.fixture
def find(root, sad):
    def call(*queries, **options):
        queries = [str(query) for query in queries]
        return search(sad, str(root / "gallery"), queries, num_workers=0, **options)

    return call


def test_table_json_and_csv_have_the_same_lists(root, find, similarity, tmp_path):
    files = {"json_file": str(tmp_path / "l.json"), "csv_file": str(tmp_path / "l.csv")}
    answers = find(root / "crops" / "ir", top=2, **files)
    lists = json.loads((tmp_path / "l.json").read_text())
    with open(tmp_path / "l.csv", newline="") as file:
        rows = iter(list(csv.DictReader(file)))
    blocks = to_table(answers).split("\n\n")
    for person, (block, entry) in enumerate(zip(blocks, lists, strict=True)):
        order = np.argsort(-similarity[person], kind="stable")[:2].tolist()
        assert block.splitlines()[0] == f"p{person} (infrared) among visible entries:"
        expected = [
            [str(n), f"{similarity[person, k]:.4f}", f"rgb/p{k}"] for n, k in enumerate(order, 1)
        ]
        assert [line.split() for line in block.splitlines()[3:]] == expected
        assert (entry["query"], entry["modality"], entry["among"]) == (
            f"p{person}",
            "infrared",
            "visible",
        )
        for n, (result, k) in enumerate(zip(entry["results"], order, strict=True), start=1):
            picture = str(root / "crops" / "rgb" / f"p{k}" / "0.png")
            assert result == {
                "rank": n,
                "name": f"rgb/p{k}",
                "index": PEOPLE + k,  # after the infrared ones
                "similarity": pytest.approx(similarity[person, k], abs=1e-6),
                "modality": "visible",
                "metadata": {"picture": picture},
            }
            row = next(rows)
            assert (row["query"], row["query_modality"]) == (f"p{person}", "infrared")
            assert (int(row["rank"]), row["name"]) == (n, f"rgb/p{k}")
            assert float(row["similarity"]) == result["similarity"]
            assert int(row["index"]) == result["index"]


@pytest.mark.parametrize(
    ("among", "first", "modalities"),
    [
        ("infrared", "ir/p3", {"ir"}),
        ("all", "ir/p3", {"ir", "rgb"}),
        ("other", None, {"rgb"}),
        ("visible", None, {"rgb"}),
    ],
)
def test_among(root, find, among, first, modalities):
    (answer,) = find(root / "crops" / "ir" / "p3", modality="infrared", among=among)
    names = answer.ranked.names
    assert len(names) == PEOPLE * len(modalities)
    assert {name.split("/")[0] for name in names} == modalities
    if first:
        assert names[0] == first
        assert answer.ranked.similarities[0] == pytest.approx(1, abs=1e-5)


def test_queries_of_both_modalities_keep_their_order(root, sad):
    gallery = Gallery.load(root / "gallery", sad)
    names = ["rgb/p1", "ir/p0", "rgb/p4", "ir/p2"]
    features = gallery.features()[[gallery.names.index(name) for name in names]]
    modalities = [Modality.VISIBLE, Modality.INFRARED] * 2
    answers = rank(gallery, torch.from_numpy(features), names, modalities, k=10)
    assert [answer.query for answer in answers] == names
    assert [answer.among for answer in answers] == ["infrared", "visible"] * 2
    for answer, feature in zip(answers, features, strict=True):
        expected = gallery.features()[answer.ranked.indices] @ feature
        np.testing.assert_allclose(answer.ranked.similarities, expected, atol=1e-6)
        assert (np.diff(answer.ranked.similarities) <= 0).all()


def test_bad_input_is_one_line(root, find, tmp_path):
    query = root / "crops" / "ir"
    (tmp_path / "file").write_text("")
    for message, queries, options in (
        ("k is 0", [query], {"top": 0}),
        ("nowhere", ["nowhere"], {}),
        ("cannot be written", [query], {"json_file": str(tmp_path / "file" / "l.json")}),
        ("is a folder", [query], {"csv_file": str(tmp_path)}),
        ("cannot be written", [query], {"pictures": str(tmp_path / "file")}),
        ("among", [query], {"among": "both"}),
    ):
        with pytest.raises(UserError, match=message):
            find(*queries, **options)


def test_pictures_that_cannot_be_written_are_said_before_any_work(find, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(Gallery, "load", lambda *args: pytest.fail("work"))
    with pytest.raises(UserError, match="cannot be written"):
        find("nowhere", pictures=str(tmp_path / "file"))


def test_a_name_that_is_not_utf8(root, find, tmp_path, caplog):
    folder = tmp_path / "ir" / os.fsdecode(b"caf\xe9")
    shutil.copytree(root / "crops" / "ir" / "p0", folder)
    table = tmp_path / "l.csv"
    find(folder, top=1, csv_file=str(table), pictures=str(tmp_path / "lists"))
    assert b"caf\xe9,infrared,1," in table.read_bytes()
    assert "No font" not in caplog.text  # no font has a byte


# --- pictures ---


def center(picture, place):
    """The color in the middle of a box of the first row."""
    x = MARGIN + place * (BOX[0] + MARGIN) + BOX[0] // 2
    return np.array(picture.getpixel((x, MARGIN + BOX[1] // 2)))


def test_pictures_show_the_query_and_its_entries(root, find, similarity, tmp_path):
    find(root / "crops" / "ir", top=3, pictures=str(tmp_path / "lists"))
    files = sorted((tmp_path / "lists").iterdir())
    assert [file.name for file in files] == [f"{k + 1:03d}-p{k}.jpg" for k in range(PEOPLE)]
    for person, file in enumerate(files):
        with Image.open(file) as picture:
            shown = [center(picture, place) for place in range(4)]
        order = np.argsort(-similarity[person], kind="stable")[:3]
        expected = [color(person, "ir"), *(color(k, "rgb") for k in order)]
        np.testing.assert_allclose(shown, expected, atol=6)  # JPEG


def test_a_frame_that_cannot_be_read_is_gray(tmp_path, caplog):
    Image.new("RGB", (16, 32), (200, 0, 0)).save(tmp_path / "0.png")
    paths = [str(tmp_path / "0.png"), str(tmp_path / "gone" / "0.png"), None]
    lists = [("张三", paths, [("query", "张三"), ("1: 0.9", "b"), ("2: 0.8", "c")])]
    (file,) = write_pictures(tmp_path / "lists", lists)
    assert file.endswith("001-张三.jpg")
    assert "gone" in caplog.text
    with Image.open(file) as picture:
        shown = [center(picture, place) for place in range(3)]
    np.testing.assert_allclose(shown, [[200, 0, 0], [200] * 3, [200] * 3], atol=6)


def test_long_names_and_many_entries(monkeypatch):
    red = np.full((64, 32, 3), (255, 0, 0), np.uint8)
    picture = draw_list([red, red], [("query", "a"), ("1: 0.9", "é" * 60)])
    assert picture.size == (2 * (BOX[0] + MARGIN) + MARGIN, BOX[1] + CAPTION + 2 * MARGIN)
    red_value, *others = picture.getpixel((MARGIN - 1, MARGIN - 1))
    assert others == [red_value, red_value] != [255, 255], "a query is neither right nor wrong"
    below = np.asarray(picture)[MARGIN + BOX[1] + 2 :]
    assert (below < 128).any(), "the captions"
    assert (below[:, -MARGIN:] == 255).all(), "a long name is shortened"
    many = draw_list([red] * 12, [("", "")] * 12)
    assert many.size[1] == 2 * (BOX[1] + CAPTION + MARGIN) + MARGIN


def test_letters_that_no_font_has_become_question_marks(monkeypatch, tmp_path, caplog):
    """matplotlib's own font, which is always there, has Greek letters and no Chinese ones."""
    red = np.full((64, 32, 3), (255, 0, 0), np.uint8)
    own = [path for path in pictures._font_files() if path.endswith("DejaVuSans.ttf")][:1]
    monkeypatch.setattr(pictures, "_font_files", lambda: own)
    monkeypatch.setattr(pictures, "font_for", functools.cache(pictures.font_for.__wrapped__))
    write_pictures(tmp_path, [("a", [None], [("query", "Ψ")])])
    assert "No font" not in caplog.text
    write_pictures(
        tmp_path, [(text, [None], [("query", text)]) for text in ("张三", "李四", "三a")]
    )
    assert caplog.text.count("No font of this machine has the letters 三四张李:") == 1
    assert pictures.font_for("a三张")[1] == "三张"

    def truetype(*_):
        raise ImportError("a Pillow without FreeType")

    monkeypatch.setattr(ImageFont, "truetype", truetype)
    bitmap = getattr(ImageFont, "load_default_imagefont", ImageFont.load_default)
    monkeypatch.setattr(ImageFont, "load_default", bitmap)
    draw_list([red], [("query", "张Ψ")])


def test_the_font_that_has_the_letters_is_taken(monkeypatch):
    """Of three fonts, the one that knows both letters."""
    charmaps = {"a": {}, "b": {ord("张"): 1}, "c": {ord("张"): 1, ord("三"): 2}}
    monkeypatch.setattr(pictures, "_font_files", lambda: ["damaged", *charmaps])

    class Font:
        def __init__(self, path):
            self.get_charmap = lambda: charmaps[path]

    monkeypatch.setattr("matplotlib.ft2font.FT2Font", Font)
    monkeypatch.setattr(ImageFont, "truetype", lambda path, size: path)
    font_for = pictures.font_for.__wrapped__
    assert font_for("三张") == ("c", "")
    assert font_for("张") == ("b", "")
    assert font_for("三张王") == ("c", "王")
