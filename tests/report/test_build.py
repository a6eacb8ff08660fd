"""The whole report: of two runs, of the baseline alone, of weights that were only evaluated."""

import html
import itertools
import re
import shutil
from dataclasses import replace

import pytest

from fastreid_star.ablation.published import TABLE_3
from fastreid_star.engine.defaults import load_config
from fastreid_star.errors import UserError
from fastreid_star.report import build, plots, sections
from fastreid_star.report.build import run_names, write_report
from fastreid_star.report.ranking import choose_queries, most_changed

from .conftest import HOSTILE
from .page import Page

WAYS = ("I2V", "V2I")


def section(page, name):
    start = page.index(f'<section id="{name}"')
    return page[start : page.index("</section>", start) + len("</section>")]


def test_it_is_a_sound_page_with_all_sections(both):
    page = Page(both)
    page.check()
    names = [attributes["id"] for attributes in page.all("section")]
    assert names == [
        *("results", "training", "settings", "ranked", "looked", "gradcam", "similarities"),
        *("features", "cameras", "confused", "compared"),
    ]
    assert [link["href"] for link in page.all("a")] == [f"#{name}" for name in names], "menu"
    assert "SyntheticVCM are drawn" in page.text
    assert "<img src=x" not in both
    assert HOSTILE in page.text, "a name is text"
    assert len(both) < 5e6
    figures = {svg["aria-label"] for svg in page.all("svg") if "class" not in svg}
    assert {
        "Losses",
        "Correction of the frames (7)",
        "STAR, by modality",
        "STAR, by identity",
    } <= figures
    rows = Page(section(both, "settings")).tables[0]
    assert rows[0] == ["key", HOSTILE, "STAR"], "what differs, from the baseline to the run"
    assert ["MODEL.META_ARCHITECTURE", "SAD", "STAR"] in rows


def test_its_results_are_the_evaluations_with_map_first(both, star, sad):
    page = Page(both)
    table = page.tables[0]
    assert table[0][1:3] == ["mAP", "Rank-1"], "a phone shows the first columns"
    for rows, e in ((table[1:4], star), (table[4:7], sad)):
        for row, way in zip(rows, (*WAYS, "mean"), strict=True):
            numbers = [f"{e.metrics[f'{way}/{measure}']:.2f}" for measure in ("mAP", "Rank-1")]
            assert row[:3] == [f"{e.name} {way}", *numbers]
    gain = star.metrics["mean/mAP"] - sad.metrics["mean/mAP"]
    assert f"{star.metrics['mean/mAP']:.2f} % mean mAP" in " ".join(page.text.split())
    assert page.tables[-1][-1][1] == f"{gain:+.2f}".replace("-", "−")


def test_the_losses_of_both_runs_are_in_one_figure(star, sad, monkeypatch):
    drawn = {}
    monkeypatch.setattr(plots, "curves", lambda series, title, **_: drawn.update({title: series}))
    sections.training_charts({"A": star.run, "B": sad.run})
    losses = drawn["Losses"]
    assert set(losses) == {
        *("cls", "cls frame", "cls attack", "triplet", "defense", "skeleton", "absent"),
        "total loss",
    }
    assert (set(losses["cls"]), set(losses["skeleton"])) == ({"A", "B"}, {"A"})
    assert losses["cls"]["B"] == sad.run.series("loss_cls")
    assert set(drawn["Learning rate"]["Learning rate"]) == {"A", "B"}
    evaluations = drawn["Evaluations of the test set, %"]
    assert evaluations["V2I mAP"]["A"] == star.run.evaluations("V2I/mAP")
    assert sections.training_charts({"A": replace(star.run, history=())}) == []


def test_ranked_rows_have_the_query_and_ten_entries(both, star):
    """The first random query of I2V: each entry's mark, rank, similarity, identity and camera."""
    rows = section(both, "ranked").split('<div class="query-row">')[1:]
    assert len(rows) == 2 * 3 * 2, "two queries of each kind in each direction"
    assert all(row.count("<figure") == 11 for row in rows)
    pattern = (
        r'class="clip (right|wrong)">.*?class="mark">(✓|✗) rank (\d+)</span><br>([\d.-]+)<br>\s*'
        r"id (\d+)<br>cam (\d+)"
    )
    entries = re.findall(pattern, rows[0], re.DOTALL)
    direction = star.ranking.directions["I2V"]
    row = choose_queries(direction, star.ranking.tracklets, 2, 0)["random"][0]
    expected = []
    for rank, column in enumerate(direction.top(row, 10), start=1):
        tracklet = star.ranking.tracklets[direction.gallery[column]]
        mark = ("right", "✓") if direction.right[row, column] else ("wrong", "✗")
        similarity = f"{direction.similarity[row, column]:.3f}"
        expected.append((*mark, str(rank), similarity, str(tracklet.pid), str(tracklet.camid)))
    assert entries == expected


def test_grad_cam_explains_each_pair_in_both_runs(both, star, sad):
    expected = []
    for number, direction in enumerate(star.ranking.directions.values()):
        row = choose_queries(direction, star.ranking.tracklets, 2, number)["random"][0]
        pair = direction.queries[row], direction.gallery[direction.best_right(row)]
        for role, position in zip(("Query", "Match"), pair, strict=True):
            expected.append(f"{role}: {star.album.clip(position).title}")
            for e in (sad, star):
                similarity = e.ranking.features[pair[0]] @ e.ranking.features[pair[1]]
                expected.append(f"{e.name}, similarity {similarity:.3f}")
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", section(both, "gradcam"))
    assert [html.unescape(caption) for caption in captions] == expected


def test_the_cmc_curves_are_the_tables(star, sad, monkeypatch):
    drawn = {}
    monkeypatch.setattr(plots, "cmc", lambda lines, title: drawn.update(lines))
    sections.cmc_chart([star, sad])
    assert len({(color, style) for color, style, _ in drawn.values()}) == 4
    for e in (star, sad):
        for way in WAYS:
            values = drawn[f"{e.name} {way}"][2]
            for rank in (1, 5, 10):
                assert 100 * values[rank - 1] == pytest.approx(e.metrics[f"{way}/Rank-{rank}"])


def test_confusions_and_the_queries_that_were_won_and_lost(both, star, sad):
    compared = section(both, "compared")
    text = " ".join(Page(compared).text.split())
    titles = re.findall(r'<p class="note">(First match.*?)</p>', compared)
    expected = []
    for way, direction in star.ranking.directions.items():
        its = sad.ranking.directions[way]
        first = [d.per_query.first_match for d in (direction, its)]
        assert f"a better rank for {(first[0] < first[1]).sum()} queries" in text
        for row in itertools.chain(*most_changed(direction, its, 2)):
            ranks = [int(of[row]) for of in first]
            title = f"First match at rank {ranks[0]} in STAR, at rank {ranks[1]} in {HOSTILE}"
            expected.append(title)
            entries = sections.changed_row(star, sad, way, row).clips
            top = direction.gallery[direction.top(row, 1)[0]]
            assert entries[1].tracklet == star.ranking.tracklets[top]
            assert len(entries) == (3 if ranks[0] == 1 else 4)
            assert entries[-1].right or ranks[0] == 1
    assert [html.unescape(title) for title in titles] == expected
    for row in sections.confused_rows(star, star.ranking.directions["I2V"], 2):
        assert [clip.right for clip in row.clips] == [None, False, True]
        assert row.clips[1].similarity > row.clips[2].similarity


def test_the_features_are_colored_by_identities_of_both_modalities(star, monkeypatch):
    class FirstTwo:
        def __init__(self, **_):
            self.fit_transform = lambda features: features[:, :2]

    drawn = []
    monkeypatch.setattr(sections, "TSNE", FirstTwo)
    monkeypatch.setattr(plots, "embedding", lambda *args, **kwargs: drawn.append((args, kwargs)))
    sections.embedding_charts([star])
    (points, modalities, pids), about = drawn[1]
    assert (points == star.ranking.features[:, :2].numpy()).all(), "in the order of the tracklets"
    assert list(pids) == [tracklet.pid for tracklet in star.ranking.tracklets]
    assert len(set(modalities)) == 2
    assert set(about["identities"]) <= set(pids)
    assert drawn[0][1]["identities"] == []


def test_the_baseline_alone_leaves_out_what_it_does_not_have(folders, tmp_path):
    """A folder that was only evaluated has no history, log and config."""
    shutil.copy(folders.sad / "model_final.pth", tmp_path)
    path = write_report(
        tmp_path,
        output=tmp_path / "new" / "page.html",
        config_file=str(folders.sad / "config.yaml"),
        options=["TEST.RANKS", "[1,2]", "TEST.CAMERA_FILTER", "False"],
        queries=1,
        gradcam=False,
    )
    page = Page(path.read_text(encoding="utf-8"))
    page.check()
    assert {"#looked", "#gradcam"}.isdisjoint(link["href"] for link in page.all("a"))
    for words in ("no metrics.json", "no log", "reads no skeletons", "--no-gradcam"):
        assert words in page.text
    assert ["TEST.CAMERA_FILTER", "True", "False"] in page.tables[1], "changed for this report"
    assert "same identity and camera kept" in page.text
    assert "Won and lost" not in page.text
    assert page.tables[0][0][1:] == ["mAP", "Rank-1", "Rank-2", "mINP"]
    assert not page.all("input"), "no skeletons to switch off"


def test_the_papers_numbers_stand_beside_its_networks(star, monkeypatch):
    def row(name, *options):
        cfg = load_config(f"HITSZ-VCM/{name}.yml", options)
        return sections.paper_row(replace(star.run, cfg=cfg))

    assert [row(name) for name in TABLE_3] == list(TABLE_3)
    assert row("STAR_R18") == ""
    elsewhere = ["SEED", "7", "OUTPUT_DIR", "x", "DATASETS.ROOT", "y", "MODEL.WEIGHTS", "z.pth"]
    assert row("STAR_R50", *elsewhere, "MODEL.DEVICE", "cpu") == "STAR_R50"
    for changed in (["INPUT.CLIP.LENGTH", "6"], ["DATASETS.TESTS", "('SyntheticVCM',)"]):
        assert row("STAR_R50", *changed) == ""
    assert sections.paper_row(star.run) == ""
    monkeypatch.setattr(sections, "paper_row", lambda run: "STAR_R50")
    rows = sections.result_rows(star)
    assert [row.name for row in rows] == ["STAR"] * 3 + ["paper"] * 3
    assert rows[3].values[:3] == [56.01, 69.57, None]
    assert rows[5].values[0] == pytest.approx((56.01 + 58.56) / 2)


def test_runs_of_one_name_are_told_apart(star, sad, tmp_path):
    copy = replace(star.run, folder=tmp_path / "STAR")
    parents = [star.run.folder.parent.name, tmp_path.name]
    assert run_names([star.run, copy]) == [f"{parent}/STAR" for parent in parents]
    assert run_names([star.run, sad.run]) == ["STAR", HOSTILE]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"queries": 0}, "at least 1"),
        ({"output": "{star}"}, "is a folder"),
        ({"baseline": "{sad}", "options": ["MODEL.WEIGHTS", "x.pth"]}, "two runs"),
        ({"options": ["MODEL.DEVICE", "tpu"]}, "tpu"),
        ({"options": ["MODEL.WEIGHTS", "{sad}/model_best.pth"]}, "checkpoint"),
        ({"run": "nowhere"}, "nowhere"),
    ],
)
def test_bad_input_is_refused_before_the_work(folders, arguments, message, monkeypatch):
    monkeypatch.setattr(build.ranking, "rank_run", lambda *args: pytest.fail("work has begun"))

    def filled(value):
        if isinstance(value, list):
            return [filled(each) for each in value]
        return value.format(star=folders.star, sad=folders.sad) if isinstance(value, str) else value

    arguments = {"run": "{star}", **arguments}
    with pytest.raises(UserError, match=message):
        write_report(**{key: filled(value) for key, value in arguments.items()})
