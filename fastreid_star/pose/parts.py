"""What a night of extraction leaves on disk while it goes on: one file a few hundred crops, each whole or not there.

``OUT.parts/`` stands beside the store ``OUT`` that it will become:

    plan.json     what is being made: the crops (their digest), the estimator, crops a part
    000012.npz    crops 12 * size to 13 * size: joints [n,V,3], NaN where there are none; sizes [n,2], width and height,
                  0 where the image could not be read; problems [n], why there are no joints, empty where there are

Processes and machines that share the folder share the work: who makes which part does not matter.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastreid_star.coco import NUM_JOINTS
from fastreid_star.errors import UserError
from fastreid_star.files import write_whole

PLAN_FILE = "plan.json"


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
        file = self.folder / PLAN_FILE
        if not file.exists():
            with self._saying_what_to_do():
                self.folder.mkdir(parents=True, exist_ok=True)
                text = json.dumps(plan, indent=1) + "\n"
                write_whole(file, lambda stream: stream.write(text.encode()))
        found = self.plan()
        differ = sorted(key for key in {*plan, *found} if plan.get(key) != found.get(key))
        if differ:
            key = differ[0]
            raise UserError(
                f"{self.folder} holds the beginning of other skeletons ({', '.join(differ)}; {key} was "
                f"{found.get(key)}, now {plan.get(key)}): choose another --output, or delete that folder"
            )

    def plan(self) -> dict:
        """What :meth:`begin` was given by whoever came first.

        Raises:
            UserError: it cannot be read.
        """
        file = self.folder / PLAN_FILE
        try:
            plan = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{file} cannot be read ({error}): delete {self.folder} and start again") from error
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
        numbers = {int(name[:-4]) for name in names if name.endswith(".npz") and name[:-4].isdecimal()}
        return numbers & {*range(len(self))}

    def write(self, number: int, part: Part) -> None:
        """Put a part on disk, whole.

        Raises:
            UserError: it cannot be written; what is there already stays.
        """
        # fixed-width text: nothing that numpy would have to pickle
        problems = np.array(part.problems, np.str_)
        arrays = {"joints": part.joints.astype(np.float32), "sizes": part.sizes.astype(np.int32), "problems": problems}
        with self._saying_what_to_do():
            write_whole(self._file(number), lambda stream: np.savez(stream, **arrays))

    def read(self, number: int) -> Part | None:
        """A part; None where it is missing or damaged, and then it is gone and to be made again."""
        file, count = self._file(number), len(self.rows(number))
        try:
            with np.load(file, allow_pickle=False) as arrays:
                part = Part(arrays["joints"], arrays["sizes"], arrays["problems"].tolist())
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            file.unlink(missing_ok=True)
            return None
        if part.joints.shape != (count, NUM_JOINTS, 3) or part.sizes.shape != (count, 2) or len(part.problems) != count:
            file.unlink(missing_ok=True)
            return None
        return part

    def remove(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

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
