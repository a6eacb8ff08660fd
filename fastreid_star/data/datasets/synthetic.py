"""A synthetic dataset of walking people in HITSZ-VCM's layout: the default of the demo, the tests and the benchmarks.

Who somebody is shows in the body's ten lengths, in eleven parameters of gait and posture, and partly in the clothing,
whose colors and patterns many identities share and whose brightness in infrared follows its color only loosely.
"""

from __future__ import annotations

import concurrent.futures
import functools
import json
import logging
import multiprocessing
import os
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
from fastreid.data.datasets import DATASET_REGISTRY
from fastreid.utils import comm
from PIL import Image

from fastreid_star.data.datasets.hitsz_vcm import HITSZVCM
from fastreid_star.data.datasets.hitsz_vcm_files import (
    Track,
    frame_paths,
    write_info_files,
    write_info_files_at_true_size,
)
from fastreid_star.data.datasets.synthetic_options import SyntheticOptions
from fastreid_star.data.datasets.synthetic_people import draw_person
from fastreid_star.data.datasets.synthetic_render import film
from fastreid_star.data.datasets.synthetic_scene import TEST, TRAIN
from fastreid_star.data.skeletons import write_skeleton_store
from fastreid_star.errors import UserError
from fastreid_star.structures import Modality

__all__ = [
    "SyntheticOptions",
    "SyntheticVCM",
    "write_info_files_at_true_size",
    "write_synthetic_vcm",
]

CAMERAS = {TRAIN: 6, TEST: 12}
LAYOUTS = ("full", "flat_info", "merged", "flat_merged")
JPEG_QUALITY = 90
OPTIONS_FILE = "synthetic.json"
VERSION = 1  # of what is written for the same options

logger = logging.getLogger(__name__)


@DATASET_REGISTRY.register()
class SyntheticVCM(HITSZVCM):
    """The synthetic dataset, written into ``<root>/SyntheticVCM`` when it is first asked for.

    In distributed training the first process writes and the others wait for it.

    Args:
        root: the folder that holds ``SyntheticVCM``, or will.
        min_frames: shorter tracklets are left out, in the test set too.
        options: what to write. None: whatever is there already, or the defaults.

    Raises:
        UserError: the folder holds something else, or the dataset with other options.
    """

    dataset_dir = "SyntheticVCM"
    dataset_name = "synthetic_vcm"

    def __init__(
        self,
        root: str = "datasets",
        *,
        min_frames: int = 12,
        options: SyntheticOptions | None = None,
        **kwargs,
    ):
        folder = Path(root) / self.dataset_dir
        if options is not None and options.frames < min_frames:
            raise UserError(
                f"DATASETS.SYNTHETIC.FRAMES is {options.frames}, below DATASETS.MIN_FRAMES, {min_frames}"
            )
        try:
            if comm.is_main_process() and (options is not None or not folder.exists()):
                write_synthetic_vcm(folder, options or SyntheticOptions())
        finally:  # also when writing fails: the others must not wait for ever
            comm.synchronize()
        if options is not None and not _holds(folder, _made_with(options, "full")):
            raise UserError(
                f"{folder}: the first process could not write the synthetic dataset; see its message"
            )
        super().__init__(root, min_frames=min_frames, **kwargs)

    @staticmethod
    def options_from_config(cfg) -> SyntheticOptions:
        """What a config asks for; the loaders pass it as `options`."""
        return SyntheticOptions.from_config(cfg)


def write_synthetic_vcm(
    root: str | os.PathLike,
    options: SyntheticOptions | None = None,
    processes: int = 1,
    layout: str = "full",
) -> None:
    """Write the dataset: info files, frames, ``skeletons/`` and ``synthetic.json``, all of it or nothing.

    The same options give the same bytes, whatever `processes` is. A folder that holds the dataset with the same
    options is left as it is.

    Args:
        root: the dataset's own folder.
        options: None: the defaults.
        processes: how many identities to make at a time. With more than one, a script needs the usual
            ``if __name__ == "__main__"``.
        layout: ``full``; ``flat_info``: the five text files directly in `root`; ``merged``: the identities directly
            in `root`; ``flat_merged``: both.

    Raises:
        UserError: `root` holds something else, or the dataset with other options.
    """
    if layout not in LAYOUTS:
        raise UserError(f"layout {layout!r} is none of {', '.join(LAYOUTS)}")
    options = options or SyntheticOptions()
    root = Path(root).absolute()
    made_with = _made_with(options, layout)
    if _holds(root, made_with):
        return
    identities = options.train_ids + options.test_ids
    logger.info("writing SyntheticVCM, %d identities, into %s (once)", identities, root)
    partial = root.with_name(f".{root.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        _write_all(partial, options, processes, layout)
        (partial / OPTIONS_FILE).write_text(
            json.dumps(made_with, indent=2) + "\n", encoding="utf-8"
        )
        if root.exists():  # and is empty, see above
            root.rmdir()
        partial.rename(root)
    except OSError:
        if not _holds(root, made_with):  # another process may have been quicker
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _made_with(options: SyntheticOptions, layout: str) -> dict:
    return {"version": VERSION, "layout": layout, "options": options.to_dict()}


def _holds(root: Path, made_with: dict) -> bool:
    """Whether `root` is this dataset; False where nothing is there yet."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    way_out = "delete the folder or choose another"
    try:
        found = json.loads((root / OPTIONS_FILE).read_text(encoding="utf-8"))
        old, new = ({**what, **what["options"]} for what in (found, made_with))
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{root} exists and is not a synthetic dataset: {way_out}") from None
    different = sorted(key for key in {*old, *new} - {"options"} if old.get(key) != new.get(key))
    if different:
        changes = ", ".join(f"{key} {old.get(key)} instead of {new.get(key)}" for key in different)
        raise UserError(
            f"{root} holds the synthetic dataset with other options ({changes}): {way_out}"
        )
    return True


class _Task(NamedTuple):
    """One identity to make: its number in its split, and the folder that takes its own folder."""

    split: int
    index: int  # type: ignore[assignment] # a field hides tuple.index
    pid: int
    folder: str


def _write_all(root: Path, options: SyntheticOptions, processes: int, layout: str) -> None:
    images = {
        split: root if "merged" in layout else root / name
        for split, name in ((TRAIN, "Train"), (TEST, "Test"))
    }
    tasks = [
        _Task(TRAIN, index, 1 + index, str(images[TRAIN])) for index in range(options.train_ids)
    ]
    first = 1 + options.train_ids
    tasks += [
        _Task(TEST, index, first + index, str(images[TEST])) for index in range(options.test_ids)
    ]
    write = functools.partial(_write_identity, options)
    if processes > 1:
        # spawn: a fork of a process with threads, which torch starts, may hang
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(min(processes, len(tasks)), context) as pool:
            made = list(pool.map(write, tasks, chunksize=max(1, len(tasks) // (4 * processes))))
    else:
        made = [write(task) for task in tasks]

    tracks: dict[int, list[Track]] = {split: [] for split in CAMERAS}
    keys, joints = [], []
    for task, (own_tracks, own_joints) in zip(tasks, made, strict=True):
        tracks[task.split] += own_tracks
        keys += [path.removesuffix(".jpg") for paths in frame_paths(own_tracks) for path in paths]
        joints.append(own_joints)
    write_info_files(root if "flat" in layout else root / "info", tracks[TRAIN], tracks[TEST])
    meta = {"source": "SyntheticVCM", "options": options.to_dict()}
    write_skeleton_store(root / "skeletons", keys, np.concatenate(joints), meta)


def _write_identity(options: SyntheticOptions, task: _Task) -> tuple[list[Track], np.ndarray]:
    """Write the frames of one identity; its tracklets and their joints, float32 [N, 17, 3], in the frames' order."""
    rng = np.random.default_rng([options.seed, task.split, task.index])
    person = draw_person(rng)
    # no camera films an identity in both modalities, as in HITSZ-VCM
    cameras = np.array_split(rng.permutation(CAMERAS[task.split]) + 1, 2)
    # visible before infrared, as in HITSZ-VCM
    tracks = [
        Track(task.pid, modality, int(rng.choice(own)), options.frames)
        for modality, own in zip((Modality.VISIBLE, Modality.INFRARED), cameras, strict=True)
        for _ in range(options.tracklets)
    ]
    joints = []
    for track, paths in zip(tracks, frame_paths(tracks), strict=True):
        footage = film(person, track.camera, track.modality, options, rng)
        (Path(task.folder) / paths[0]).parent.mkdir(parents=True, exist_ok=True)
        for path, image in zip(paths, footage.images, strict=True):
            Image.fromarray(image).save(os.path.join(task.folder, path), quality=JPEG_QUALITY)
        joints.append(footage.joints)
    return tracks, np.concatenate(joints)
