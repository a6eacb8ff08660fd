"""A gallery ranks exactly, keeps its entries straight through adding and removing, and is saved whole."""

import json
import os
import textwrap

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fastreid_star.data.folders import tracklets_in
from fastreid_star.inference import gallery as gallery_module
from fastreid_star.inference import gallery_files
from fastreid_star.engine.doctor import tiny_config
from fastreid_star.inference.fingerprint import Fingerprint
from fastreid_star.inference.gallery import Gallery, open_gallery
from fastreid_star.inference.predictor import StarPredictor
from fastreid_star.engine.trainer import Trainer
from fastreid_star.errors import UserError
from fastreid_star.structures import Modality

MADE_WITH = Fingerprint("abc", {"INPUT.CLIP.LENGTH": 6})
VISIBLE, INFRARED = Modality.VISIBLE, Modality.INFRARED


def random_features(n, width=16, seed=0):
    return np.random.default_rng(seed).standard_normal((n, width)).astype(np.float32)


def filled(n=40, width=16, seed=0):
    """Entries e0, e1, ...; every third is infrared."""
    gallery = Gallery(MADE_WITH)
    modality = ["infrared" if k % 3 == 0 else "visible" for k in range(n)]
    gallery.add(
        random_features(n, width, seed),
        [f"e{k}" for k in range(n)],
        modality,
        [{"k": k} for k in range(n)],
    )
    return gallery


def brute_force(query, features, keep, k):
    """Positions and cosines by numpy in double precision, the earlier entry first where two are equal."""
    unit = [
        x / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True) for x in (query, features)
    ]
    similarity = np.where(keep, unit[0] @ unit[1].T, -np.inf)
    order = np.argsort(-similarity, axis=1, kind="stable")[:, : min(k, keep.sum())]
    return order, np.take_along_axis(similarity, order, axis=1)


@pytest.mark.parametrize(
    "queries", [1, 7, 50]
)  # FAISS goes another way for many queries than for few
@pytest.mark.parametrize("modality", [None, "visible", "infrared", VISIBLE])
def test_ranks_as_brute_force(queries, modality):
    gallery = filled(500, 64)
    query = 5 * random_features(queries, 64, seed=1)
    infrared = np.arange(500) % 3 == 0
    keep = {None: infrared | True, "infrared": infrared}.get(modality, ~infrared)
    order, similarity = brute_force(query, random_features(500, 64), keep, 20)
    found = gallery.search(torch.from_numpy(query), 20, modality=modality)
    assert len(found) == queries
    np.testing.assert_array_equal([ranked.indices for ranked in found], order)
    np.testing.assert_allclose([ranked.similarities for ranked in found], similarity, atol=1e-6)
    assert [ranked.names for ranked in found] == [tuple(f"e{k}" for k in row) for row in order]
    assert all(ranked.similarities.dtype == np.float32 for ranked in found)


@pytest.mark.parametrize("queries", [1, 30])
def test_equal_similarities_keep_the_gallerys_order_also_at_the_cut(queries):
    # Numbers whose products are exact. The entries 0, 2, 4, ... of both modalities are all alike.
    one, other = np.eye(8, dtype=np.float32)[:2]
    features = np.array([one if k % 2 == 0 else other for k in range(40)])
    gallery = Gallery(MADE_WITH)
    modality = ["infrared" if k % 4 < 2 else "visible" for k in range(40)]
    gallery.add(features, [str(k) for k in range(40)], modality)
    query = np.tile(one, (queries, 1))
    for k in (1, 3, 10, 20, 30):
        expected = [*range(0, 40, 2), *range(1, 40, 2)][:k]
        assert [ranked.indices.tolist() for ranked in gallery.search(query, k)] == [
            expected
        ] * queries
    infrared = [k for k in range(0, 40, 2) if k % 4 < 2]
    assert gallery.search(query, 4, modality="infrared")[0].indices.tolist() == infrared[:4]


def test_more_than_there_are():
    gallery = filled(5)
    assert len(gallery.search(random_features(1), 100)[0]) == 5
    assert len(gallery.search(random_features(1), 100, modality="infrared")[0]) == 2


def test_what_cannot_be_ranked():
    gallery = filled(4)
    for message, call in (
        ("k is 0", lambda: gallery.search(random_features(1), 0)),
        ("modality 'green'", lambda: gallery.search(random_features(1), modality="green")),
        ("NaN", lambda: gallery.search(np.full((1, 16), np.nan))),
        ("1 features are zero, index 1", lambda: gallery.search(np.eye(2, 16) * [[1], [0]])),
        ("no entries to rank: it has 0", lambda: Gallery(MADE_WITH).search(random_features(1))),
    ):
        with pytest.raises(UserError, match=message):
            call()
    with pytest.raises(ValueError, match=r"must be \[tracklets, 16\], got \[1, 5\]"):
        gallery.search(random_features(1, 5))
    gallery.remove([name for name in gallery.names if gallery.position(name) % 3 == 0])
    with pytest.raises(UserError, match="no infrared entries to rank: it has 2 in all"):
        gallery.search(random_features(1), modality="infrared")


def assert_same(gallery, entries):
    """`entries` is a plain list of (name, vector, modality) that went the same way."""
    assert gallery.names == [name for name, _, _ in entries]
    assert gallery.modalities == [modality for _, _, modality in entries]
    assert [entry["name"] for entry in gallery.metadata] == gallery.names
    assert len(gallery) == len(entries)
    assert all(
        gallery.position(name) == place and name in gallery
        for place, (name, _, _) in enumerate(entries)
    )
    vectors = np.array([vector for _, vector, _ in entries], np.float32).reshape(-1, 4)
    np.testing.assert_allclose(gallery.features(), vectors, atol=1e-6)
    if entries:  # each entry finds itself
        names = [ranked.names[0] for ranked in gallery.search(vectors, 1)]
        assert names == gallery.names


STEPS = st.lists(
    st.tuples(st.integers(1, 4), st.integers(0, 2**16), st.sets(st.integers(0, 12), max_size=4)),
    max_size=6,
)


@settings(max_examples=60, deadline=None)
@given(STEPS)
def test_adding_and_removing_is_that_of_a_list(steps):
    gallery, entries, count = Gallery(MADE_WITH), [], 0
    for size, seed, gone in steps:
        rng = np.random.default_rng([seed, count])  # no two entries alike
        vectors = rng.standard_normal((size, 4))
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        names = [f"n{count + k}" for k in range(size)]
        modality = [Modality(int(value)) for value in rng.integers(1, 3, size)]
        gallery.add(vectors, names, modality, [{"name": name} for name in names])
        entries += zip(names, vectors, modality, strict=True)
        count += size
        leaving = [
            entries[place][0] for place in sorted(gone, reverse=True) if place < len(entries)
        ]
        gallery.remove(leaving)
        entries = [entry for entry in entries if entry[0] not in leaving]
        assert_same(gallery, entries)


def test_what_is_added_is_all_or_nothing():
    gallery = filled(3)
    two = random_features(2)
    for error, message, arguments in (
        (UserError, "1 names are .* first 'e1'", (two, ["a", "e1"], "visible")),
        (UserError, "1 names are .* given twice, first 'a'", (two, ["a", "a"], "visible")),
        (UserError, "needs a name", (two, ["a", ""], "visible")),
        (UserError, "needs a name", (two, ["a", 7], "visible")),
        (UserError, "modality 'x'", (two, ["a", "b"], ["visible", "x"])),
        (UserError, "NaN", (two * [[1], [np.inf]], ["a", "b"], "visible")),
        (UserError, "1 features are zero, index 0", (two * [[0], [1]], ["a", "b"], "visible")),
        (ValueError, "2 features, 1 names, 1 modalities and 1 metadata", (two, ["a"], "visible")),
        (ValueError, "2 features, 2 names, 3 modalities", (two, ["a", "b"], ["visible"] * 3)),
        (
            ValueError,
            r"must be \[tracklets, 16\], got \[2, 5\]",
            (two[:, :5], ["a", "b"], "visible"),
        ),
        (ValueError, r"must be", (two[0], ["a", "b"], "visible")),
        (TypeError, "JSON", (two, ["a", "b"], "visible", [{"x": object()}, {}])),
    ):
        with pytest.raises(error, match=message):
            gallery.add(*arguments)
        assert gallery.names == ["e0", "e1", "e2"]
        assert gallery.features().shape == (3, 16)
    with pytest.raises(UserError, match="no entry named 'x'"):
        gallery.remove(["e0", "x"])
    assert len(gallery) == 3
    gallery.remove("e1")
    gallery.add(two[:1], ["e1"], INFRARED)
    assert gallery.names == ["e0", "e2", "e1"]


def test_unit_features_are_kept_to_the_bit():
    features = torch.nn.functional.normalize(torch.from_numpy(random_features(100, 2048)))
    gallery = Gallery(MADE_WITH)
    gallery.add(features, [str(k) for k in range(100)], "visible")
    np.testing.assert_array_equal(gallery.features(), features.numpy())
    gallery.metadata[0]["note"] = "mine"
    assert gallery.metadata[1] == {}  # each entry has its own


# --- files ----------------------------------------------------------------------------------------------------------


def test_saved_and_loaded_it_is_the_same(tmp_path):
    gallery = filled(30)
    gallery.remove(["e4", "e9"])
    gallery.save(tmp_path / "g")
    again = Gallery.load(tmp_path / "g", MADE_WITH)
    assert (again.names, again.modalities, again.metadata) == (
        gallery.names,
        gallery.modalities,
        gallery.metadata,
    )
    np.testing.assert_array_equal(again.features(), gallery.features())
    for one, other in zip(
        gallery.search(random_features(3), 5), again.search(random_features(3), 5), strict=True
    ):
        np.testing.assert_array_equal(one.similarities, other.similarities)
        assert one.names == other.names
    again.add(random_features(1, seed=5), ["new"], "visible")  # and it goes on from there
    again.save(tmp_path / "g")
    assert Gallery.load(tmp_path / "g", MADE_WITH).names == [*gallery.names, "new"]
    assert len(os.listdir(tmp_path / "g")) == 2  # the older features are gone


@pytest.mark.parametrize("fails", ["features", "gallery.json"])
def test_an_interrupted_save_leaves_the_gallery_before_it(tmp_path, monkeypatch, fails):
    filled(5).save(tmp_path / "g")
    write_whole = gallery_files.write_whole

    def interrupted(path, write):
        if os.path.basename(path).startswith(fails):
            raise KeyboardInterrupt
        write_whole(path, write)

    monkeypatch.setattr(gallery_files, "write_whole", interrupted)
    with pytest.raises(KeyboardInterrupt):
        filled(6, seed=1).save(tmp_path / "g")
    before = Gallery.load(tmp_path / "g", MADE_WITH)
    np.testing.assert_array_equal(before.features(), filled(5).features())
    monkeypatch.undo()
    filled(6, seed=1).save(tmp_path / "g")
    assert len(Gallery.load(tmp_path / "g", MADE_WITH)) == 6
    assert len(os.listdir(tmp_path / "g")) == 2


def test_another_model_or_config_is_refused(tmp_path):
    filled(3).save(tmp_path / "g")
    other = Fingerprint("def", {"INPUT.CLIP.LENGTH": 12})
    with pytest.raises(
        UserError, match=r"other weights, INPUT\.CLIP\.LENGTH 6 there, 12 here"
    ) as caught:
        Gallery.load(tmp_path / "g", other)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="other weights"):
        open_gallery(tmp_path / "g", other)


def test_where_a_gallery_is_not_saved(tmp_path):
    with pytest.raises(UserError, match="empty gallery"):
        Gallery(MADE_WITH).save(tmp_path / "g")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "notes", tmp_path / "file"):
        with pytest.raises(UserError, match="holds something else than a gallery"):
            filled(3).save(path)
        with pytest.raises(UserError, match="holds something else than a gallery"):
            open_gallery(path, MADE_WITH)
    assert os.listdir(tmp_path / "notes") == ["a.txt"]
    with pytest.raises(UserError, match="cannot be written"):
        filled(3).save(tmp_path / "file" / "g")
    (tmp_path / "empty").mkdir()
    filled(3).save(tmp_path / "empty")
    assert len(open_gallery(tmp_path / "empty", MADE_WITH)) == 3
    assert len(open_gallery(tmp_path / "new", MADE_WITH)) == 0


def change(folder, **values):
    content = json.loads((folder / "gallery.json").read_text())
    (folder / "gallery.json").write_text(json.dumps({**content, **values}))


DAMAGES = {
    "no file": (lambda folder: (folder / "gallery.json").unlink(), "is no gallery"),
    "no JSON": (lambda folder: (folder / "gallery.json").write_text("{"), "cannot be read"),
    "another version": (lambda folder: change(folder, version=2), "no gallery of version 1"),
    "a list": (
        lambda folder: (folder / "gallery.json").write_text("[]"),
        "no gallery of version 1",
    ),
    "no names": (lambda folder: change(folder, names=None), r"damaged \(names\)"),
    "a name twice": (lambda folder: change(folder, names=["a", "a", "b"]), "damaged .*first 'a'"),
    "a name too few": (
        lambda folder: change(folder, names=["a", "b"]),
        "damaged .*3 features, 2 names",
    ),
    "another modality": (lambda folder: change(folder, modality=[1, 2, 3]), "damaged .*modality 3"),
    "metadata": (lambda folder: change(folder, metadata=[1, 2, 3]), "damaged"),
    "no fingerprint": (lambda folder: change(folder, fingerprint={}), "damaged .*no fingerprint"),
    "a path": (
        lambda folder: change(folder, features="../features-0123456789abcdef.npy"),
        r"damaged \(features\)",
    ),
    "no features": (lambda folder: next(folder.glob("*.npy")).unlink(), "cannot be read"),
    "cut features": (lambda folder: cut(next(folder.glob("*.npy"))), "cannot be read"),
    "a pickle": (
        lambda folder: np.save(next(folder.glob("*.npy")), np.array([{}]), allow_pickle=True),
        "cannot be read",
    ),
    "other features": (
        lambda folder: np.save(next(folder.glob("*.npy")), random_features(3)),
        "other features",
    ),
    "double features": (
        lambda folder: np.save(next(folder.glob("*.npy")), np.zeros((3, 16))),
        "other features",
    ),
}


def cut(path):
    path.write_bytes(path.read_bytes()[:-5])


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_gallery_is_refused(tmp_path, damage):
    filled(3, seed=3).save(tmp_path / "g")
    act, message = DAMAGES[damage]
    act(tmp_path / "g")
    with pytest.raises(UserError, match=message) as caught:
        Gallery.load(tmp_path / "g", MADE_WITH)
    assert "\n" not in str(caught.value)


# --- the example ----------------------------------------------------------------------------------------------------


def test_the_five_lines_of_the_module_run_as_they_stand(tmp_path, monkeypatch):
    cfg = tiny_config("cpu")
    cfg.INPUT.SIZE_TEST, cfg.INPUT.CLIP.LENGTH = [32, 16], 2
    (tmp_path / "logs" / "run").mkdir(parents=True)
    (tmp_path / "logs" / "run" / "config.yaml").write_text(cfg.dump())
    torch.save(
        {"model": Trainer.build_model(cfg).state_dict()},
        tmp_path / "logs" / "run" / "model_final.pth",
    )
    rng = np.random.default_rng(0)
    for modality in ("rgb", "ir"):
        for person in range(7):
            folder = tmp_path / "crops" / modality / f"person {person}"
            folder.mkdir(parents=True)
            for frame in range(3):
                image = rng.integers(0, 255, (32, 16, 3), np.uint8)
                Image.fromarray(image).save(folder / f"{frame}.png")
    monkeypatch.chdir(tmp_path)
    lines = [line for line in gallery_module.__doc__.splitlines() if line.startswith("    ")]
    assert len(lines) == 5
    names = {"StarPredictor": StarPredictor, "Gallery": Gallery, "tracklets_in": tracklets_in}
    exec(textwrap.dedent("\n".join(lines)), names)
    assert len(names["lists"]) == 7
    features = (
        names["predictor"].features(names["infrared"])
        @ names["predictor"].features(names["visible"]).T
    )
    for ranked, row in zip(names["lists"], features, strict=True):
        order = row.argsort(descending=True)[:5].tolist()
        assert ranked.names == tuple(f"person {k}" for k in order)
    assert names["gallery"].fingerprint == names["predictor"].fingerprint
