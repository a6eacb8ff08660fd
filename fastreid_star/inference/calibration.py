"""Compute the threshold of a model from the pairs of a test set, or from labeled pairs."""

from __future__ import annotations

import csv
import logging
import os
from collections.abc import Callable, Sequence

import numpy as np

from fastreid_star.data.build import find_video_dataset
from fastreid_star.data.tracklets import TrackletInput
from fastreid_star.errors import UserError
from fastreid_star.evaluation.cross_modal import cross_modal_results
from fastreid_star.evaluation.rerank import Reranking, build_reranking
from fastreid_star.evaluation.similarity import similarity
from fastreid_star.evaluation.verification import Pairs, share_above, threshold_at
from fastreid_star.files import prepare_output
from fastreid_star.inference.features import compute, dataset_tracklets, find_tracklets
from fastreid_star.inference.predictor import StarPredictor
from fastreid_star.inference.threshold import FILE, Threshold, require_both_modalities

logger = logging.getLogger(__name__)

COLUMNS = ("first", "second", "same")
FEW = 10  # false accepts: with fewer the rate on other people is uncertain


def calibrate(
    predictor: StarPredictor,
    false_accepts: float,
    *,
    dataset: str = "",
    paths: Sequence[str] = (),
    pairs: str = "",
    skeletons: str = "",
    add_skeletons: Callable[[list[TrackletInput]], list[TrackletInput]] = list,
    batch_size: int | None = None,
    num_workers: int = 2,
) -> str:
    """Compute a model's threshold, and keep it beside the model's checkpoint.

    Args:
        predictor: the model.
        false_accepts: the share of the pairs of two people that may be accepted as one person.
        dataset: take all infrared-visible pairs of this test set; empty: that of DATASETS.TESTS.
        paths: folders of tracklets and videos, with `pairs`, instead of a test set.
        pairs: a CSV file, see :func:`read_pairs`.
        skeletons: the skeleton store of the images in `paths`.
        add_skeletons: gives the tracklets of `paths` that have no skeletons some.
        batch_size: tracklets in a batch; None: TEST.IMS_PER_BATCH.
        num_workers: processes that decode images.

    Returns:
        what was found and where it is kept, for the user.

    Raises:
        UserError: an argument is wrong, there are too few pairs, or the file cannot be written.
    """
    if not 0 < false_accepts < 1:
        raise UserError(f"{false_accepts:g} false accepts: give a share between 0 and 1, as 0.01")
    if bool(paths) != bool(pairs):
        raise UserError("labeled pairs need both: folders of tracklets, and --pairs FILE")
    if pairs and dataset:
        raise UserError("give either --dataset NAME or --pairs FILE")
    if build_reranking(predictor.cfg) != Reranking():
        raise UserError(
            "a threshold is for the similarity of two tracklets, but re-ranking compares all: add "
            "--set TEST.RERANK.ENABLED False TEST.RERANK.TEMPORAL False TEST.AQE.ENABLED False"
        )
    folder = os.path.dirname(predictor.weights)
    prepare_output(os.path.join(folder, FILE))
    batches = (batch_size, num_workers)
    if pairs:
        scores = _labeled_pairs(predictor, paths, pairs, skeletons, add_skeletons, batches)
        source = f"labeled pairs in {os.path.abspath(pairs)}"
    else:
        scores, source = _test_pairs(predictor, dataset, batches)
    count = len(scores.different)
    if count * false_accepts < 1 - 1e-9:
        raise UserError(
            f"{count:,} pairs of two people are too few for a rate of {false_accepts:g}, which is "
            f"one of {1 / false_accepts:,.0f}: give more pairs, or allow more false accepts"
        )
    if count * false_accepts < FEW - 1e-9:
        logger.warning(
            "The threshold rests on fewer than %d false accepts: on other people the rate can be "
            "several times as high or as low",
            FEW,
        )
    value = threshold_at(scores.different, false_accepts)
    wrong, right = (share_above(kind, value) for kind in (scores.different, scores.same))
    threshold = Threshold(
        value=value,
        false_accepts=false_accepts,
        same_pairs=len(scores.same),
        different_pairs=count,
        true_accepts=right,
        source=source,
        fingerprint=predictor.fingerprint,
    )
    path = threshold.save(folder)
    return (
        f"{source}\nthreshold {value:.4f}: above it are {100 * wrong:.2f} % of {count:,} pairs of "
        f"two people and {100 * right:.2f} % of {len(scores.same):,} pairs of one person\n{path}"
    )


def read_pairs(path: str, names: Sequence[str]) -> dict[tuple[int, int], bool]:
    """The labeled pairs of a CSV file.

    Its first line is ``first,second,same``. Each other line has the names of two tracklets, and 1
    for the same person or 0. The order of the names does not matter, and a pair counts once.

    Args:
        path: of the file.
        names: of all tracklets.

    Returns:
        ascending positions of both tracklets -> whether they show the same person.

    Raises:
        UserError: the file cannot be read, a name is unknown, a label is not 0 or 1, or a pair has
            both labels.
    """
    places = {name: place for place, name in enumerate(names)}
    found: dict[tuple[int, int], bool] = {}
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file, skipinitialspace=True)
            if tuple(rows.fieldnames or ()) != COLUMNS:
                raise UserError(f"{path}: the first line must be {','.join(COLUMNS)}")
            for row in rows:
                where = f"{path}, line {rows.line_num}"
                if row["same"] not in ("0", "1"):
                    raise UserError(f"{where}: same is {row['same']!r}, it must be 0 or 1")
                for name in (row["first"], row["second"]):
                    if name not in places:
                        raise UserError(
                            f"{where}: there is no tracklet {name!r}; a name is the path below the "
                            f"given folder, such as {names[0]!r}"
                        )
                first, second = sorted((places[row["first"]], places[row["second"]]))
                same = row["same"] == "1"
                if found.setdefault((first, second), same) != same:
                    raise UserError(f"{where}: an earlier line has the other label for this pair")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a CSV file in UTF-8: {error}") from error
    return found


def _test_pairs(
    predictor: StarPredictor, dataset: str, batches: tuple[int | None, int]
) -> tuple[Pairs, str]:
    """All infrared-visible pairs of a test set by the rules of the evaluation, and its protocol."""
    cfg = predictor.cfg
    if not dataset and len(cfg.DATASETS.TESTS) != 1:
        raise UserError(
            f"DATASETS.TESTS is {tuple(cfg.DATASETS.TESTS)}: choose one with --dataset NAME"
        )
    name = dataset or cfg.DATASETS.TESTS[0]
    found = dataset_tracklets(cfg, name, "test")
    results = cross_modal_results(
        compute(predictor, found.tracklets, *batches),
        found.listed,
        min_frames=cfg.DATASETS.MIN_FRAMES,
        dataset_name=name,
        camera_filter=cfg.TEST.CAMERA_FILTER,
        protocol_name=find_video_dataset(name).protocol_name(cfg),
        trials=found.trials,
        roc=True,
    )
    assert results.verification is not None
    return results.verification.pairs, results.protocol()


def _labeled_pairs(
    predictor: StarPredictor,
    paths: Sequence[str],
    pairs: str,
    skeletons: str,
    add_skeletons: Callable[[list[TrackletInput]], list[TrackletInput]],
    batches: tuple[int | None, int],
) -> Pairs:
    """The similarities of labeled pairs. Only their tracklets are read."""
    found = find_tracklets(paths, skeletons=skeletons)
    labeled = read_pairs(pairs, found.names)
    modalities = found.modalities
    for first, second in labeled:
        require_both_modalities([modalities[first]], [modalities[second]])
    used = sorted({place for pair in labeled for place in pair})
    if not used:
        raise UserError(f"{pairs} has no pairs")
    chosen = add_skeletons([found.tracklets[place] for place in used])
    features = compute(predictor, chosen, *batches)
    row = {place: number for number, place in enumerate(used)}
    values = [
        similarity(features[row[first], None], features[row[second], None]).item()
        for first, second in labeled
    ]
    scores, same = np.array(values, np.float32), np.array(list(labeled.values()), bool)
    return Pairs(scores[same], scores[~same])
