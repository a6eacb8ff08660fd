"""What was found in a dataset, for people: on the terminal, in a report, in a list of problems and in a picture."""

from __future__ import annotations

import csv
import io
import itertools
import math
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from tabulate import tabulate

from fastreid_star.data.check import LONG, DatasetCheck, splits
from fastreid_star.data.check_frames import Kind, read_one_by_one
from fastreid_star.data.datasets import VideoDataset
from fastreid_star.data.io import BrokenImage, read_frame
from fastreid_star.data.skeleton_stats import SCORE_EDGES, SkeletonStats
from fastreid_star.data.skeletons import SkeletonStore
from fastreid_star.report.drawing import GridRow, frame_grid
from fastreid_star.structures import Modality, Tracklet

BLOCKS = " ▁▂▃▄▅▆▇█"
COUNT_HEADERS = (
    "",
    "tracklets",
    "frames",
    "identities",
    f">= {LONG} frames",
    "cameras",
    "published",
)
SKELETON_HEADERS = ("skeletons", "frames", "with", "joints outside", "height", "mean score")

_HINTS = {
    Kind.MISSING_FRAME: "unpack the images again",
    Kind.BROKEN_FRAME: "copy these files again; until then their neighbors stand in for them",
    Kind.NO_SKELETON: "these frames keep the baseline's feature",
    Kind.NOT_FINITE: "these frames count as without a skeleton",
    Kind.MISSHAPEN: "make the store again",
    Kind.ORPHAN: "the store was made for other data, or frames have been lost",
    Kind.SPARE: "nothing uses these",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One line about what was found.

    Args:
        is_fault: there is something to mend.
        text: what, how often, an example and what to do.
    """

    is_fault: bool
    text: str


def findings(check: DatasetCheck) -> list[Finding]:
    """Counts that differ, then every kind of problem, then whole modalities that look wrong."""
    found = [Finding(True, text) for text in check.list_problems]
    found += [
        Finding(True, f"not as published: {counts.name}: {', '.join(counts.differences)}")
        for counts in check.counts
        if counts.differences
    ]
    for kind in Kind:
        problems = [problem for problem in check.problems if problem.kind is kind]
        if not problems:
            continue
        frames_of = check.stored if kind in (Kind.ORPHAN, Kind.SPARE) else check.checked
        hint = _HINTS.get(kind, "")
        if kind is Kind.MISPLACED:
            causes = Counter(problem.reason.rpartition(": ")[2] for problem in problems)
            hint = (
                f"mostly: {causes.most_common(1)[0][0]}" if len(causes) > 1 else next(iter(causes))
            )
        elif len(problems) == frames_of:
            hint = {
                Kind.MISSING_FRAME: "not one is there: is this the right folder, and are the images unpacked?",
                Kind.NO_SKELETON: "not one has any: the store was made for other data",
            }.get(kind, hint)
        found.append(
            Finding(
                kind.is_fault,
                f"{kind.value}: {len(problems):,}, such as {problems[0].path}; {hint}",
            )
        )
    found += [
        Finding(
            True,
            f"most {modality.name.lower()} skeletons are wider than tall: are x and y swapped?",
        )
        for modality in check.lying
    ]
    found += [
        Finding(
            True,
            f"most {modality.name.lower()} skeletons have no shoulders above hips above ankles: are the joints in "
            "COCO's order?",
        )
        for modality in check.disordered
    ]
    return found


def to_text(check: DatasetCheck) -> str:
    """For the terminal: a few aligned tables, then what is wrong."""
    looked = (
        f"{check.checked:,} of {check.frames:,} frames {'read' if check.decoded else 'looked for'}"
    )
    parts = [
        f"{check.name} in {check.folder}: {check.tracklets:,} tracklets, {looked}",
        _table(_count_rows(check), COUNT_HEADERS, "plain", words_last=True),
        _frames_line(check),
    ]
    if check.store:
        rows = [(*row, _histogram(stats)) for row, stats in _skeleton_rows(check)]
        parts.append(_table(rows, (*SKELETON_HEADERS, "scores 0 to 1"), "plain", words_last=True))
    parts.append(
        "\n".join(f"{'FAULT' if f.is_fault else 'note '}  {f.text}" for f in findings(check))
    )
    parts.append("all is well" if check.good else "not all is well: see FAULT above")
    return "\n\n".join(part for part in parts if part)


def to_markdown(check: DatasetCheck, *, files: Sequence[str] = ()) -> str:
    """The report: everything that the terminal shows, and the numbers behind it.

    Args:
        files: of the same folder, to be linked; pictures are shown.
    """
    read = "read" if check.decoded else "looked for, not read"
    parts = [
        f"# {check.name}",
        f"`{check.folder}`: {check.tracklets:,} tracklets; {check.checked:,} of {check.frames:,} frames {read}.",
        "**All is well.**" if check.good else "**Not all is well.**",
        "\n".join(f"- {'**fault**' if f.is_fault else 'note'}: {f.text}" for f in findings(check)),
        "## Counts",
        _table(_count_rows(check), COUNT_HEADERS, "pipe", words_last=True),
        f"## Frames\n\n{_frames_line(check)}",
    ]
    if check.sizes:
        frequent = check.sizes.most_common(10)
        rows = [(f"{height} x {width}", f"{count:,}") for (height, width), count in frequent]
        if len(check.sizes) > len(frequent):
            others = sum(check.sizes.values()) - sum(count for _, count in frequent)
            rows.append((f"{len(check.sizes) - len(frequent):,} others", f"{others:,}"))
        parts.append(_table(rows, ("height x width", "frames"), "pipe"))
    if check.store:
        measured = list(_skeleton_rows(check))
        parts += [
            f"## Skeletons\n\n`{check.store}`: {check.stored:,} skeletons.",
            _table([row for row, _ in measured], SKELETON_HEADERS, "pipe"),
            "*Height* is a skeleton's mean height as a share of its frame's.",
            "### Scores\n\nJoints by score, in percent.",
            _score_table(measured),
        ]
    for name in files:
        parts.append(f"![{name}]({name})" if name.endswith(".png") else f"[{name}]({name})")
    return "\n\n".join(part for part in parts if part) + "\n"


def to_csv(check: DatasetCheck) -> str:
    """Every problem, one a line: what, where in the dataset, the file or skeleton, and the reason."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(("problem", "subset", "frame or skeleton", "reason"))
    for problem in check.problems:
        writer.writerow((problem.kind.value, problem.subset, problem.path, problem.reason))
    return buffer.getvalue()


def sparkline(counts: Iterable[int]) -> str:
    """A histogram of one character a bin: blank is none, a full block the fullest bin."""
    counts = list(counts)
    most = max(counts, default=0)
    return "".join(
        BLOCKS[math.ceil(count * (len(BLOCKS) - 1) / most) if most else 0] for count in counts
    )


def choose_tracklets(dataset: VideoDataset, *, each: int, seed: int) -> list[tuple[str, Tracklet]]:
    """Some tracklets of each modality, of as many identities as can be, the same for the same seed; and their splits.

    Args:
        each: how many of each modality; all where there are fewer.
    """
    rng = np.random.default_rng(seed)
    chosen = []
    for modality in (Modality.VISIBLE, Modality.INFRARED):
        candidates = [
            (split, t)
            for split, part in splits(dataset).items()
            for t in part
            if t.modality == modality
        ]
        order = [candidates[position] for position in rng.permutation(len(candidates))]
        met: Counter[int] = Counter()
        turns = []  # how many tracklets of its identity come before it
        for _, tracklet in order:
            turns.append(met[tracklet.pid])
            met[tracklet.pid] += 1
        chosen += [order[position] for position in np.argsort(turns, kind="stable")[:each]]
    return chosen


def picture(
    dataset: VideoDataset,
    store: SkeletonStore | None,
    *,
    each: int = 3,
    frames: int = 8,
    seed: int = 0,
) -> np.ndarray:
    """Frames of some tracklets of both modalities, with their skeletons.

    Args:
        store: None: the frames alone.
        each: tracklets of each modality.
        frames: of each tracklet, from its first to its last; all where there are fewer.
        seed: another one, other tracklets.

    Returns:
        uint8 [H,W,3].
    """
    rows = []
    for split, tracklet in choose_tracklets(dataset, each=each, seed=seed):
        indices = np.unique(np.linspace(0, len(tracklet) - 1, frames).round().astype(int)).tolist()
        joints = None
        if store is not None:
            found, present, _ = read_one_by_one(store, [tracklet.key(index) for index in indices])
            joints = [
                skeleton if there else None for skeleton, there in zip(found, present, strict=True)
            ]
        caption = (
            f"{tracklet.modality.name.lower()}, identity {tracklet.pid}, camera {tracklet.camid}, "
            f"{len(tracklet)} frames ({split}: {os.path.dirname(tracklet.frames[0])})"
        )
        labels = [os.path.basename(tracklet.key(index)) for index in indices]
        rows.append(
            GridRow(
                caption, [_frame_or_none(tracklet.path(index)) for index in indices], joints, labels
            )
        )
    return frame_grid(rows, title=type(dataset).__name__)


def _frame_or_none(path: str) -> np.ndarray | None:
    try:
        return read_frame(path)
    except BrokenImage:
        return None


# --- tables ------------------------------------------------------------------------------------------------------


def _table(
    rows: Sequence[Sequence[str]], headers: Sequence[str], style: str, *, words_last: bool = False
) -> str:
    """A name, then numbers, which are set as they are written; the last column may be words."""
    align = ["left", *["right"] * (len(headers) - 1)]
    if words_last:
        align[-1] = "left"
    return tabulate(rows, headers=headers, tablefmt=style, colalign=align, disable_numparse=True)


def _count_rows(check: DatasetCheck) -> list[tuple]:
    rows = []
    for counts in check.counts:
        numbers = (counts.tracklets, counts.frames, counts.identities, counts.long, counts.cameras)
        verdict = "differs" if counts.differences else "ok" if counts.published else "-"
        rows.append((counts.name, *(f"{number:,}" for number in numbers), verdict))
    return rows


def _frames_line(check: DatasetCheck) -> str:
    kinds = Counter(problem.kind for problem in check.problems)
    missing, broken = kinds[Kind.MISSING_FRAME], kinds[Kind.BROKEN_FRAME]
    good = check.checked - missing - broken
    line = f"frames: {good:,} {'good' if check.decoded else 'there'}, {missing:,} missing, {broken:,} broken"
    if not check.sizes:
        return line
    if len(check.sizes) == 1:
        ((height, width),) = check.sizes
        return f"{line}; all {height} x {width} (height x width)"
    texts = []
    for side, name in enumerate(("height", "width")):
        values: Counter[int] = Counter()
        for size, count in check.sizes.items():
            values[size[side]] += count
        texts.append(f"{name} {min(values)} to {max(values)}, median {_median(values)}")
    return f"{line}; {'; '.join(texts)}; {len(check.sizes):,} different sizes"


def _median(counts: Counter[int]) -> int:
    """The middle value, of two the lower."""
    values = sorted(counts)
    below = np.cumsum([counts[value] for value in values])
    return values[int(np.searchsorted(below, below[-1] / 2))]


def _skeleton_rows(check: DatasetCheck) -> Iterable[tuple[tuple, SkeletonStats]]:
    for modality in Modality:
        whole = check.of_modality(modality)
        if whole.frames:
            yield _skeleton_row(modality.name.lower(), whole), whole
        for (own, camera), stats in check.skeletons.items():
            if own == modality:
                yield _skeleton_row(f"{modality.name.lower()} camera {camera}", stats), stats


def _skeleton_row(name: str, stats: SkeletonStats) -> tuple:
    return (
        name,
        f"{stats.frames:,}",
        _percent(stats.coverage),
        _percent(stats.outside_share),
        "-" if math.isnan(stats.mean_height) else f"{stats.mean_height:.2f}",
        "-" if math.isnan(stats.mean_score) else f"{stats.mean_score:.2f}",
    )


def _histogram(stats: SkeletonStats) -> str:
    """The scores from 0 to 1 as a sparkline, and how many are not there."""
    line = f"|{sparkline(stats.scores[1:-1])}|"
    odd = int(stats.scores[0] + stats.scores[-1])
    return f"{line} {100 * odd / stats.scores.sum():.1f} % beyond" if odd else line


def _percent(share: float) -> str:
    """Rounded down, so that 100 % means all."""
    return "-" if math.isnan(share) else f"{math.floor(share * 10000 + 1e-9) / 100:.2f} %"


def _score_table(rows: Iterable[tuple[tuple, SkeletonStats]]) -> str:
    edges = [f"{edge:.1f}" for edge in SCORE_EDGES]
    headers = (
        "",
        "below 0",
        *(f"{low}-{high}" for low, high in itertools.pairwise(edges)),
        "above 1",
    )
    table = [
        (row[0], *(f"{100 * count / max(1, stats.scores.sum()):.1f}" for count in stats.scores))
        for row, stats in rows
    ]
    return _table(table, headers, "pipe")
