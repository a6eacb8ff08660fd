"""The report of a run, and of two side by side: one HTML file that needs nothing else."""

from __future__ import annotations

import datetime
import importlib.util
import logging
from collections.abc import Callable

from fastreid_star.engine.trainer import load_trained
from fastreid_star.errors import UserError
from fastreid_star.methods.sad import SAD
from fastreid_star.report import overview, sections
from fastreid_star.report.comparison import require_comparable
from fastreid_star.report.gather import Run, differences
from fastreid_star.report.html import file_name, render
from fastreid_star.report.pictures import Album
from fastreid_star.report.ranking import choose_queries, rank_run
from fastreid_star.report.sections import Evaluated
from fastreid_star.report.training import training_charts

logger = logging.getLogger(__name__)

KINDS = {
    "random": "Random queries",
    "best": "The best queries, by average precision",
    "worst": "The worst queries, by average precision",
}
WAYS = {
    "I2V": "I2V: infrared queries, visible gallery",
    "V2I": "V2I: visible queries, infrared gallery",
}


def build_report(
    run: Run,
    other: Run | None = None,
    *,
    queries: int = 2,
    seed: int = 0,
    with_gradcam: bool = True,
    say: Callable[[str], None] = logger.info,
) -> str:
    """The page.

    Args:
        run: what the report is about.
        other: what it is compared with, such as the baseline; None: nothing.
        queries: how many of each kind are shown in each direction.
        seed: of the random ones.
        with_gradcam: explain similarities by Grad-CAM.
        say: gets a line before each longer step.

    Raises:
        UserError: weights, config and data do not fit, the two runs cannot be compared, or Grad-CAM is asked for and
            its package is missing.
    """
    if with_gradcam:
        require_gradcam(", or add --no-gradcam")
    names = run_names(run, other)
    runs = []
    for each, name in zip([run] if other is None else [run, other], names, strict=True):
        say(f"{name}: extracting the features of {each.dataset} ...")
        runs.append(evaluate(each, name))
    main = runs[0]
    strangers = [e.name for e in runs if not isinstance(e.model, SAD)]
    if with_gradcam and strangers:
        raise UserError(
            f"Grad-CAM knows this plugin's networks, and {strangers[0]} is none: add --no-gradcam"
        )
    if other is not None:
        require_comparable(main.ranking, runs[1].ranking, names)
    say("drawing ...")
    chosen = {
        way: choose_queries(direction, main.ranking.tracklets, queries, seed + number)
        for number, (way, direction) in enumerate(main.ranking.directions.items())
    }
    pairs = sections.look_closely(main.ranking, chosen)
    return render(
        "report",
        names=names,
        dataset=run.dataset,
        made=datetime.datetime.now(),
        ways=WAYS,
        kinds=KINDS,
        columns=overview.columns(main.ranking.results.metrics()),
        results=sections.result_groups(runs),
        protocol=main.ranking.results.protocol().splitlines(),
        camera_filter=main.ranking.results.camera_filter,
        facts=[(e.name, overview.facts(e.run, e.parameters)) for e in runs],
        cmc=sections.cmc_chart(runs),
        training=[(e.name, training_charts(e.run, e.name)) for e in runs],
        settings=[(e.name, sections.settings(e.run)) for e in runs],
        between=[] if other is None else differences(other.trained, run.trained),
        skeletons=main.album.has_skeletons,
        long_clips=main.album.long,
        ranked=sections.ranked_lists(main, chosen),
        looked=sections.look_into(main, pairs),
        explained=sections.explain_pairs(runs, pairs) if with_gradcam else None,
        distributions=sections.distribution_charts(runs),
        cameras=[(e.name, sections.camera_tables(e)) for e in runs],
        confused=sections.confusions(main, queries),
        compared=None if other is None else sections.compare(main, runs[1], queries),
    )


def evaluate(run: Run, name: str) -> Evaluated:
    """Load a run's weights and rank its test set.

    Raises:
        UserError: weights, config and data do not fit.
    """
    model = load_trained(run.cfg, str(run.weights.path))
    ranking = rank_run(run.cfg, run.dataset, model)
    album = Album(ranking.dataset, min_score=run.cfg.MODEL.STAR.SCORE_THRESHOLD)
    return Evaluated(run, name, model, ranking, album)


def run_names(run: Run, other: Run | None) -> tuple[str, ...]:
    """What the report calls the runs: their folders' names, with the folder above where these are the same."""
    if other is None:
        return (run.name,)
    if run.name != other.name:
        return run.name, other.name
    return tuple(f"{file_name(each.folder.resolve().parent)}/{each.name}" for each in (run, other))


def require_gradcam(way_out: str = "") -> None:
    """Say before anything is computed that a package is missing which explains similarities.

    Args:
        way_out: what else the user may do.

    Raises:
        UserError: one is.
    """
    missing = [
        name for name in ("pytorch_grad_cam", "ttach") if importlib.util.find_spec(name) is None
    ]
    if missing:
        raise UserError(
            f"Grad-CAM needs {' and '.join(missing)}: pip install --no-deps grad-cam ttach{way_out}"
        )
