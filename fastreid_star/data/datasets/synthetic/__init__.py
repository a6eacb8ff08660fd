"""SyntheticVCM: walking people in HITSZ-VCM's layout, drawn by the program itself.

An identity shows in ten body lengths, in eleven parameters of gait and posture, and partly in the
clothing: many identities share its colors and patterns, and its brightness in infrared follows its
color only loosely.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from fastreid.data.datasets import DATASET_REGISTRY
from fastreid.utils import comm
from PIL import Image

from fastreid_star.data.datasets.hitsz_vcm import HITSZVCM
from fastreid_star.data.datasets.synthetic.options import SyntheticOptions
from fastreid_star.data.datasets.synthetic.people import Person, draw_person
from fastreid_star.data.datasets.synthetic.render import SCALE, film
from fastreid_star.data.datasets.synthetic.scene import TEST, TRAIN
from fastreid_star.data.silhouettes import write_silhouette
from fastreid_star.data.skeletons import write_skeleton_store
from fastreid_star.errors import UserError
from fastreid_star.structures import Modality

__all__ = [
    *("CAVEAT", "SyntheticOptions", "SyntheticVCM", "Track", "frame_paths", "write_info_files"),
    "write_masks",
    "write_synthetic_vcm",
]

# stands beside results on this dataset
CAVEAT = (
    "The people of SyntheticVCM are drawn, with nearly exact skeletons: these results prove "
    "nothing for real data."
)
CAMERAS = {TRAIN: 6, TEST: 12}
JPEG_QUALITY = 90
OPTIONS_FILE = "synthetic.json"
VERSION = 1  # of what is written for the same options

logger = logging.getLogger(__name__)


@DATASET_REGISTRY.register()
class SyntheticVCM(HITSZVCM):
    """The synthetic dataset, written into ``<root>/SyntheticVCM`` when a run first needs it.

    In distributed training the first process writes it and the others wait.

    Args:
        root: the folder that holds, or will hold, ``SyntheticVCM``.
        min_frames: shorter tracklets are left out, in the test set too.
        options: what to write, if it does not exist. None: read an existing dataset.

    Raises:
        UserError: the folder holds something else, or the dataset with other options.
    """

    dataset_dir = "SyntheticVCM"
    dataset_name = "synthetic_vcm"
    published: ClassVar = {}

    def __init__(
        self,
        root: str = "datasets",
        *,
        min_frames: int = 12,
        options: SyntheticOptions | None = None,
        **kwargs,
    ):
        if options is not None:
            self._write_once(Path(root) / self.dataset_dir, options, min_frames)
        super().__init__(root, min_frames=min_frames, **kwargs)

    @staticmethod
    def _write_once(folder: Path, options: SyntheticOptions, min_frames: int) -> None:
        if options.frames < min_frames:
            raise UserError(
                f"DATASETS.SYNTHETIC.FRAMES is {options.frames}, below DATASETS.MIN_FRAMES, "
                f"{min_frames}"
            )
        try:
            if comm.is_main_process():
                write_synthetic_vcm(folder, options)
        finally:  # also if writing fails: the other processes must not wait for ever
            comm.synchronize()
        if not _holds(folder, options):
            raise UserError(
                f"{folder}: the first process could not write the dataset; see its message"
            )

    @staticmethod
    def arguments(cfg) -> dict[str, Any]:
        return {"options": SyntheticOptions.from_config(cfg)}

    def write_shapes(self, folder: str) -> None:
        """Write the exact masks, once; the other processes wait."""
        partial = Path(f"{folder}.{os.getpid()}.partial")
        try:
            if comm.is_main_process() and not os.path.exists(folder):
                logger.info("drawing the body shapes of SyntheticVCM into %s (once)", folder)
                write_masks(self.folder, partial)
                partial.rename(folder)
        except OSError:
            if not os.path.exists(folder):  # another process may have been faster
                raise
        finally:  # see above
            shutil.rmtree(partial, ignore_errors=True)
            comm.synchronize()


def write_synthetic_vcm(root: str | os.PathLike, options: SyntheticOptions) -> None:
    """Write the dataset: info files, frames, ``skeletons/`` and ``synthetic.json``, or nothing.

    The same options give the same bytes. A folder that already holds the dataset with the same
    options is left as it is.

    Args:
        root: the dataset's own folder.
        options: what to draw.

    Raises:
        UserError: `root` holds something else, or the dataset with other options.
    """
    root = Path(root).absolute()
    if _holds(root, options):
        return
    identities = options.train_ids + options.test_ids
    logger.info("writing SyntheticVCM, %d identities, into %s (once)", identities, root)
    partial = root.with_name(f".{root.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        _write_all(partial, options)
        record = {"version": VERSION, "options": options.to_dict()}
        (partial / OPTIONS_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        if root.exists():  # and is empty, see above
            root.rmdir()
        partial.rename(root)
    except OSError:
        if not _holds(root, options):  # another process may have been faster
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _holds(root: Path, options: SyntheticOptions) -> bool:
    """Whether `root` is this dataset; False if it does not exist or is empty."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    cure = "delete the folder or choose another"
    fixed = {"scale": SCALE}  # was an option before release 0.2.0
    try:
        found = json.loads((root / OPTIONS_FILE).read_text(encoding="utf-8"))
        # an option that the folder does not name is newer than it, and was not used
        defaults = SyntheticOptions().to_dict()
        old = {"version": found["version"], **fixed, **defaults, **found["options"]}
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{root} exists and is not a synthetic dataset: {cure}") from None
    new = {"version": VERSION, **fixed, **options.to_dict()}
    changes = [
        f"{key} {old.get(key)} instead of {new.get(key)}"
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
    ]
    if changes:
        raise UserError(
            f"{root} holds the synthetic dataset with other options ({', '.join(changes)}): {cure}"
        )
    return True


def _write_all(root: Path, options: SyntheticOptions) -> None:
    tracks: dict[int, list[Track]] = {TRAIN: [], TEST: []}
    keys, joints, pid = [], [], 0
    splits = ((TRAIN, "Train", options.train_ids), (TEST, "Test", options.test_ids))
    for split, folder, count in splits:
        for index in range(count):
            pid += 1
            own_tracks, own_joints = _write_identity(root / folder, options, split, index, pid)
            tracks[split] += own_tracks
            keys += [p.removesuffix(".jpg") for paths in frame_paths(own_tracks) for p in paths]
            joints.append(own_joints)
    write_info_files(root / "info", tracks[TRAIN], tracks[TEST])
    meta = {"source": "SyntheticVCM", "options": options.to_dict()}
    write_skeleton_store(root / "skeletons", keys, np.concatenate(joints), meta)


def write_masks(root: str | os.PathLike, target: str | os.PathLike) -> None:
    """Draw a written dataset again, and store where the person is seen in each frame.

    The dataset is not changed: drawing is a function of the options that it holds.

    Args:
        root: the dataset's own folder.
        target: the folder of the silhouettes, see :mod:`fastreid_star.data.silhouettes`.

    Raises:
        UserError: `root` is not a synthetic dataset.
    """
    path = Path(root) / OPTIONS_FILE
    try:
        found = dict(json.loads(path.read_text(encoding="utf-8"))["options"])
        scale = found.pop("scale", SCALE)  # was an option before release 0.2.0
        options = SyntheticOptions(**found)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{root} is not a synthetic dataset: {path} cannot be read") from error
    if scale != SCALE:
        raise UserError(f"{root} was drawn with DATASETS.SYNTHETIC.SCALE {scale}: write it anew")
    pid = 0
    for split, count in ((TRAIN, options.train_ids), (TEST, options.test_ids)):
        for index in range(count):
            pid += 1
            person, tracks, rng = _draw_identity(options, split, index, pid)
            for track, paths in zip(tracks, frame_paths(tracks), strict=True):
                footage = film(person, track.camera, track.modality, options, rng, masks=True)
                for name, mask in zip(paths, footage.masks or (), strict=True):
                    write_silhouette(target, name.removesuffix(".jpg"), mask)


def _draw_identity(
    options: SyntheticOptions, split: int, index: int, pid: int
) -> tuple[Person, list[Track], np.random.Generator]:
    """The identity number `index` of a split, its tracklets, and the numbers to film them with."""
    rng = np.random.default_rng([options.seed, split, index])
    person = draw_person(rng)
    # as in HITSZ-VCM, no camera films an identity in both modalities, and visible comes first
    cameras = np.array_split(rng.permutation(CAMERAS[split]) + 1, 2)
    tracks = [
        Track(pid, modality, int(rng.choice(own)), options.frames)
        for modality, own in zip((Modality.VISIBLE, Modality.INFRARED), cameras, strict=True)
        for _ in range(options.tracklets)
    ]
    return person, tracks, rng


def _write_identity(
    folder: Path, options: SyntheticOptions, split: int, index: int, pid: int
) -> tuple[list[Track], np.ndarray]:
    """Write the frames of the identity number `index` of a split.

    Returns:
        its tracklets; their joints, float32 [N, 17, 3].
    """
    person, tracks, rng = _draw_identity(options, split, index, pid)
    joints = []
    for track, paths in zip(tracks, frame_paths(tracks), strict=True):
        footage = film(person, track.camera, track.modality, options, rng)
        (folder / paths[0]).parent.mkdir(parents=True, exist_ok=True)
        for path, image in zip(paths, footage.images, strict=True):
            Image.fromarray(image).save(folder / path, quality=JPEG_QUALITY)
        joints.append(footage.joints)
    return tracks, np.concatenate(joints)


class Track(NamedTuple):
    """One tracklet as the info files describe it."""

    pid: int
    modality: Modality
    camera: int
    length: int


def frame_names(tracks: Sequence[Track]) -> list[list[str]]:
    """The frames of each tracklet as the name files write them, ``0001M2D3T1F1.jpg``.

    Tracklets are numbered from 1 for each identity and modality. The tracklet is not part of a
    frame's path, so frame numbers continue through all tracklets of an identity and camera.
    """
    tracklets: Counter[tuple[int, int]] = Counter()
    frames: Counter[tuple[int, int, int]] = Counter()
    names = []
    for pid, modality, camera, length in tracks:
        tracklets[pid, modality] += 1
        first = frames[pid, modality, camera] + 1
        frames[pid, modality, camera] += length
        prefix = f"{pid:04d}M{modality:d}D{camera}T{tracklets[pid, modality]}F"
        names.append([f"{prefix}{frame}.jpg" for frame in range(first, first + length)])
    return names


def frame_paths(tracks: Sequence[Track]) -> list[list[str]]:
    """The paths of the frames of each tracklet in the split's folder, ``0001/rgb/D3/1.jpg``."""
    paths = []
    for track, names in zip(tracks, frame_names(tracks), strict=True):
        folder = f"{track.pid:04d}/{track.modality.folder}/D{track.camera}"
        paths.append([f"{folder}/{name.rpartition('F')[2]}" for name in names])
    return paths


def write_info_files(
    folder: str | os.PathLike, train: Sequence[Track], test: Sequence[Track]
) -> None:
    """Write the five text files of HITSZ-VCM into `folder`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    texts = {}
    for split, tracks in (("train", train), ("test", test)):
        names = [name for names in frame_names(tracks) for name in names]
        lines, last = [], 0
        for pid, modality, camera, length in tracks:
            lines.append(f"{modality:d} {last + 1} {last + length} {pid:04d} {camera}")
            last += length
        texts[f"{split}_name.txt"] = "".join(f"{name}\n" for name in names)
        texts[f"track_{split}_info.txt"] = "".join(f"{line}\n" for line in lines)
    infrared = [n for n, track in enumerate(test, start=1) if track.modality is Modality.INFRARED]
    texts["query_IDX.txt"] = "".join(f"{n} " for n in infrared)
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="ascii", newline="\n")
