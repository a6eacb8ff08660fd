"""Show what a dataset check has found: as text for the terminal, as an HTML page, and as CSV."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tabulate import tabulate

from fastreid_star.data.check import LONG, DatasetCheck, splits
from fastreid_star.data.check_frames import Kind, percentiles
from fastreid_star.data.datasets import VideoDataset
from fastreid_star.data.io import BrokenImage, read_frame
from fastreid_star.data.skeleton_stats import SkeletonStats
from fastreid_star.data.skeletons import SkeletonStore
from fastreid_star.files import prepare_output, write_output
from fastreid_star.report.draw import draw_skeleton, filmstrip
from fastreid_star.report.page import write_page
from fastreid_star.report.ranking import new_identities_first
from fastreid_star.structures import Modality, Tracklet

PAGE, PROBLEMS = "check.html", "problems.csv"
FRAMES = 8  # of a tracklet in the page
COUNTS = ("", "tracklets", "frames", "identities", f">= {LONG} frames", "cameras", "published")
SKELETONS = ("skeletons", "frames", "with", "joints outside", "height", "mean score")
CURES = {
    Kind.MISSING_FRAME: "unpack the images again",
    Kind.BROKEN_FRAME: "copy these files again; until then a neighbor replaces them",
    Kind.NO_SKELETON: "these frames keep the baseline's feature",
    Kind.UNUSED: "they are not used",
}
ALL_CURES = {
    Kind.MISSING_FRAME: "all are missing: is this the right folder, and are the images unpacked?",
    Kind.NO_SKELETON: "no frame has one: the store was made for other data",
}


class Finding(NamedTuple):
    """A line about what was found."""

    is_fault: bool  # the user should fix it
    text: str


def write_dataset_page(
    check: DatasetCheck,
    dataset: VideoDataset,
    store: SkeletonStore | None = None,
    *,
    output: str | Path,
    tracklets: int = 3,
    seed: int = 0,
) -> list[Path]:
    """Write check.html, with tables and some tracklets to look at, and problems.csv.

    Args:
        check: the result of :func:`fastreid_star.data.check.check_dataset`.
        dataset, store: what was checked.
        output: a folder, created if necessary.
        tracklets: how many tracklets of each modality the page shows.
        seed: chooses the tracklets.

    Returns:
        the files.

    Raises:
        UserError: the folder cannot be written.
    """
    folder = Path(output)
    prepare_output(folder / PAGE)
    chosen = choose_tracklets(dataset, each=tracklets, seed=seed)
    page = write_page(
        folder / PAGE,
        "dataset",
        check=check,
        findings=findings(check),
        counts=(COUNTS, _count_rows(check)),
        frames_line=_frames_line(check),
        sizes=[(f"{h} × {w}", f"{count:,}") for (h, w), count in check.sizes.most_common(10)],
        skeletons=(SKELETONS, _skeleton_rows(check)) if check.store else None,
        shown=[show_tracklet(split, tracklet, store) for split, tracklet in chosen],
        problems=PROBLEMS,
    )
    table = to_csv(check).encode(errors="surrogateescape")  # names of files need not be UTF-8
    write_output(folder / PROBLEMS, lambda file: file.write(table))
    return [page, folder / PROBLEMS]


def format_check(check: DatasetCheck) -> str:
    """The findings as text: tables, then faults and notes."""
    looked = f"{check.checked:,} of {check.frames:,} frames {_read(check)}"
    parts = [
        f"{check.name} in {check.folder}: {check.tracklets:,} tracklets, {looked}",
        _table(_count_rows(check), COUNTS),
        _frames_line(check),
        _table(_skeleton_rows(check), SKELETONS) if check.store else "",
        "\n".join(f"{'FAULT' if f.is_fault else 'note '}  {f.text}" for f in findings(check)),
        "" if check.store else "skeletons: not checked (add --skeletons STORE)",
        "all is well" if check.good else "there are problems: see FAULT above",
    ]
    return "\n\n".join(part for part in parts if part)


def findings(check: DatasetCheck) -> list[Finding]:
    """Counts that are not the published ones, kinds of problems, and odd modalities."""
    found = [Finding(False, check.about)] if check.about else []
    found += [Finding(True, text) for text in check.list_problems]
    found += [
        Finding(True, f"not as published: {counts.name}: {', '.join(counts.differences)}")
        for counts in check.counts
        if counts.differences
    ]
    for kind in Kind:
        problems = [problem for problem in check.problems if problem.kind is kind]
        if not problems:
            continue
        total = check.stored if kind is Kind.UNUSED else check.checked
        cure = ALL_CURES.get(kind) if len(problems) == total else None
        if kind is Kind.MISPLACED:
            causes = Counter(problem.reason.rpartition(": ")[2] for problem in problems)
            cure = ("mostly: " if len(causes) > 1 else "") + causes.most_common(1)[0][0]
        text = f"{kind.value}: {len(problems):,}, such as {problems[0].path}"
        found.append(Finding(kind.is_fault, f"{text}; {cure or CURES[kind]}"))
    for modality in check.disordered:
        text = (
            f"most {modality.name.lower()} skeletons do not have shoulders above hips above "
            "ankles: are the joints in COCO's order, and x before y?"
        )
        found.append(Finding(True, text))
    if check.counts16:
        low, *middle, high = percentiles(check.counts16, (0.01, 0.25, 0.5, 0.75, 0.99))
        quartiles = ", ".join(map(str, middle))
        text = (
            f"frames of 16 bits: 98 % of the counts are from {low} to {high}, quartiles "
            f"{quartiles}; each clip is scaled by its own percentiles, unless INPUT.RANGE_16BIT "
            f'"[{low}, {high}]" gives all clips the same scale'
        )
        found.append(Finding(False, text))
    return found


def to_csv(check: DatasetCheck) -> str:
    """One line for each problem: kind, subset, file or skeleton, reason."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(("problem", "subset", "frame or skeleton", "reason"))
    for problem in check.problems:
        writer.writerow((problem.kind.value, problem.subset, problem.path, problem.reason))
    return buffer.getvalue()


def choose_tracklets(dataset: VideoDataset, *, each: int, seed: int) -> list[tuple[str, Tracklet]]:
    """Up to `each` random tracklets of each modality, of as many identities as possible.

    Returns:
        (split, tracklet), visible ones first.
    """
    rng = np.random.default_rng(seed)
    chosen: list[tuple[str, Tracklet]] = []
    for modality in (Modality.VISIBLE, Modality.INFRARED):
        candidates = [
            (split, tracklet)
            for split, part in splits(dataset).items()
            for tracklet in part
            if tracklet.modality == modality
        ]
        rows = rng.permutation(len(candidates)).tolist()
        pids = [tracklet.pid for _, tracklet in candidates]
        chosen += [candidates[row] for row in new_identities_first(rows, pids)[:each]]
    return chosen


def show_tracklet(split: str, tracklet: Tracklet, store: SkeletonStore | None) -> dict:
    """Title, picture and names of frames of a tracklet; a frame that cannot be read is gray."""
    indices = np.unique(np.linspace(0, len(tracklet) - 1, FRAMES).round().astype(int)).tolist()
    frames, names = [], []
    for index in indices:
        name = tracklet.frames[index].rpartition("/")[2]
        try:
            frames.append(read_frame(tracklet.path(index)))
        except BrokenImage:
            frames.append(np.full((128, 64, 3), 128, np.uint8))
            name += " (cannot be read)"
        names.append(name)
    skeletons = None
    if store is not None:
        found, present = store.read([tracklet.key(index) for index in indices])
        skeletons = [
            draw_skeleton(joints if there else None, frame.shape)
            for joints, there, frame in zip(found, present, frames, strict=True)
        ]
    folder = tracklet.frames[0].rpartition("/")[0]
    who = f"{tracklet.modality.name.lower()}, identity {tracklet.pid}, camera {tracklet.camid}"
    title = f"{who}, {len(tracklet)} frames, {split}: {folder}"
    picture = filmstrip(frames, skeletons, height=160, alt=f"{len(frames)} frames of {title}")
    return {"title": title, "names": names, "picture": picture}


def _read(check: DatasetCheck) -> str:
    return "read" if check.decoded else "found, not read"


def _table(rows: Iterable[Sequence[str]], headers: Sequence[str]) -> str:
    align = ["left", *["right"] * (len(headers) - 1)]
    return tabulate(rows, headers=headers, colalign=align, tablefmt="plain", disable_numparse=True)


def _count_rows(check: DatasetCheck) -> list[tuple[str, ...]]:
    rows = []
    for counts in check.counts:
        numbers = (counts.tracklets, counts.frames, counts.identities, counts.long, counts.cameras)
        verdict = "differs" if counts.differences else "ok" if counts.published else "-"
        rows.append((counts.name, *(f"{number:,}" for number in numbers), verdict))
    return rows


def _frames_line(check: DatasetCheck) -> str:
    kinds = Counter(problem.kind for problem in check.problems)
    missing, broken = kinds[Kind.MISSING_FRAME], kinds[Kind.BROKEN_FRAME]
    good = f"{check.checked - missing - broken:,} {'good' if check.decoded else 'found'}"
    line = f"frames: {good}, {missing:,} missing, {broken:,} broken"
    if len(check.sizes) == 1:
        ((height, width),) = check.sizes
        line += f"; all {height} x {width} (height x width)"
    elif check.sizes:
        heights, widths = zip(*check.sizes, strict=True)
        line += f"; height {min(heights)} to {max(heights)}, width {min(widths)} to {max(widths)}"
        line += f"; {len(check.sizes):,} different sizes"
    return line


def _skeleton_rows(check: DatasetCheck) -> list[tuple[str, ...]]:
    """A row for each modality, followed by its cameras."""

    rows = []
    for modality in Modality:
        name = modality.name.lower()
        rows.append((name, check.of_modality(modality)))
        for (own, camera), stats in check.skeletons.items():
            if own == modality:
                rows.append((f"{name} camera {camera}", stats))
    return [_skeleton_row(name, stats) for name, stats in rows if stats.frames]


def _skeleton_row(name: str, stats: SkeletonStats) -> tuple[str, ...]:
    shares = [
        "-" if math.isnan(share) else f"{math.floor(share * 10000 + 1e-9) / 100:.2f} %"
        for share in (stats.coverage, stats.outside_share)  # rounded down: 100 % means all
    ]
    means = [
        "-" if math.isnan(mean) else f"{mean:.2f}" for mean in (stats.mean_height, stats.mean_score)
    ]
    return name, f"{stats.frames:,}", *shares, *means
