"""The whole page: of two runs, of the baseline alone, of weights that were only evaluated."""

import html
import re
import shutil

import pytest

from fastreid_star.errors import UserError
from fastreid_star.evaluation.cross_modal import format_table
from fastreid_star.report import build as module
from fastreid_star.report.build import build_report, run_names
from fastreid_star.report.gather import gather

from .conftest import HOSTILE
from .page import Page


def test_it_is_a_sound_page(both):
    Page(both).check()


def test_its_table_is_the_evaluators(both, star, sad):
    table = Page(both).tables[0]
    printed = (
        format_table({"": star.ranking.results.metrics()}).splitlines()[2:]
        + format_table({"": sad.ranking.results.metrics()}).splitlines()[2:]
    )
    expected = [[cell.strip() for cell in line.strip("|").split("|")] for line in printed]
    assert [row[-len(expected[0]) :] for row in table[1:]] == expected
    assert [table[1][0], table[4][0]] == ["STAR", HOSTILE]


def test_differences_and_moves_are_those_of_the_two(both, star, sad):
    page = Page(both)
    ours, theirs = star.ranking.results.metrics(), sad.ranking.results.metrics()
    difference = ours["mean/mAP"] - theirs["mean/mAP"]
    assert page.tables[-1][-1][-2] == f"{difference:+.2f}".replace("-", "−")
    first, other = (e.ranking.directions["I2V"].per_query.first_match for e in (star, sad))
    words = " ".join(page.text.split())
    assert f"The first match of {(first < other).sum()} queries lies further up in STAR" in words


def test_a_hostile_name_is_text_everywhere(both):
    assert "<img src=x" not in both
    assert HOSTILE in Page(both).text


def test_it_shows_every_section_and_picture(both):
    page = Page(both)
    titles = [attributes["id"] for attributes in page.all("section")]
    assert titles == [
        *("results", "training", "settings", "ranked", "looked", "gradcam"),
        *("similarities", "cameras", "confused", "compared"),
    ]
    for words in (
        "and camera are left out, as in the evaluation",
        "Skeletons are those",
        "✓ right",
        "✗ wrong",
        "Body parts (12)",
        "SHA-256",
        "Grad-CAM",
    ):
        assert words in page.text
    strips = both.count('class="query-row"')
    assert strips >= 2 * 3 * 2, "two queries of each kind in each direction"
    assert len(page.all("img")) >= 6 * 2 * 3 * 2
    assert len(both) < 5e6


def test_right_and_wrong_are_those_of_the_lists(both, star):
    """The first random query of I2V: each entry's mark, identity and similarity, in order."""
    shown = both[both.index('id="ranked"') :]
    pattern = (
        r'<figure class="clip (right|wrong)">(?:(?!figcaption).)*<figcaption>\s*<span class="mark">(✓ right|✗ wrong)'
        r"</span> · rank (\d+) · ([\d.-]+)<br>\s*identity (\d+) · camera (\d+)"
    )
    entries = re.findall(pattern, shown, re.DOTALL)
    direction = star.ranking.directions["I2V"]
    row = module.choose_queries(direction, star.ranking.tracklets, 2, 0)["random"][0]
    expected = []
    for rank, column in enumerate(direction.top(row, 5), start=1):
        tracklet = star.ranking.tracklets[direction.gallery[column]]
        frame, mark = ("right", "✓ right") if direction.right[row, column] else ("wrong", "✗ wrong")
        similarity = f"{direction.similarity[row, column]:.3f}"
        expected.append(
            (frame, mark, str(rank), similarity, str(tracklet.pid), str(tracklet.camid))
        )
    assert entries[:5] == expected


def test_grad_cam_explains_the_similarity_of_each_pair_in_both_runs(both, star, sad):
    shown = both[both.index('id="gradcam"') : both.index('id="similarities"')]
    expected = []
    for number, direction in enumerate(star.ranking.directions.values()):
        row = module.choose_queries(direction, star.ranking.tracklets, 2, number)["random"][0]
        pair = direction.queries[row], direction.gallery[direction.best_right(row)]
        similarities = [
            f"{e.ranking.features[pair[0]] @ e.ranking.features[pair[1]]:.3f}" for e in (sad, star)
        ]
        for role, position in zip(("Query", "Match"), pair, strict=True):
            expected += [f"{role}: {star.album.clip(position).what}"]
            expected += [
                f"{name}, similarity {s}"
                for name, s in zip((HOSTILE, "STAR"), similarities, strict=True)
            ]
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", shown)
    assert [html.unescape(caption) for caption in captions] == expected
    assert "infrared" in captions[0]
    assert "visible" in captions[3], "both modalities"


def test_what_differs_is_shown_from_the_baseline_to_the_run(both):
    settings = both[both.index('id="settings"') : both.index('id="ranked"')]
    rows = Page(
        settings[settings.index("<table") : settings.index("</table>") + len("</table>")]
    ).tables[0]
    assert rows[0] == ["key", HOSTILE, "STAR"]
    assert ["MODEL.META_ARCHITECTURE", "SAD", "STAR"] in rows


def test_the_cmc_curves_are_the_tables(star, sad, monkeypatch):
    drawn = {}
    monkeypatch.setattr(module.sections.plots, "cmc", lambda lines, title: drawn.update(lines))
    module.sections.cmc_chart([star, sad])
    assert len({(color, style) for color, style, _ in drawn.values()}) == 4
    for e in (star, sad):
        metrics = e.ranking.results.metrics()
        for way in ("I2V", "V2I"):
            _, _, values = drawn[f"{e.name} {way}"]
            for rank in (1, 5, 10):
                assert 100 * values[rank - 1] == pytest.approx(metrics[f"{way}/Rank-{rank}"])


def test_the_queries_that_were_won_and_lost_are_shown(both, star, sad):
    shown = both[both.index('id="compared"') :]
    expected = []
    for way, direction in star.ranking.directions.items():
        for changed in module.sections.comparison.changes(
            direction, sad.ranking.directions[way], 2
        ):
            expected += [
                f"First match at rank {c.rank} in STAR, at rank {c.other_rank} in {HOSTILE}"
                for c in changed
            ]
    assert expected
    assert [
        html.unescape(title) for title in re.findall(r'<p class="note">(First match.*?)</p>', shown)
    ] == expected


def test_the_baseline_alone_leaves_out_what_it_has_not(folders, monkeypatch):
    """As a folder that was only evaluated: without history, log and config; and without Grad-CAM's package."""
    folder = folders.sad.parent / "evaluated"
    folder.mkdir()
    shutil.copy(folders.sad / "model_final.pth", folder)
    run = gather(folder, ["TEST.RANKS", "[1,2]"], config_file=str(folders.sad / "config.yaml"))
    with monkeypatch.context() as patch:
        patch.setattr(
            module.importlib.util, "find_spec", lambda name: None if name == "ttach" else name
        )
        with pytest.raises(
            UserError, match=r"needs ttach: pip install .*grad-cam ttach, or add --no-gradcam"
        ):
            build_report(run)
        with pytest.raises(UserError, match=r"needs ttach: pip install .*grad-cam ttach$"):
            module.require_gradcam()
    page = Page(build_report(run, queries=1, with_gradcam=False))
    page.check()
    for line in (
        "There is no metrics.json in this folder",
        "no log in this folder tells",
        "This network reads no skeletons",
        "Left out (--no-gradcam)",
    ):
        assert line in page.text
    assert "Changed for this report" in page.text
    assert "Won and lost" not in page.text
    assert page.tables[0][0][2:] == ["Rank-1", "Rank-2", "mAP", "mINP"]


def test_the_papers_numbers_stand_beside_hitsz_vcm(folders, star, monkeypatch):
    """The real dataset is not at hand: the row is chosen by the config, and shown where it is chosen."""
    monkeypatch.setattr(module.overview, "paper_key", lambda cfg: "STAR_R50")
    (ours, paper) = module.sections.result_groups([star])
    assert [row.name for row in paper] == ["paper"] * 3
    assert paper[0].values[:2] == [69.57, None]
    page = Page(build_report(gather(folders.star), queries=1, with_gradcam=False))
    assert page.tables[0][4][0] == "paper"
    assert page.tables[0][4][2] == "69.57"
    assert ours[0].name == "STAR"


def test_runs_of_one_name_are_told_apart(folders, tmp_path):
    shutil.copytree(folders.star, tmp_path / "STAR")
    run, copy = gather(folders.star), gather(tmp_path / "STAR")
    assert run_names(run, None) == ("STAR",)
    assert run_names(run, copy) == (f"{folders.star.parent.name}/STAR", f"{tmp_path.name}/STAR")
    assert run_names(run, gather(folders.sad)) == ("STAR", HOSTILE)
