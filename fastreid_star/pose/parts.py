"""Results of an unfinished extraction, one file per part, so that it can be resumed.

``OUT.parts/`` stands beside the store ``OUT`` until the store is complete::

    plan.json     what is extracted: the frames (their digest), the estimator, crops per part
    000012.npz    crops 12 * size to 13 * size: joints [n, V, 3], NaN where they are missing;
                  sizes [n, 2], width and height, 0 where the image is broken;
                  problems [n], why joints are missing, else empty

Processes and machines that share the folder share the work.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastreid_star.coco import NUM_JOINTS
from fastreid_star.errors import UserError
from fastreid_star.files import write_whole

PLAN_FILE = "plan.json"


@dataclass(frozen=True)
class Part:
    """The results of n consecutive crops, see the module."""

    joints: np.ndarray
    sizes: np.ndarray
    problems: list[str]


class Parts:
    """The folder of the parts of one store.

    Args:
        output: the folder of the store.
        frames: the number of crops.
        size: crops per part.
    """

    def __init__(self, output: str | os.PathLike, frames: int, size: int):
        self.folder = Path(f"{os.path.realpath(output)}.parts")
        self.frames, self.size = frames, size

    def __len__(self) -> int:
        return -(-self.frames // self.size)

    def rows(self, number: int) -> range:
        """The crops of a part."""
        return range(number * self.size, min(self.frames, (number + 1) * self.size))

    def begin(self, plan: Mapping) -> None:
        """Create the folder, or resume the one that exists.

        Args:
            plan: JSON values that say what is extracted.

        Raises:
            UserError: the folder belongs to another plan, or cannot be written.
        """
        if not self.exist():
            # the folder appears together with its plan: several processes may start at once
            new = self.folder.with_name(f"{self.folder.name}.{uuid.uuid4().hex}.tmp")
            with self._explained("written"):
                new.mkdir(parents=True)
                try:
                    (new / PLAN_FILE).write_text(json.dumps(plan, indent=1), encoding="utf-8")
                    os.rename(new, self.folder)
                except OSError as error:
                    if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                        raise
                finally:
                    shutil.rmtree(new, ignore_errors=True)
        differ = differences(self.plan(), plan)
        if differ:
            raise UserError(
                f"{self.folder} belongs to another extraction ({differ}): choose another --output, "
                "or delete that folder"
            )

    def exist(self) -> bool:
        """Whether there is an extraction to resume; an empty folder is left by :meth:`remove`."""
        return (self.folder / PLAN_FILE).exists()

    def plan(self) -> dict:
        """The plan in the folder."""
        file = self.folder / PLAN_FILE
        try:
            return dict(json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise UserError(
                f"{file} cannot be read ({error}): delete {self.folder} and start again"
            ) from error

    def done(self) -> set[int]:
        """The numbers of the parts that exist."""
        with self._explained("read"):
            names = os.listdir(self.folder)
        numbers = {int(n[:-4]) for n in names if n.endswith(".npz") and n[:-4].isdecimal()}
        return numbers & {*range(len(self))}

    def write(self, number: int, part: Part) -> None:
        """Write a part: completely, or not at all."""
        arrays: dict[str, Any] = {
            "joints": part.joints.astype(np.float32),
            "sizes": part.sizes.astype(np.int32),
            "problems": np.array(part.problems, np.str_),
        }
        with self._explained("written"):
            write_whole(self._file(number), lambda stream: np.savez(stream, **arrays))

    def read(self, number: int) -> Part:
        """A part.

        Raises:
            UserError: it cannot be read, or is damaged. A damaged part is deleted.
        """
        file, count = self._file(number), len(self.rows(number))
        with self._explained("read"), open(file, "rb") as stream:
            try:
                with np.load(stream, allow_pickle=False) as arrays:
                    part = Part(arrays["joints"], arrays["sizes"], arrays["problems"].tolist())
                shapes = part.joints.shape, part.sizes.shape, len(part.problems)
                if shapes == ((count, NUM_JOINTS, 3), (count, 2), count):
                    return part
            except Exception as error:  # zipfile and numpy raise many kinds for a damaged file
                if isinstance(error, OSError) and error.errno:
                    raise
        file.unlink()
        raise UserError(
            f"{file} was damaged and is deleted: repeat the command, with --shard on each machine"
        )

    def remove(self) -> None:
        """Delete the folder, and what killed processes have left beside it."""
        for stale in glob.glob(f"{glob.escape(str(self.folder))}.*.tmp"):
            shutil.rmtree(stale, ignore_errors=True)
        for file in self.folder.glob("[0-9]*"):  # before the plan, which says what they are
            with contextlib.suppress(OSError):
                file.unlink()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _file(self, number: int) -> Path:
        return self.folder / f"{number:06d}.npz"

    @contextlib.contextmanager
    def _explained(self, action: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{self.folder} cannot be {action} ({error.strerror}): solve this and repeat the "
                "command; finished parts are kept"
            ) from error


def differences(was: Mapping, now: Mapping) -> str:
    """The keys in which two plans differ, and the values of the first one; empty if they do not."""
    keys = sorted(key for key in {*was, *now} if was.get(key) != now.get(key))
    if not keys:
        return ""
    return f"{', '.join(keys)}; {keys[0]} was {was.get(keys[0])}, now {now.get(keys[0])}"
