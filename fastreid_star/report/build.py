"""Write the report of a run, or of a run and its baseline, as one HTML file."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fastreid_star.data.datasets.synthetic import CAVEAT, SyntheticVCM
from fastreid_star.engine.trainer import load_trained
from fastreid_star.errors import UserError
from fastreid_star.files import prepare_output
from fastreid_star.report import explain, ranking, sections
from fastreid_star.report.draw import Album
from fastreid_star.report.page import file_name, write_page
from fastreid_star.report.runs import Run, differences, read_run
from fastreid_star.report.sections import Evaluated

logger = logging.getLogger(__name__)

KINDS = {
    "random": "Random queries",
    "best": "The best queries by average precision",
    "worst": "The worst queries by average precision",
}
MOVES = {"better": 1, "equal": 0, "worse": -1}
Chosen = Mapping[str, Mapping[str, Sequence[int]]]  # direction -> kind -> rows of queries


class Pair(NamedTuple):
    """A query and its most similar match: a title and their positions among the tracklets."""

    title: str
    query: int
    match: int


def write_report(
    run: str | Path,
    baseline: str | Path | None = None,
    *,
    output: str | Path | None = None,
    config_file: str = "",
    options: Sequence[str] = (),
    queries: int = 2,
    seed: int = 0,
    gradcam: bool = True,
    progress: Callable[[str], None] = logger.info,
) -> Path:
    """Write the report of a run.

    Args:
        run: OUTPUT_DIR of the run.
        baseline: OUTPUT_DIR of a run to compare it with.
        output: the HTML file; None: report.html in `run`.
        config_file: the config of a folder that has no config.yaml.
        options: ``[KEY, VALUE, ...]``, config keys to change in both runs.
        queries: number of queries of each kind in each direction.
        seed: chooses the random queries.
        gradcam: show Grad-CAM.
        progress: called with a line before each long step.

    Returns:
        the file.

    Raises:
        UserError: weights, config and data do not fit, the runs cannot be compared, or the file
            cannot be written.
    """
    if queries < 1:
        raise UserError(f"the report needs at least 1 query of each kind, not {queries}")
    if baseline is not None and "MODEL.WEIGHTS" in options[::2]:
        raise UserError("MODEL.WEIGHTS names one file, but there are two runs: leave it out")
    output = Path(output or Path(run) / "report.html")
    folders = [run] if baseline is None else [run, baseline]
    runs = [read_run(folder, options, config_file=config_file) for folder in folders]
    prepare_output(output)
    evaluated = []
    for each, name in zip(runs, run_names(runs), strict=True):
        progress(f"{name}: extracting the features of {each.dataset} ...")
        evaluated.append(evaluate(each, name))
    progress("drawing the report ...")
    contents = report_contents(evaluated, queries=queries, seed=seed, gradcam=gradcam)
    return write_page(output, "report", **contents)


def evaluate(run: Run, name: str) -> Evaluated:
    """Load the weights of a run and rank its test set.

    Raises:
        UserError: weights, config and data do not fit.
    """
    # Without gradients of the weights, as Grad-CAM needs those of the frames only.
    model = load_trained(run.cfg, str(run.weights.path)).requires_grad_(False)
    found = ranking.rank_run(run.cfg, run.dataset, model)
    return Evaluated(run, name, model, found, Album(found.dataset))


def report_contents(
    evaluated: Sequence[Evaluated], *, queries: int = 2, seed: int = 0, gradcam: bool = True
) -> dict:
    """The values of the template: of one run, or of a run and its baseline.

    Raises:
        UserError: the runs cannot be compared.
    """
    main, *others = evaluated
    for other in others:
        ranking.require_comparable(main.ranking, other.ranking, (main.name, other.name))
    directions, tracklets = main.ranking.directions, main.ranking.tracklets
    chosen = {
        way: ranking.choose_queries(direction, tracklets, queries, seed + number)
        for number, (way, direction) in enumerate(directions.items())
    }
    pairs = choose_pairs(main.ranking, chosen)
    gradcam = gradcam and all(explain.has_gradcam(e.model) for e in evaluated)
    return {
        "names": [e.name for e in evaluated],
        "dataset": main.run.dataset,
        "caveat": CAVEAT if main.run.dataset == SyntheticVCM.__name__ else "",
        "means": [e.metrics["mean/mAP"] for e in evaluated],
        "ways": {
            way: f"{way}: {query} queries, {gallery} gallery"
            for way, (query, gallery) in main.ranking.results.modalities.items()
        },
        "kinds": KINDS,
        "columns": sections.columns(main.metrics),
        "results": [sections.result_rows(e) for e in evaluated],
        "protocol": main.ranking.results.protocol().splitlines(),
        "measure": main.ranking.measure,
        "camera_filter": main.ranking.results.camera_filter,
        "facts": [(e.name, sections.facts(e)) for e in evaluated],
        "cmc": sections.cmc_chart(evaluated),
        "training": sections.training_charts({e.name: e.run for e in evaluated}),
        "untrained": [e.name for e in evaluated if not e.run.history],
        "settings": [(e.name, sections.settings(e.run)) for e in evaluated],
        "between": [differences(e.run.trained, main.run.trained) for e in others],
        "skeletons": main.album.has_skeletons,
        "ranked": {
            way: {
                kind: [sections.ranked_row(main, directions[way], row) for row in rows]
                for kind, rows in kinds.items()
            }
            for way, kinds in chosen.items()
        },
        "looked": look(main, pairs),
        "silhouettes": silhouette_pairs(main, pairs),
        "explained": gradcam_pairs(evaluated, pairs) if gradcam else None,
        "distributions": sections.distribution_charts(evaluated),
        "embeddings": sections.embedding_charts(evaluated),
        "cameras": [(e.name, camera_tables(e)) for e in evaluated],
        "confused": {
            way: sections.confused_rows(main, direction, queries)
            for way, direction in directions.items()
        },
        "compared": compare(main, others[0], queries) if others else None,
    }


def run_names(runs: Sequence[Run]) -> list[str]:
    """The names of the folders, with the parent folder if two are equal."""
    names = [run.name for run in runs]
    if len(set(names)) == len(names):
        return names
    parents = [file_name(run.folder.resolve().parent) for run in runs]
    return [f"{parent}/{name}" for parent, name in zip(parents, names, strict=True)]


def choose_pairs(found: ranking.Ranking, chosen: Chosen) -> list[Pair]:
    """The first random query of each direction with its most similar match."""
    pairs = []
    for way, kinds in chosen.items():
        direction, row = found.directions[way], kinds["random"][0]
        column = direction.best_right(row)
        title = f"{way}: a random query and its first match, at rank "
        title += str(direction.rank_of(row, column))
        pairs.append(Pair(title, int(direction.queries[row]), int(direction.gallery[column])))
    return pairs


def look(e: Evaluated, pairs: Sequence[Pair]) -> dict | None:
    """What the network looked at, in the pairs and over the test set; None without skeletons."""
    if not getattr(e.model, "reads_skeletons", False):
        return None
    trained = explain.sample_weights(e.model, e.ranking.dataset)
    random = explain.sample_weights(explain.untrained(e.run.cfg, e.model), e.ranking.dataset)
    exponents = e.run.cfg.MODEL.STAR.EXPONENTS
    return {
        "pairs": [
            (p.title, explain.attention(e.model, e.album, {"query": p.query, "match": p.match}))
            for p in pairs
        ],
        "constant": explain.constant_weights(trained),
        "charts": explain.weight_charts(trained, random, exponents),
        "clips": max((len(values) for values in trained.values()), default=0),
        "all": len(e.ranking.tracklets),
    }


def silhouette_pairs(e: Evaluated, pairs: Sequence[Pair]) -> list[tuple[str, list]] | None:
    """The learned silhouettes of both clips of each pair; None if the network learns none."""
    if not getattr(e.model, "has_silhouettes", False):
        return None
    found = []
    for title, query, match in pairs:
        sides = []
        for role, place in (("query", query), ("match", match)):
            clip = e.album.clip(place)
            shown = explain.silhouettes(e.model, clip, height=e.album.height)
            sides.append({"role": role, "title": clip.title, "picture": e.album.strip(clip),
                          "silhouettes": shown})  # fmt: skip
        found.append((title, sides))
    return found


def gradcam_pairs(runs: Sequence[Evaluated], pairs: Sequence[Pair]) -> list[tuple[str, list]]:
    """Grad-CAM of both clips of each pair in each run, the baseline first."""
    album = runs[0].album
    explained = []
    for title, query, match in pairs:
        sides = []
        for role, place, to in (("query", query, match), ("match", match, query)):
            clip, maps = album.clip(place), []
            for e in reversed(runs):
                own, target = e.album.clip(place), e.ranking.features[to]
                found = explain.gradcam(e.model, own, target, height=album.height, about=e.name)
                maps.append((e.name, *found))
            side = {"role": role, "title": clip.title, "picture": album.strip(clip), "maps": maps}
            sides.append(side)
        explained.append((title, sides))
    return explained


def camera_tables(e: Evaluated) -> dict[str, ranking.CameraPairs]:
    """Rank-1 between cameras by direction."""
    tracklets = e.ranking.tracklets
    return {way: ranking.camera_pairs(d, tracklets) for way, d in e.ranking.directions.items()}


def compare(main: Evaluated, other: Evaluated, count: int) -> dict:
    """Differences of the results, how many queries moved, and those that moved most."""
    ours, theirs = main.metrics, other.metrics
    names = sections.columns(ours)
    gains = {key: ours[key] - theirs[key] for key in ours}
    rows = [(way, [gains[f"{way}/{name}"] for name in names]) for way in main.ways]
    if len(rows) == 2:
        rows.append(("mean", np.mean([values for _, values in rows], axis=0).tolist()))
    moves, changed = {}, {}
    for way, direction in main.ranking.directions.items():
        its = other.ranking.directions[way]
        moved = np.sign(list(ranking.rank_changes(direction, its).values())).tolist()
        moves[way] = {name: moved.count(sign) for name, sign in MOVES.items()}
        changed[way] = [
            [sections.changed_row(main, other, way, row) for row in rows_of_kind]
            for rows_of_kind in ranking.most_changed(direction, its, count)
        ]
    return {"rows": rows, "moves": moves, "changed": changed}
