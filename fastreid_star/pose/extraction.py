"""Extract the skeletons of many crops into a skeleton store.

Crops are decoded in worker processes, estimated in batches and kept part by part. The same command
resumes an interrupted extraction. The bytes of the store do not depend on interruptions or on the
number of processes, since each crop always shares its batch with the same other crops.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import pickle
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from fastreid.utils import comm
from torch.utils.data import DataLoader

from fastreid_star.coco import NUM_JOINTS
from fastreid_star.data.io import progress_bar
from fastreid_star.data.skeletons import (
    INDEX_FILE,
    FlatStore,
    holds_something_else,
    write_skeleton_store,
)
from fastreid_star.data.workers import one_line, one_thread, ready_to_fork, why_lost
from fastreid_star.engine.device import choose_device
from fastreid_star.engine.launch import launch
from fastreid_star.errors import UserError
from fastreid_star.pose.estimator import PoseEstimator, build_estimator
from fastreid_star.pose.frames import (
    KEPT,
    Crop,
    Crops,
    Frames,
    frames_of_dataset,
    frames_of_folder,
)
from fastreid_star.pose.parts import Parts, differences, parts_folder, read_plan
from fastreid_star.pose.sides import RULE, settle_sides

PART = 128  # crops per part, rounded up to whole batches
SUSPICIOUS = 100  # so many crops without a readable one: the disk is at fault, not the crops


def extract_skeletons(
    output: str | os.PathLike,
    *,
    dataset: str = "",
    root: str = "",
    images: str = "",
    device: str = "auto",
    num_devices: int = 1,
    shard: tuple[int, int] = (1, 1),
    batch_size: int = 16,
    workers: int = 2,
    overwrite: bool = False,
    keep_sides: bool = False,
    **network: Any,
) -> bool:
    """Extract the skeletons of a dataset or of a folder of crops.

    Args:
        output: the folder of the store.
        dataset, root: a registered dataset and its DATASETS.ROOT; or
        images: a folder of crops.
        device: as ``MODEL.DEVICE``.
        num_devices: processes, one per device.
        shard: (k, n): this machine makes the k-th of n shares, all machines write into one folder.
        batch_size: crops per batch.
        workers: decoding processes for each device.
        overwrite: replace an existing store when the new one is complete.
        keep_sides: leave left and right as the network gives them, see
            :mod:`fastreid_star.pose.sides`.
        network: arguments of :func:`build_estimator`.

    Returns:
        whether the store is complete; False: other shards are missing.

    Raises:
        UserError: something is wrong with an argument, the crops, the estimator or the disk.
    """
    frames = frames_of_folder(images) if images else frames_of_dataset(dataset, root)

    def make_share() -> None:
        estimator = build_estimator(device=choose_device(device, comm.get_local_rank()), **network)
        rank, processes = comm.get_rank(), comm.get_world_size()
        extract_share(
            frames,
            output,
            estimator,
            share=((shard[0] - 1) * processes + rank, shard[1] * processes),
            batch_size=batch_size,
            workers=workers,
            overwrite=overwrite,
            keep_sides=keep_sides,
            progress=rank == 0,
        )

    launch(make_share, num_devices, device=device)
    return finish(frames, output, overwrite=overwrite)


def extract_share(
    frames: Frames,
    output: str | os.PathLike,
    estimator: PoseEstimator,
    *,
    share: tuple[int, int] = (0, 1),
    batch_size: int = 16,
    part: int = PART,
    workers: int = 2,
    overwrite: bool = False,
    keep_sides: bool = False,
    progress: bool = True,
) -> None:
    """Make the missing parts of a share; nothing if the store is complete.

    Args:
        frames, output, estimator: crops, folder of the store, network.
        share: (first, step): parts first, first + step, ...
        batch_size: crops per batch.
        part: crops per part, rounded up to whole batches.
        workers: decoding processes; 0: decode in this one.
        overwrite: replace an existing store.
        keep_sides: see :func:`extract_skeletons`.
        progress: show a bar of this share.

    Raises:
        UserError: `output` or `output`.parts contains something else, crops cannot be read, parts
            cannot be written, or a worker was killed.
    """
    plan = make_plan(frames, estimator, batch_size, part, keep_sides)
    if is_complete(output, plan, overwrite):
        return
    parts = Parts(output, plan)
    parts.begin()
    mine = range(share[0], len(parts), share[1])
    to_do = sorted(set(mine) - parts.done())
    batches: Any = [
        rows[start : start + batch_size]
        for rows in map(parts.rows, to_do)
        for start in range(0, len(rows), batch_size)
    ]
    ready_to_fork()
    loader = DataLoader(
        Crops(frames, estimator.prepare),
        batch_sampler=batches,
        num_workers=min(workers, len(batches)),
        # as bytes: tensors would take an open file each
        collate_fn=pickle.dumps,
        worker_init_fn=one_thread,
    )
    total = sum(len(parts.rows(number)) for number in mine)
    done = total - sum(map(len, batches))
    bar = progress_bar("skeletons", total, shown=progress, done=done, unit=" crops")
    try:
        with bar:
            crops = map(pickle.loads, loader)
            for number in to_do:
                rows = parts.rows(number)
                parts.write(number, **_estimate(frames, rows, crops, estimator))
                bar.update(len(rows))
    except Exception as error:
        if isinstance(error, UserError):
            raise (one_line(error) or error) from error
        if reason := why_lost(error):
            raise UserError(f"{reason.partition(':')[0]}: lower --workers; {KEPT}") from error
        raise


def make_plan(
    frames: Frames, estimator: PoseEstimator, batch_size: int, part: int, keep_sides: bool = False
) -> dict[str, Any]:
    """Everything that the bytes of the store depend on, as JSON values."""
    plan = {
        "frames": len(frames),
        "keys_sha256": frames.digest(),
        "batch_size": batch_size,
        "size": -(-part // batch_size) * batch_size,
        "sides": "of the network" if keep_sides else RULE,
        **estimator.describe(),
    }
    return json.loads(json.dumps(plan))  # as it is read from a file


def is_complete(output: str | os.PathLike, plan: dict[str, Any], overwrite: bool) -> bool:
    """Whether the store of a plan exists and is not to be replaced.

    Raises:
        UserError: `output` is another store, or contains other files.
    """
    if not os.path.exists(output):
        return False
    if holds_something_else(output) or not Path(output, INDEX_FILE).exists():
        raise UserError(f"{output} is not only a skeleton store: choose another --output")
    if overwrite:
        return False
    if differ := differences(_plan_of(output), plan):
        raise UserError(
            f"{output} contains other skeletons ({differ}): choose another --output, or add "
            "--overwrite to replace them"
        )
    return True


def _estimate(
    frames: Frames, rows: range, batches: Iterator[list[Crop]], estimator: PoseEstimator
) -> dict[str, np.ndarray]:
    """The arrays of the part with the crops `rows`, read from as many batches as it takes."""
    joints = np.full((len(rows), NUM_JOINTS, 3), np.nan, np.float32)
    crops: list[Crop] = []
    while len(crops) < len(rows):
        batch = next(batches)
        good = [i for i, crop in enumerate(batch) if not crop.problem]
        if good:
            places = [len(crops) + i for i in good]
            joints[places] = estimator.estimate([batch[i].prepared for i in good])
        crops += batch
    problems = [crop.problem for crop in crops]
    _require_readable(frames, rows, problems)
    finite = np.isfinite(joints).all(axis=(1, 2))
    if len(rows) >= SUSPICIOUS and not finite.any():
        raise UserError(
            f"the network gave no finite joints for {len(rows)} crops from "
            f"{frames.path(rows[0])} on: check its checkpoint, and run without --dtype"
        )
    joints[~finite] = np.nan
    for place in np.flatnonzero(~finite):
        problems[place] = problems[place] or "the joints of the network are not finite"
    return {"joints": joints, "problems": np.array(problems, np.str_)}


def _require_readable(frames: Frames, rows: range, problems: list[str]) -> None:
    """Raise a UserError if crops are missing because their folder or their disk is."""
    read = [row for row, problem in zip(rows, problems, strict=True) if not problem]
    if len(read) == len(rows):
        return
    for path in (frames.root, *map(frames.path, read[-1:])):
        if not os.path.exists(path):
            raise UserError(f"{path} has disappeared: restore it, and {KEPT}")
    if len(rows) >= SUSPICIOUS and not read:
        raise UserError(
            f"none of {len(rows)} crops from {frames.path(rows[0])} on can be read "
            f"({problems[0]}): check the folder and its disk, and {KEPT}"
        )


def finish(frames: Frames, output: str | os.PathLike, *, overwrite: bool = False) -> bool:
    """Write the store if all its parts exist, and delete them.

    Returns:
        whether the store is complete; False: parts are missing.

    Raises:
        OSError: the store cannot be written; the parts are kept.
    """
    output = os.path.realpath(output)  # a link stays a link
    folder = parts_folder(output)
    plan = read_plan(folder)
    if plan is None:  # the store was complete before, or another process has just completed it
        with contextlib.suppress(OSError):
            folder.rmdir()  # if a kill has left it empty
        return True
    parts = Parts(output, plan)
    if overwrite or not os.path.exists(output):
        if len(parts.done()) < len(parts):
            return False
        try:
            _write_store(frames, parts, output)
        except FileNotFoundError:
            if folder.exists() or not os.path.exists(output):
                raise
    elif _plan_of(output) != plan:
        return True  # these are parts of a store that is going to replace the complete one
    parts.remove()
    return True


def _plan_of(output: str | os.PathLike) -> dict[str, Any]:
    return FlatStore(os.fspath(output)).meta.get("plan") or {}


def _write_store(frames: Frames, parts: Parts, output: str) -> None:
    joints = np.empty((len(frames), NUM_JOINTS, 3), np.float32)
    missing = {}
    for number in range(len(parts)):
        part, rows = parts.read(number), parts.rows(number)
        joints[rows.start : rows.stop] = part["joints"]
        problems = zip(rows, part["problems"].tolist(), strict=True)
        missing.update({frames.keys[row]: problem for row, problem in problems if problem})
    confused = 0
    if parts.plan["sides"] == RULE:
        for tracklet in frames.tracklets():
            joints[tracklet], count = settle_sides(joints[tracklet])
            confused += count
    epoch = float(os.environ.get("SOURCE_DATE_EPOCH") or time.time())  # of reproducible files
    counts = {"frames": len(frames), "with_skeleton": len(frames) - len(missing)}
    manifest = {
        "made_by": "fastreid_star extract_skeletons",
        "date": datetime.datetime.fromtimestamp(epoch, datetime.timezone.utc).date().isoformat(),
        "plan": parts.plan,
        "counts": {**counts, "without": len(missing)},
        "confused_sides": confused,
        "missing": missing,
    }
    write_skeleton_store(output, frames.keys, joints, manifest)
