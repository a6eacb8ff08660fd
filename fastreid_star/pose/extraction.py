"""Skeletons for half a million crops: decoded in workers, estimated in batches, kept part by part.

Killed at any moment and started again with the same command, it goes on where it was; what comes out is the same, byte
for byte, as crops share a batch with the same others every time.
"""

from __future__ import annotations

import contextlib
import datetime
import io
import json
import os
import pickle
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from fastreid_star.coco import NUM_JOINTS
from fastreid_star.data.io import PAUSES, BrokenImage, LostImage, progress_bar, read_frame
from fastreid_star.data.skeletons import (
    INDEX_FILE,
    FlatStore,
    holds_something_else,
    write_skeleton_store,
)
from fastreid_star.data.workers import one_thread, ready_to_fork
from fastreid_star.errors import UserError
from fastreid_star.pose.estimator import PoseEstimator
from fastreid_star.pose.frames import Frames
from fastreid_star.pose.parts import PLAN_FILE, Part, Parts, differences

BATCHES_A_PART = 16
# So many crops of one part, and not one that can be read: it is the disk, not the crops.
SUSPICIOUS = 100


@dataclass(frozen=True)
class Share:
    """Which parts a process makes: ``number``, ``number + of``, ``number + 2 of``, ..."""

    number: int = 0
    of: int = 1


WHOLE = Share()


def parts_folder(output: str | os.PathLike) -> str:
    """Where the parts of a store are until it is whole; gone when it is."""
    return f"{os.path.realpath(output)}.parts"


def which_store(output: str | os.PathLike) -> str:
    """Something that differs between a store and the one that replaces it; empty where there is none."""
    with contextlib.suppress(OSError):
        found = os.stat(os.path.join(output, INDEX_FILE))
        return f"{found.st_ino} {found.st_mtime_ns}"
    return ""


class Extraction:
    """From crops to a skeleton store.

    Args:
        frames: the crops.
        output: folder of the store to make.
        describe: what :meth:`PoseEstimator.describe` says of the estimator.
        batch_size: crops estimated at a time.
        batches_a_part: parts are written so often. None: as often as it suits the batch size.
        overwrite: replace a store that is there, once the new one is whole.
        replaces: of several processes with `overwrite`, what :func:`which_store` said before the first of them began:
            a later store is theirs, and not replaced again. None: say it now.

    Raises:
        UserError: `output` holds other skeletons or something else, or `output`.parts the beginning of others.
    """

    def __init__(
        self,
        frames: Frames,
        output: str | os.PathLike,
        describe: dict[str, Any],
        *,
        batch_size: int = 16,
        batches_a_part: int | None = None,
        overwrite: bool = False,
        replaces: str | None = None,
    ):
        self.frames = frames
        self.output = os.path.realpath(output)  # a link stays one
        self.batch_size = batch_size
        if batches_a_part is None:
            batches_a_part = max(BATCHES_A_PART, -(-SUSPICIOUS // batch_size))
        self.parts = Parts(parts_folder(output), len(frames), batch_size * batches_a_part)
        plan = {
            "frames": len(frames),
            "keys_sha256": frames.digest,
            "batch_size": batch_size,
            **describe,
        }
        self.plan = json.loads(json.dumps(plan))  # as it comes back from a file
        if not overwrite or self._was_made_of_these_parts():
            replaces = ""
        self._replaces = which_store(self.output) if replaces is None else replaces
        self._readable = ""  # the last crop that could be read
        there = os.path.exists(self.output)
        if there and (
            not which_store(self.output) or (overwrite and holds_something_else(self.output))
        ):
            raise UserError(
                f"{self.output} is there and no skeleton store alone: choose another --output"
            )
        self.complete = there and self._is_made()
        if there and not self.complete and not overwrite:
            made_by = FlatStore(self.output).meta.get("plan")
            differ = (
                differences(made_by, self.plan)
                if isinstance(made_by, dict)
                else "made in another way"
            )
            raise UserError(
                f"{self.output} holds other skeletons ({differ}): choose another --output, or add --overwrite to "
                "replace them"
            )
        if not self.complete:
            self.parts.begin(self.plan)
        elif self.parts.is_of(self.plan):
            self._clean_up()  # a process was killed between its last steps

    def _is_made(self) -> bool:
        """Whether the store is there, made by this very plan, and is not the one to be replaced."""
        found = which_store(self.output)
        return (
            found not in ("", self._replaces)
            and FlatStore(self.output).meta.get("plan") == self.plan
        )

    def _was_made_of_these_parts(self) -> bool:
        """Whether a process was killed after it had put the store in place, and before the parts were gone."""
        plan, store = self.parts.folder / PLAN_FILE, Path(self.output) / INDEX_FILE
        if not plan.exists():  # it goes last, before the empty folder
            return self.parts.folder.exists()
        return store.exists() and store.stat().st_mtime_ns > plan.stat().st_mtime_ns

    def run(
        self,
        estimator: PoseEstimator,
        *,
        share: Share = WHOLE,
        workers: int = 2,
        progress: bool = True,
    ) -> None:
        """Estimate what is still to do of a share.

        Args:
            estimator: one that describes itself as the plan says.
            workers: processes that decode; 0: this one does.
            progress: show a bar of the whole work, other processes' parts included.

        Raises:
            UserError: the crops' folder is gone, the disk does not give one of them, nothing can be written, or a
                worker was killed.
        """
        if self.complete:
            return
        # whose a part is does not depend on what is done: processes that start at other times agree on it
        to_do = sorted({*range(share.number, len(self.parts), share.of)} - self.parts.done())
        batches: Any = [  # ranges are lists of rows enough
            rows[start : start + self.batch_size]
            for rows in map(self.parts.rows, to_do)
            for start in range(0, len(rows), self.batch_size)
        ]
        ready_to_fork()
        source = _Crops(self.frames, estimator.prepare)
        loader = DataLoader(
            source,
            batch_sampler=batches,
            num_workers=min(workers, len(batches)),
            collate_fn=_packed,
            worker_init_fn=one_thread,
        )
        with _Bar(self.parts, progress) as bar, _worker_deaths_explained():
            crops = map(pickle.loads, loader)
            for number in to_do:
                part = self._estimate(estimator, source, number, crops, bar)
                try:
                    self.parts.write(number, part)
                except UserError:
                    if not self._is_made():
                        raise
                    return  # the same command was given twice, and the other process has made the store
                bar.part_done(number)

    def _estimate(
        self, estimator: PoseEstimator, source: _Crops, number: int, crops: Iterator, bar: _Bar
    ) -> Part:
        """One part, from as many batches as it has."""
        rows = self.parts.rows(number)
        joints = np.full((len(rows), NUM_JOINTS, 3), np.nan, np.float32)
        sizes, problems = np.zeros((len(rows), 2), np.int32), [""] * len(rows)
        for start in range(0, len(rows), self.batch_size):
            batch = [
                self._again(source, rows[start + i]) if crop.lost else crop
                for i, crop in enumerate(next(crops))
            ]
            for place, crop in enumerate(batch, start):
                sizes[place], problems[place] = crop.size, crop.problem
            good = [place for place, crop in enumerate(batch, start) if not crop.problem]
            if good:
                self._readable = self.frames.path(rows[good[-1]])
                joints[good] = estimator.estimate([batch[place - start].prepared for place in good])
            bar.crops_done(len(batch))
        if any(problems):
            self._refuse_a_lost_folder(rows, problems)
        lost = ~np.isfinite(joints).all(axis=(1, 2))
        if len(rows) >= SUSPICIOUS and lost.all():
            raise UserError(
                f"the network gave no finite joints for any of {len(rows)} crops from "
                f"{self.frames.path(rows[0])} on: check its checkpoint, and go without --dtype"
            )
        for place in np.flatnonzero(lost).tolist():
            joints[place] = np.nan
            problems[place] = problems[place] or "the network gave joints that are not finite"
        return Part(joints, sizes, problems)

    def _again(self, source: _Crops, row: int) -> _Crop:
        """A crop that the disk did not give at first: that is no fault of the crop's, and must not end in the store."""
        for pause in PAUSES:
            time.sleep(pause)
            crop = source[row]
            if not crop.lost:
                return crop
        raise UserError(
            f"{self.frames.path(row)} cannot be read ({crop.problem.rpartition(': ')[2]}), and was tried for "
            f"{sum(PAUSES):g} s: mend the disk or the file's rights, and give the same command again; what is done is "
            "kept"
        )

    def _refuse_a_lost_folder(self, rows: range, problems: Sequence[str]) -> None:
        """A broken file is one thing, a disk that went away another: that must not end as a store without skeletons."""
        for path in filter(
            None, (self.frames.root, self._readable)
        ):  # of an empty mount point the root is there
            if not os.path.exists(path):
                raise UserError(
                    f"{path} is gone: bring it back and give the same command again; what is done is kept"
                )
        if len(rows) >= SUSPICIOUS and all(problems):
            raise UserError(
                f"none of {len(rows)} crops from {self.frames.path(rows[0])} on can be read ({problems[0]}): "
                "check the folder and its disk, and give the same command again; what is done is kept"
            )

    def finish(self) -> bool:
        """Make the store of the parts, if all of them are there, and remove them.

        Returns:
            whether the store is there now. False: parts are missing, which other machines are to make.

        Raises:
            UserError: the store cannot be written; the parts stay.
        """
        if self.complete:
            return True
        with self.parts.alone() as there:
            if there:
                if len(self.parts.done()) < len(self.parts):
                    return self._is_made()
                self._write_store()
                self.parts.clear()  # whoever waits finds nothing to do
        # now that it is open no longer: NFS keeps an open file, and its folder, under another name
        self.complete = there or self._is_made()
        if self.complete:
            self._clean_up()
        return self.complete

    def _clean_up(self) -> None:
        """Remove what processes have left that were killed while they wrote the store, and the parts."""
        for beside in Path(self.output).parent.iterdir():
            if re.fullmatch(
                re.escape(os.path.basename(self.output)) + r"\.(tmp|old)\d+", beside.name
            ):
                shutil.rmtree(beside, ignore_errors=True)
        self.parts.remove()

    def _write_store(self) -> None:
        joints = np.empty((len(self.frames), NUM_JOINTS, 3), np.float32)
        sizes: Counter[tuple[int, int]] = Counter()
        missing = {}
        for number in range(len(self.parts)):
            part, rows = self.parts.read(number), self.parts.rows(number)
            if part is None:
                raise UserError(
                    f"part {number} in {self.parts.folder} was damaged and is removed: give the same command again, "
                    "with --shard every one of them"
                )
            joints[rows.start : rows.stop] = part.joints
            sizes.update((int(width), int(height)) for width, height in part.sizes if width)
            missing.update(
                {
                    self.frames.keys[row]: text
                    for row, text in zip(rows, part.problems, strict=True)
                    if text
                }
            )
        try:
            write_skeleton_store(
                self.output, self.frames.keys, joints, self._manifest(sizes, missing)
            )
        except OSError as error:
            raise UserError(
                f"{self.output} cannot be written ({error.strerror}): mend that and give the same command again; "
                "what is done is kept"
            ) from error

    def _manifest(self, sizes: Counter, missing: dict[str, str]) -> dict:
        return {
            "made_by": "fastreid_star extract_skeletons",
            "date": _today(),
            "plan": self.plan,
            "counts": {
                "frames": len(self.frames),
                "with_skeleton": len(self.frames) - len(missing),
                "without": len(missing),
            },
            "image_sizes": {
                "distinct": len(sizes),
                "commonest": [
                    [*size, count]
                    for size, count in sorted(sizes.items(), key=lambda x: (-x[1], x[0]))[:10]
                ],
                "smallest": [min(axis) for axis in zip(*sizes, strict=True)] if sizes else [],
                "largest": [max(axis) for axis in zip(*sizes, strict=True)] if sizes else [],
            },
            "missing": missing,
        }


@dataclass(frozen=True)
class _Crop:
    """What a worker hands over: a crop prepared for the network, or why there is none.

    Lost is one that the disk did not give: there may be nothing wrong with it.
    """

    prepared: Any
    size: tuple[int, int]
    problem: str
    lost: bool = False


class _Crops(Dataset):
    def __init__(self, frames: Frames, prepare: Callable[[np.ndarray], Any]):
        self.frames = frames
        self.prepare = prepare

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> _Crop:
        path = self.frames.path(index)
        try:
            image = read_frame(path)
        except BrokenImage as error:
            # the same text on every machine: without the folder that the crops happen to lie in
            name = self.frames.paths[index]
            return _Crop(None, (0, 0), str(error).replace(path, name), isinstance(error, LostImage))
        height, width = image.shape[:2]
        return _Crop(self.prepare(image), (width, height), "")


class _Pickler(pickle.Pickler):
    def reducer_override(self, value: Any) -> Any:
        # ten times faster than torch's own way
        return (
            (torch.from_numpy, (value.numpy(),)) if type(value) is torch.Tensor else NotImplemented
        )


def _packed(crops: list[_Crop]) -> bytes:
    """As a loader hands tensors over, each takes an open file of its own, and large batches more than there may be."""
    buffer = io.BytesIO()
    _Pickler(buffer, pickle.HIGHEST_PROTOCOL).dump(crops)
    return buffer.getvalue()


class _Bar:
    """A bar over all crops, with the rate of this process and what others have finished."""

    def __init__(self, parts: Parts, show: bool):
        self.parts = parts
        self.others = parts.done()
        before = sum(len(parts.rows(number)) for number in self.others)
        self.bar = progress_bar("skeletons", parts.frames, shown=show, done=before, unit=" crops")

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def crops_done(self, count: int) -> None:
        self.bar.update(count)

    def part_done(self, number: int) -> None:
        """Count this part, which is counted already, and those that others have finished in the meantime."""
        self.others.add(number)
        if self.bar.disable:
            return
        with contextlib.suppress(
            UserError
        ):  # another process saw this last part, and made the store already
            new = self.parts.done() - self.others
            self.others |= new
            self.bar.update(sum(len(self.parts.rows(other)) for other in new))


@contextlib.contextmanager
def _worker_deaths_explained() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if not re.match(
            r"DataLoader worker .*(exited|killed)", str(error)
        ):  # it raised something, which is a fault
            raise
        raise UserError(
            f"a decoding process was ended from outside ({error}), perhaps for want of memory: give the same command "
            "again, with fewer --workers; what is done is kept"
        ) from error


def _today() -> str:
    """The date in UTC, or that of $SOURCE_DATE_EPOCH, as for all reproducible files."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    now = datetime.datetime.now(datetime.timezone.utc)
    if epoch and epoch.isdecimal():
        now = datetime.datetime.fromtimestamp(int(epoch), datetime.timezone.utc)
    return now.date().isoformat()
