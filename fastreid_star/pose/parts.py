"""What a night of extraction leaves on disk while it goes on: one file a few hundred crops, each whole or not there.

``OUT.parts/`` stands beside the store ``OUT`` that it will become:

    plan.json     what is being made: the crops (their digest), the estimator, crops a part
    000012.npz    crops 12 * size to 13 * size: joints [n,V,3], NaN where there are none; sizes [n,2], width and height,
                  0 where the image could not be read; problems [n], why there are no joints, empty where there are

Processes and machines that share the folder share the work: who makes which part does not matter.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import io
import json
import logging
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

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Part:
    """Some crops in their order, n of them.

    Args:
        joints: float32 [n,V,3]; NaN where there are none.
        sizes: int32 [n,2], width and height; 0 where the image could not be read.
        problems: n texts: why there are no joints, empty where there are.
    """

    joints: np.ndarray
    sizes: np.ndarray
    problems: list[str]


class Parts:
    """The folder of parts of one store.

    Args:
        folder: where they are; made by :meth:`begin`.
        frames: how many crops there are in all.
        size: crops a part.
    """

    def __init__(self, folder: str | os.PathLike, frames: int, size: int):
        self.folder = Path(folder)
        self.frames = frames
        self.size = size

    def __len__(self) -> int:
        return -(-self.frames // self.size)

    def rows(self, number: int) -> range:
        """The crops of a part."""
        return range(number * self.size, min(self.frames, (number + 1) * self.size))

    def begin(self, plan: Mapping) -> None:
        """Make the folder, or go on with the one that is there.

        Args:
            plan: whatever JSON can say of what is being made; ``size`` is added.

        Raises:
            UserError: parts are there of another plan, or nothing can be written there.
        """
        plan = {**plan, "size": self.size}
        if not (self.folder / PLAN_FILE).exists():
            with self._saying_what_to_do():
                self._make(plan)
        differ = differences(self.plan(), plan)
        if differ:
            raise UserError(
                f"{self.folder} holds the beginning of other skeletons ({differ}): choose another --output, or delete "
                "that folder"
            )

    def _make(self, plan: Mapping) -> None:
        """The folder and its plan in one step: of processes that come at the same time, one makes it for all.

        A folder that holds parts and no plan stays as it is: nobody knows what they are of.
        """
        new = self.folder.with_name(f"{self.folder.name}.{uuid.uuid4().hex}.tmp")
        new.mkdir(parents=True)
        try:
            text = json.dumps(plan, indent=1) + "\n"
            write_whole(new / PLAN_FILE, lambda stream: stream.write(text.encode()))
            os.rename(new, self.folder)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):  # another was quicker
                raise
        finally:
            shutil.rmtree(new, ignore_errors=True)

    def is_of(self, plan: Mapping) -> bool:
        """Whether the folder is there and holds parts of this plan, or what is left of a folder that was removed."""
        if not (self.folder / PLAN_FILE).exists():
            return self.folder.exists()
        with contextlib.suppress(UserError):
            return self.plan() == {**plan, "size": self.size}
        return False

    @contextlib.contextmanager
    def alone(self) -> Iterator[bool]:
        """Wait until no other process is in here; False where the folder is gone then."""
        file = self.folder / PLAN_FILE
        try:
            stream = open(file, "r+b")  # noqa: SIM115 - for writing, though nobody writes: NFS locks nothing else
        except FileNotFoundError:
            yield False
            return
        except OSError as error:
            raise UserError(
                f"{file} cannot be opened for writing ({error.strerror}): its lock is needed"
            ) from error
        with stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX)
            except OSError as error:
                logger.warning(
                    "%s cannot be locked (%s): where several processes end at the same moment, the store may have to "
                    "be made by one more call of the same command",
                    *(file, error.strerror),
                )
            yield file.exists()

    def plan(self) -> dict:
        """What :meth:`begin` was given by whoever came first.

        Raises:
            UserError: it cannot be read.
        """
        file = self.folder / PLAN_FILE
        try:
            plan = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(
                f"{file} cannot be read ({error}): delete {self.folder} and start again"
            ) from error
        if not isinstance(plan, dict):
            raise UserError(f"{file} is no plan: delete {self.folder} and start again")
        return plan

    def done(self) -> set[int]:
        """The parts that are there.

        Raises:
            UserError: the folder is gone.
        """
        try:
            names = os.listdir(self.folder)
        except OSError as error:
            raise UserError(
                f"{self.folder} cannot be read ({error.strerror}): bring it back, and start again"
            ) from error
        numbers = {
            int(name[:-4]) for name in names if name.endswith(".npz") and name[:-4].isdecimal()
        }
        return numbers & {*range(len(self))}

    def write(self, number: int, part: Part) -> None:
        """Put a part on disk, whole.

        Raises:
            UserError: it cannot be written; what is there already stays.
        """
        # fixed-width text: nothing that numpy would have to pickle
        problems = np.array(part.problems, np.str_)
        arrays: dict[str, Any] = {
            "joints": part.joints.astype(np.float32),
            "sizes": part.sizes.astype(np.int32),
            "problems": problems,
        }
        with self._saying_what_to_do():
            write_whole(self._file(number), lambda stream: np.savez(stream, **arrays))

    def read(self, number: int) -> Part | None:
        """A part; None where it is missing or damaged, and then it is gone and to be made again.

        Raises:
            UserError: the disk does not give it, or it may not be read: it stays, whatever is in it.
        """
        file, count = self._file(number), len(self.rows(number))
        try:
            content = io.BytesIO(file.read_bytes())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UserError(
                f"{file} cannot be read ({error.strerror}): mend that and give the same command again; what is done is "
                "kept"
            ) from error
        try:
            with np.load(content, allow_pickle=False) as arrays:
                part = Part(arrays["joints"], arrays["sizes"], arrays["problems"].tolist())
        except Exception:  # zipfile and numpy raise about any kind on a damaged file
            file.unlink(missing_ok=True)
            return None
        if (
            part.joints.shape != (count, NUM_JOINTS, 3)
            or part.sizes.shape != (count, 2)
            or len(part.problems) != count
        ):
            file.unlink(missing_ok=True)
            return None
        return part

    def remove(self) -> None:
        """Delete the folder, its plan last: what is left where a process is killed here still says what it is."""
        self.clear()
        for stale in glob.glob(
            f"{glob.escape(str(self.folder))}.*.tmp"
        ):  # of a process killed while it began
            shutil.rmtree(stale, ignore_errors=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def clear(self) -> None:
        """Delete all but the plan."""
        for file in self.folder.glob("[0-9]*"):
            with contextlib.suppress(OSError):
                file.unlink()

    def _file(self, number: int) -> Path:
        return self.folder / f"{number:06d}.npz"

    @contextlib.contextmanager
    def _saying_what_to_do(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{self.folder} cannot be written ({error.strerror}): mend that and give the same command again; "
                "what is done is kept"
            ) from error


def differences(was: Mapping, now: Mapping) -> str:
    """In which keys two plans differ, and the values of the first of these; empty where they do not."""
    keys = sorted(key for key in {*was, *now} if was.get(key) != now.get(key))
    return (
        f"{', '.join(keys)}; {keys[0]} was {was.get(keys[0])}, now {now.get(keys[0])}"
        if keys
        else ""
    )
