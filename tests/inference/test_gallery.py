"""A gallery ranks as the evaluation does, keeps its entries in order, and is saved whole."""

import errno
import json
import textwrap
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fastreid_star.data.folders import tracklets_in
from fastreid_star.errors import UserError
from fastreid_star.inference import Gallery, StarPredictor
from fastreid_star.inference import gallery as gallery_module
from fastreid_star.structures import Modality

MADE_WITH = {"weights_sha256": "abc", "config": {"INPUT.CLIP.LENGTH": 6}}
VISIBLE, INFRARED = Modality.VISIBLE, Modality.INFRARED


def random_features(n, *shape, seed=0):
    shape = shape or (16,)
    return np.random.default_rng(seed).standard_normal((n, *shape)).astype(np.float32)


def filled(n=40, *shape, seed=0):
    """Entries e0, e1, ...; every third is infrared."""
    gallery = Gallery(MADE_WITH)
    modality = ["infrared" if k % 3 == 0 else "visible" for k in range(n)]
    names, metadata = [f"e{k}" for k in range(n)], [{"k": k} for k in range(n)]
    gallery.add(random_features(n, *shape, seed=seed), names, modality, metadata)
    return gallery


def brute_force(query, features, keep, k):
    """Positions and similarities in double precision, the earlier entry first where two are equal."""
    query, features = query.astype(np.float64), features.astype(np.float64)
    if query.ndim == 2:
        query, features = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (query, features))
        similarity = query @ features.T
    else:
        similarity = -np.linalg.norm(query[:, None] - features[None], axis=-1).mean(-1)
    similarity = np.where(keep, similarity, -np.inf)
    order = np.argsort(-similarity, axis=1, kind="stable")[:, : min(k, keep.sum())]
    return order, np.take_along_axis(similarity, order, axis=1)


@pytest.mark.parametrize("shape", [(64,), (3, 16)])
@pytest.mark.parametrize("modality", [None, "visible", "infrared", VISIBLE])
def test_ranks_as_brute_force(shape, modality, monkeypatch):
    monkeypatch.setattr(gallery_module, "_BLOCK", 7 * 500)  # several blocks of queries
    gallery = filled(500, *shape)
    query = 5 * random_features(50, *shape, seed=1)
    infrared = np.arange(500) % 3 == 0
    keep = {None: infrared | True, "infrared": infrared}.get(modality, ~infrared)
    order, similarity = brute_force(query, random_features(500, *shape), keep, 20)
    found = gallery.search(torch.from_numpy(query), 20, modality=modality)
    np.testing.assert_array_equal([ranked.indices for ranked in found], order)
    np.testing.assert_allclose([ranked.similarities for ranked in found], similarity, atol=1e-5)
    assert [ranked.names for ranked in found] == [tuple(f"e{k}" for k in row) for row in order]
    assert len(gallery.search(query[:1], 1000)[0]) == 500


def test_ties_keep_the_gallerys_order_also_at_the_cut():
    one, other = np.eye(8, dtype=np.float32)[:2]  # products are exact
    gallery = Gallery(MADE_WITH)
    features = np.array([one if k % 2 == 0 else other for k in range(40)])
    modality = ["infrared" if k % 4 < 2 else "visible" for k in range(40)]
    gallery.add(features, [str(k) for k in range(40)], modality)
    for k in (1, 3, 20, 30):
        expected = [*range(0, 40, 2), *range(1, 40, 2)][:k]
        assert [ranked.indices.tolist() for ranked in gallery.search(np.array([one, one]), k)] == [
            expected
        ] * 2
    infrared = [k for k in range(0, 40, 2) if k % 4 < 2]
    assert gallery.search(one[None], 4, modality="infrared")[0].indices.tolist() == infrared[:4]


def test_what_cannot_be_ranked():
    gallery = filled(4)
    for message, call in (
        ("k is 0", lambda: gallery.search(random_features(1), 0)),
        ("green", lambda: gallery.search(random_features(1), modality="green")),
        ("NaN", lambda: gallery.search(np.full((1, 16), np.nan))),
        ("has 0", lambda: Gallery(MADE_WITH).search(random_features(1))),
    ):
        with pytest.raises(UserError, match=message):
            call()
    with pytest.raises(ValueError, match=r"got \[1, 5\]"):
        gallery.search(random_features(1, 5))
    gallery.remove(["e0", "e3"])
    with pytest.raises(UserError, match="no infrared entries"):
        gallery.search(random_features(1), modality="infrared")


STEPS = st.lists(
    st.tuples(st.integers(1, 4), st.integers(0, 2**16), st.sets(st.integers(0, 12), max_size=4)),
    max_size=6,
)


@settings(max_examples=20, deadline=None)
@given(STEPS)
def test_adding_and_removing_is_that_of_a_list(steps):
    gallery, entries, count = Gallery(MADE_WITH), [], 0
    for size, seed, gone in steps:
        rng = np.random.default_rng([seed, count])  # all entries differ
        vectors = rng.standard_normal((size, 4))
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        names = [f"n{count + k}" for k in range(size)]
        modality = [Modality(int(value)) for value in rng.integers(1, 3, size)]
        gallery.add(vectors, names, modality, [{"name": name} for name in names])
        entries += zip(names, vectors, modality, strict=True)
        count += size
        leaving = [entries[place][0] for place in sorted(gone) if place < len(entries)]
        gallery.remove(leaving)
        entries = [entry for entry in entries if entry[0] not in leaving]
        assert gallery.names == [name for name, _, _ in entries]
        assert gallery.modalities == [modality for _, _, modality in entries]
        assert [entry["name"] for entry in gallery.metadata] == gallery.names
        if entries:  # each entry finds itself
            vectors = np.array([vector for _, vector, _ in entries], np.float32)
            np.testing.assert_allclose(gallery.features(), vectors, atol=1e-6)
            assert [found.names[0] for found in gallery.search(vectors, 1)] == gallery.names


def test_what_is_added_is_all_or_nothing():
    gallery = filled(3)
    two = random_features(2)
    for error, message, arguments in (
        (UserError, "e1", (two, ["a", "e1"], "visible")),
        (UserError, "'a'", (two, ["a", "a"], "visible")),
        (UserError, "modality 'x'", (two, ["a", "b"], ["visible", "x"])),
        (UserError, "NaN", (two * [[1], [np.inf]], ["a", "b"], "visible")),
        (ValueError, "1 names", (two, ["a"], "visible")),
        (ValueError, "3 modalities", (two, ["a", "b"], ["visible"] * 3)),
        (ValueError, r"got \[2, 5\]", (two[:, :5], ["a", "b"], "visible")),
        (TypeError, "JSON", (two, ["a", "b"], "visible", [{"x": object()}, {}])),
    ):
        with pytest.raises(error, match=message):
            gallery.add(*arguments)
        assert gallery.names == ["e0", "e1", "e2"]
        assert gallery.features().shape == (3, 16)
    with pytest.raises(UserError, match="'x'"):
        gallery.remove(["e0", "x"])
    gallery.remove("e1")
    gallery.add(two[:1], ["e1"], INFRARED)
    assert gallery.names == ["e0", "e2", "e1"]


def test_features_of_unit_length_are_kept_to_the_bit():
    features = torch.nn.functional.normalize(torch.from_numpy(random_features(100, 2048)))
    gallery = Gallery(MADE_WITH)
    gallery.add(features, [str(k) for k in range(100)], "visible")
    np.testing.assert_array_equal(gallery.features(), features.numpy())


# --- files ---


@pytest.mark.parametrize("shape", [(16,), (3, 4)])
def test_saved_and_loaded_it_is_the_same(tmp_path, shape):
    gallery = filled(30, *shape)
    gallery.remove(["e4", "e9"])
    gallery.save(tmp_path / "g")
    again = Gallery.load(tmp_path / "g", MADE_WITH)
    assert (again.names, again.modalities) == (gallery.names, gallery.modalities)
    assert again.metadata == gallery.metadata
    np.testing.assert_array_equal(again.features(), gallery.features())
    with Gallery.update(tmp_path / "g", MADE_WITH) as changed:
        changed.add(random_features(1, *shape, seed=5), ["new"], "visible")
    assert Gallery.load(tmp_path / "g", MADE_WITH).names == [*gallery.names, "new"]


def test_two_that_add_at_once_are_both_there(tmp_path):
    """Each opens the gallery separately; the second waits until the first has saved."""
    filled(5).save(tmp_path / "g")
    inside, go = threading.Event(), threading.Event()

    def add(name, seed, *, wait):
        with Gallery.update(tmp_path / "g", MADE_WITH) as gallery:
            if wait:
                inside.set()
                go.wait(timeout=20)
            gallery.add(random_features(3, seed=seed), [f"{name}{k}" for k in range(3)], "visible")

    first = threading.Thread(target=add, args=("a", 1), kwargs={"wait": True})
    second = threading.Thread(target=add, args=("b", 2), kwargs={"wait": False})
    first.start()
    assert inside.wait(timeout=20)
    second.start()
    second.join(timeout=0.3)
    assert second.is_alive(), "the second has not waited"
    go.set()
    first.join()
    second.join()
    names = Gallery.load(tmp_path / "g", MADE_WITH).names
    assert names == [f"e{k}" for k in range(5)] + ["a0", "a1", "a2", "b0", "b1", "b2"]


def test_saving_waits_for_a_change(tmp_path):
    with Gallery.update(tmp_path / "g", MADE_WITH) as gallery:
        gallery.add(random_features(1), ["first"], "visible")
        saving = threading.Thread(target=filled(5).save, args=(tmp_path / "g",))
        saving.start()
        saving.join(timeout=0.2)
        assert saving.is_alive(), "it has not waited"
    saving.join()
    assert len(Gallery.load(tmp_path / "g", MADE_WITH)) == 5


def test_an_interrupted_change_leaves_the_gallery_before_it(tmp_path, monkeypatch):
    filled(5).save(tmp_path / "g")

    def interrupted(file, **arrays):
        file.write(b"half")
        raise KeyboardInterrupt

    gallery = Gallery.load(tmp_path / "g", MADE_WITH)
    gallery.remove("e0")
    monkeypatch.setattr(np, "savez", interrupted)
    with pytest.raises(KeyboardInterrupt):
        gallery.save(tmp_path / "g")
    monkeypatch.undo()
    np.testing.assert_array_equal(
        Gallery.load(tmp_path / "g", MADE_WITH).features(), filled(5).features()
    )


def test_another_model_or_config_is_refused(tmp_path):
    filled(3).save(tmp_path / "g")
    other = {"weights_sha256": "def", "config": {"INPUT.CLIP.LENGTH": ""}}
    with pytest.raises(UserError, match=r"other weights, INPUT\.CLIP\.LENGTH 6 there, '' here"):
        Gallery.load(tmp_path / "g", other)
    with pytest.raises(UserError, match="other weights"), Gallery.update(tmp_path / "g", other):
        pass


def test_where_a_gallery_is_not_saved(tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "notes", tmp_path / "file"):
        with pytest.raises(UserError, match="is not a gallery"):
            filled(3).save(path)
    assert [path.name for path in (tmp_path / "notes").iterdir()] == ["a.txt"]
    (tmp_path / "g" / ".lock").mkdir(parents=True)  # so that it cannot be written
    for path in (tmp_path / "file" / "g", tmp_path / "g"):
        with pytest.raises(UserError, match="cannot be written"):
            filled(3).save(path)


def test_a_gallery_that_cannot_be_read_is_not_called_damaged(tmp_path, monkeypatch):
    filled(3).save(tmp_path / "g")

    def denied(*args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(np, "load", denied)
    with pytest.raises(UserError, match="cannot be read: Permission denied"):
        Gallery.load(tmp_path / "g", MADE_WITH)


def change(path, **values):
    with np.load(path) as arrays:
        found = dict(arrays)
    about = {**json.loads(found["about"].tobytes()), **values.pop("about", {})}
    text = np.frombuffer(json.dumps(about).encode(), np.uint8)
    np.savez(path, **{**found, "about": text, **values})


DAMAGES = {
    "no file": lambda path: path.unlink(),
    "text": lambda path: path.write_text("{"),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-5]),
    "a flipped bit": lambda path: path.write_bytes(flipped(path.read_bytes())),
    "a pickle": lambda path: np.savez(path, features=np.array([{}]), about=np.zeros(1)),
    "no names": lambda path: change(path, about={"names": None}),
    "a name too few": lambda path: change(path, about={"names": ["a", "b"]}),
    "another modality": lambda path: change(path, about={"modality": [1, 2, 3]}),
    "no fingerprint": lambda path: change(path, about={"fingerprint": {}}),
    "NaN": lambda path: change(path, features=np.full((3, 16), np.nan)),
}


def flipped(content):
    place = content.index(b"e1")  # in a name
    return content[:place] + b"x" + content[place + 1 :]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_gallery_is_refused(tmp_path, damage):
    filled(3, seed=3).save(tmp_path / "g")
    DAMAGES[damage](tmp_path / "g" / "gallery.npz")
    with pytest.raises(UserError, match=r"is not a gallery|is damaged"):
        Gallery.load(tmp_path / "g", MADE_WITH)


# --- the example ---


def test_the_example_of_the_module_runs(runs, tmp_path, monkeypatch):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "run").symlink_to(runs / "SAD")
    rng = np.random.default_rng(0)
    for person in range(14):
        folder = tmp_path / "crops" / ("rgb", "ir")[person % 2] / f"person {person}"
        folder.mkdir(parents=True)
        for frame in range(3):
            image = rng.integers(0, 255, (32, 16, 3), np.uint8)
            Image.fromarray(image).save(folder / f"{frame}.png")
    monkeypatch.chdir(tmp_path)
    lines = [line for line in gallery_module.__doc__.splitlines() if line.startswith("    ")]
    names = {"StarPredictor": StarPredictor, "Gallery": Gallery, "tracklets_in": tracklets_in}
    exec(textwrap.dedent("\n".join(lines)), names)
    features = names["predictor"].features
    similarity = features(names["infrared"]) @ features(names["visible"]).T
    for row, ranked in zip(similarity, names["lists"], strict=True):
        order = torch.argsort(-row, stable=True)[:5].tolist()
        assert ranked.names == tuple(names["visible"][k].name for k in order)
