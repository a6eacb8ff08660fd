"""Extract the skeletons of many crops into a skeleton store.

Crops are decoded in worker processes, estimated in batches and kept part by part. The same command
resumes an interrupted extraction. The bytes of the store do not depend on interruptions or on the
number of processes, since each crop always shares its batch with the same other crops.
"""

from __future__ import annotations

import datetime
import json
import os
import pickle
import re
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from fastreid.utils import comm
from torch.utils.data import DataLoader

from fastreid_star.coco import NUM_JOINTS
from fastreid_star.data.io import PAUSES, progress_bar
from fastreid_star.data.skeletons import (
    INDEX_FILE,
    FlatStore,
    holds_something_else,
    write_skeleton_store,
)
from fastreid_star.data.workers import one_thread, ready_to_fork, why_lost
from fastreid_star.engine.device import choose_device
from fastreid_star.engine.launch import launch
from fastreid_star.errors import UserError
from fastreid_star.pose.estimator import PoseEstimator, build_estimator
from fastreid_star.pose.frames import Crops, Frames, frames_of_dataset, frames_of_folder
from fastreid_star.pose.parts import Part, Parts, differences

PART = 128  # crops per part, rounded up to whole batches
SUSPICIOUS = 100  # so many crops without a readable one: the disk is at fault, not the crops
_KEPT = "repeat the command; finished parts are kept"


def extract_skeletons(
    output: str | os.PathLike,
    *,
    backend: str = "mmpose",
    model: str = "",
    checkpoint: str = "",
    dataset: str = "",
    root: str = "",
    images: str = "",
    flip_test: bool = False,
    dtype: str | None = None,
    device: str = "auto",
    num_devices: int = 1,
    shard: tuple[int, int] = (1, 1),
    batch_size: int = 16,
    workers: int = 2,
    overwrite: bool = False,
) -> bool:
    """Extract the skeletons of a dataset or of a folder of crops.

    Args:
        output: the folder of the store.
        backend, model, checkpoint, flip_test, dtype: see :func:`build_estimator`.
        dataset, root: a registered dataset and its DATASETS.ROOT; or
        images: a folder of crops.
        device: as ``MODEL.DEVICE``.
        num_devices: processes, one per device.
        shard: (k, n): this machine makes the k-th of n shares, all machines write into one folder.
        batch_size: crops per batch.
        workers: decoding processes for each device.
        overwrite: replace an existing store when the new one is complete.

    Returns:
        whether the store is complete; False: other shards are missing.

    Raises:
        UserError: something is wrong with an argument, the crops, the estimator or the disk.
    """
    if bool(images) == bool(dataset):
        raise UserError("give the crops: either --dataset NAME or --images FOLDER")
    if not 1 <= shard[0] <= shard[1]:
        raise UserError(f"--shard {shard[0]}/{shard[1]}: shards count from 1/{shard[1]}")
    for name, value, least in (("batch-size", batch_size, 1), ("workers", workers, 0)):
        if value < least:
            raise UserError(f"--{name} {value}: it must be at least {least}")
    frames = frames_of_folder(images) if images else frames_of_dataset(dataset, root)

    def make_share() -> None:
        estimator = build_estimator(
            backend,
            model=model,
            checkpoint=checkpoint,
            device=choose_device(device, comm.get_local_rank()),
            flip_test=flip_test,
            dtype=dtype,
        )
        rank, processes = comm.get_rank(), comm.get_world_size()
        share = ((shard[0] - 1) * processes + rank, shard[1] * processes)
        extraction = Extraction(
            frames, output, estimator.describe(), batch_size=batch_size, overwrite=overwrite
        )
        extraction.run(estimator, share=share, workers=workers, progress=rank == 0)

    launch(make_share, num_devices, device=device)
    return finish(frames, output, overwrite=overwrite)


class Extraction:
    """The parts of a skeleton store, and what is missing of them.

    Args:
        frames: the crops.
        output: the folder of the store.
        describe: the result of :meth:`PoseEstimator.describe`.
        batch_size: crops per batch.
        part: crops per part, rounded up to whole batches.
        overwrite: replace an existing store.

    Attributes:
        complete: the store exists, made in this way, and is not to be replaced.

    Raises:
        UserError: `output` or `output`.parts contains something else.
    """

    def __init__(
        self,
        frames: Frames,
        output: str | os.PathLike,
        describe: dict[str, Any],
        *,
        batch_size: int = 16,
        part: int = PART,
        overwrite: bool = False,
    ):
        self.frames, self.batch_size = frames, batch_size
        size = -(-part // batch_size) * batch_size
        plan = {
            "frames": len(frames),
            "keys_sha256": frames.digest(),
            "batch_size": batch_size,
            "size": size,
            **describe,
        }
        plan = json.loads(json.dumps(plan))  # as it is read from a file
        self.parts = Parts(output, len(frames), size)
        exists = os.path.exists(output)
        if exists and (holds_something_else(output) or not Path(output, INDEX_FILE).exists()):
            raise UserError(f"{output} is not only a skeleton store: choose another --output")
        self.complete = exists and not overwrite
        if self.complete and not _was_made_by(plan, output):
            differ = differences(FlatStore(os.fspath(output)).meta.get("plan") or {}, plan)
            raise UserError(
                f"{output} contains other skeletons ({differ}): choose another --output, or add "
                "--overwrite to replace them"
            )
        if not self.complete:
            self.parts.begin(plan)

    def run(
        self,
        estimator: PoseEstimator,
        *,
        share: tuple[int, int] = (0, 1),
        workers: int = 2,
        progress: bool = True,
    ) -> None:
        """Make the missing parts of a share.

        Args:
            estimator: it describes itself as the plan says.
            share: (first, step): parts first, first + step, ...
            workers: decoding processes; 0: decode in this one.
            progress: show a bar of this share.

        Raises:
            UserError: crops cannot be read, parts cannot be written, or a worker was killed.
        """
        if self.complete:
            return
        mine = range(share[0], len(self.parts), share[1])
        to_do = sorted(set(mine) - self.parts.done())
        batches: Any = [
            rows[start : start + self.batch_size]
            for rows in map(self.parts.rows, to_do)
            for start in range(0, len(rows), self.batch_size)
        ]
        ready_to_fork()
        loader = DataLoader(
            Crops(self.frames, estimator.prepare),
            batch_sampler=batches,
            num_workers=min(workers, len(batches)),
            # as bytes: tensors would take an open file each
            collate_fn=pickle.dumps,
            worker_init_fn=one_thread,
        )
        total = sum(len(self.parts.rows(number)) for number in mine)
        done = total - sum(map(len, batches))
        bar = progress_bar("skeletons", total, shown=progress, done=done, unit=" crops")
        try:
            with bar:
                crops = map(pickle.loads, loader)
                for number in to_do:
                    self.parts.write(number, self._estimate(estimator, number, crops, bar))
        except (RuntimeError, ConnectionError, EOFError) as error:
            reason = why_lost(error)
            if reason is None:
                raise
            raise UserError(f"{reason.partition(':')[0]}: lower --workers; {_KEPT}") from error

    def _estimate(self, estimator: PoseEstimator, number: int, batches: Iterator, bar: Any) -> Part:
        rows, crops = self.parts.rows(number), []
        joints = np.full((len(rows), NUM_JOINTS, 3), np.nan, np.float32)
        for start in range(0, len(rows), self.batch_size):
            batch = next(batches)
            crops += batch
            if lost := next((crop for crop in batch if crop.lost), None):
                raise UserError(
                    f"{lost.problem}, after {sum(PAUSES):g} s of trials: check the disk and the "
                    f"rights of the file, and {_KEPT}"
                )
            good = [i for i, crop in enumerate(batch) if not crop.problem]
            if good:
                inputs = [batch[i].prepared for i in good]
                joints[[start + i for i in good]] = estimator.estimate(inputs)
            bar.update(len(batch))
        read = [row for row, crop in zip(rows, crops, strict=True) if not crop.problem]
        paths = [self.frames.root, *map(self.frames.path, read[-1:])]
        if len(read) < len(rows) and not all(map(os.path.exists, paths)):
            raise UserError(f"{paths[-1]} has disappeared: restore it, and {_KEPT}")
        first = self.frames.path(rows[0])
        if len(rows) >= SUSPICIOUS and not read:
            raise UserError(
                f"none of {len(rows)} crops from {first} on can be read ({crops[0].problem}): "
                f"check the folder and its disk, and {_KEPT}"
            )
        finite = np.isfinite(joints).all(axis=(1, 2))
        if len(rows) >= SUSPICIOUS and not finite.any():
            raise UserError(
                f"the network gave no finite joints for {len(rows)} crops from {first} on: check "
                "its checkpoint, and run without --dtype"
            )
        joints[~finite] = np.nan
        problems = [crop.problem for crop in crops]
        for place in np.flatnonzero(~finite):
            problems[place] = problems[place] or "the joints of the network are not finite"
        return Part(joints, np.array([crop.size for crop in crops]), problems)


def finish(frames: Frames, output: str | os.PathLike, *, overwrite: bool = False) -> bool:
    """Write the store if all its parts exist, and delete them.

    Returns:
        whether the store is complete; False: parts are missing.

    Raises:
        UserError: a part is damaged, or the store cannot be written; the parts are kept.
    """
    output = os.path.realpath(output)  # a link stays a link
    parts = Parts(output, len(frames), 1)
    try:
        plan = parts.plan()
        parts.size = plan["size"]
        if overwrite or not os.path.exists(output):
            if len(parts.done()) < len(parts):
                return False
            _write_store(frames, parts, plan, output)
        elif not _was_made_by(plan, output):
            return True  # these are parts of a store that is going to replace the complete one
    except UserError:
        # without parts the store was complete before, or another process has just completed it
        if parts.exist() or not os.path.exists(output):
            raise
    for beside in Path(output).parent.iterdir():  # left by a process that was killed in here
        if re.fullmatch(re.escape(os.path.basename(output)) + r"\.(tmp|old)\d+", beside.name):
            shutil.rmtree(beside, ignore_errors=True)
    parts.remove()
    return True


def _was_made_by(plan: dict, output: str | os.PathLike) -> bool:
    return (
        Path(output, INDEX_FILE).exists() and FlatStore(os.fspath(output)).meta.get("plan") == plan
    )


def _write_store(frames: Frames, parts: Parts, plan: dict, output: str) -> None:
    joints = np.empty((len(frames), NUM_JOINTS, 3), np.float32)
    sizes: Counter[tuple[int, int]] = Counter()
    missing = {}
    for number in range(len(parts)):
        part, rows = parts.read(number), parts.rows(number)
        joints[rows.start : rows.stop] = part.joints
        sizes.update((int(width), int(height)) for width, height in part.sizes if width)
        texts = zip(rows, part.problems, strict=True)
        missing.update({frames.keys[row]: text for row, text in texts if text})
    try:
        write_skeleton_store(output, frames.keys, joints, _manifest(plan, sizes, missing))
    except OSError as error:
        raise UserError(
            f"{output} cannot be written ({error.strerror}): solve this and {_KEPT}"
        ) from error


def _manifest(plan: dict, sizes: Counter, missing: dict[str, str]) -> dict:
    epoch = float(os.environ.get("SOURCE_DATE_EPOCH") or time.time())  # of reproducible files
    by_count = sorted(sizes.items(), key=lambda x: (-x[1], x[0]))
    frames = plan["frames"]
    return {
        "made_by": "fastreid_star extract_skeletons",
        "date": datetime.datetime.fromtimestamp(epoch, datetime.timezone.utc).date().isoformat(),
        "plan": plan,
        "counts": {
            **{"frames": frames, "with_skeleton": frames - len(missing)},
            "without": len(missing),
        },
        "image_sizes": {
            "distinct": len(sizes),
            "commonest": [[*size, count] for size, count in by_count[:10]],
            "smallest": [min(axis) for axis in zip(*sizes, strict=True)],
            "largest": [max(axis) for axis in zip(*sizes, strict=True)],
        },
        "missing": missing,
    }
