"""Results of an unfinished extraction, one file per part, so that it can be resumed.

``OUT.parts/`` stands beside the store ``OUT`` until the store is complete::

    plan.json     what is extracted: the frames (their digest), the estimator, crops per part
    000012.npz    crops 12 * size to 13 * size: joints [n, V, 3], NaN where they are missing;
                  problems [n], why joints are missing, else empty

Processes and machines that share the folder share the work.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fastreid_star.errors import UserError
from fastreid_star.files import write_whole


class Parts:
    """The folder of the parts of one store.

    Args:
        output: the folder of the store.
        plan: what is extracted, JSON values; `frames` is the number of crops, `size` that of a
            part.
    """

    def __init__(self, output: str | os.PathLike, plan: Mapping[str, Any]):
        self.folder = parts_folder(output)
        self.plan = plan

    def __len__(self) -> int:
        return -(-self.plan["frames"] // self.plan["size"])

    def rows(self, number: int) -> range:
        """The crops of a part."""
        size = self.plan["size"]
        return range(number * size, min(self.plan["frames"], (number + 1) * size))

    def begin(self) -> None:
        """Create the folder, or resume the one that exists.

        Raises:
            UserError: the folder belongs to another plan, or cannot be written.
        """
        file, text = self.folder / "plan.json", json.dumps(self.plan, indent=1)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not file.exists():
                # other processes and machines write the same plan at the same time
                own = self.folder / f"plan.{secrets.token_hex(8)}.tmp"
                own.write_text(text, encoding="utf-8")
                os.replace(own, file)
        except OSError as error:
            raise UserError(f"{self.folder} cannot be written ({error.strerror})") from error
        if differ := differences(read_plan(self.folder) or {}, self.plan):
            raise UserError(
                f"{self.folder} belongs to another extraction ({differ}): choose another --output, "
                "or delete that folder"
            )

    def done(self) -> set[int]:
        """The numbers of the parts that exist."""
        return {int(f.stem) for f in self.folder.glob("[0-9]*.npz") if f.stem.isdecimal()}

    def write(self, number: int, **arrays: np.ndarray) -> None:
        """Write a part: completely, or not at all."""
        write_whole(self._file(number), lambda stream: np.savez(stream, **arrays))  # type: ignore[arg-type]

    def read(self, number: int) -> dict[str, np.ndarray]:
        """The arrays of a part.

        Raises:
            UserError: the part is damaged; its file is deleted.
        """
        try:
            with np.load(self._file(number), allow_pickle=False) as arrays:
                return dict(arrays)
        except (ValueError, EOFError, zipfile.BadZipFile) as error:
            self._file(number).unlink(missing_ok=True)
            raise UserError(
                f"{self._file(number)} was damaged and is deleted: repeat the command"
            ) from error

    def remove(self) -> None:
        """Delete the folder: the plan last, because it says what the other files are."""
        for file in self.folder.glob("[0-9]*"):
            file.unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _file(self, number: int) -> Path:
        return self.folder / f"{number:06d}.npz"


def parts_folder(output: str | os.PathLike) -> Path:
    """The folder of the parts of a store."""
    return Path(f"{os.path.realpath(output)}.parts")


def read_plan(folder: Path) -> dict[str, Any] | None:
    """The plan in a folder of parts; None: there is no extraction to resume."""
    try:
        return json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(f"{folder}/plan.json is damaged: delete the folder") from error


def differences(was: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The keys in which two plans differ, and the values of the first one; empty if they do not."""
    keys = sorted(key for key in {*was, *now} if was.get(key) != now.get(key))
    if not keys:
        return ""
    return f"{', '.join(keys)}; {keys[0]} was {was.get(keys[0])}, now {now.get(keys[0])}"
