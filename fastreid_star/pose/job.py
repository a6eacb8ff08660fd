"""One extraction over the devices of this machine: what tools/extract_skeletons.py runs."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

from fastreid.utils import comm

from fastreid_star.engine.device import choose_device, device_count
from fastreid_star.engine.launch import launch
from fastreid_star.errors import UserError
from fastreid_star.pose.estimator import build_estimator
from fastreid_star.pose.extraction import WHOLE, Extraction, Share, parts_folder, which_store
from fastreid_star.pose.frames import Frames, frames_of_dataset, frames_of_folder


@dataclass(frozen=True)
class Job:
    """What to extract, with what, and where to.

    Args:
        output: folder of the store to make.
        dataset, root: a registered dataset, and the folder that holds its own folder, empty: $FASTREID_DATASETS or
            ./datasets; or
        images: any folder of crops.
        backend, model, checkpoint, flip_test, dtype: see :func:`build_estimator`.
        device: ``auto``, ``npu``, ``cuda`` or ``cpu``.
        num_devices: so many processes, one a device.
        shard: this machine's share of the work, where several write into one folder.
        batch_size: crops estimated at a time.
        workers: decoding processes for each device.
        overwrite: replace the store that is there.
        replaces: which one that is: see :class:`Extraction`. Left out by callers.
    """

    output: str
    backend: str = "mmpose"
    model: str = ""
    checkpoint: str = ""
    dataset: str = ""
    root: str = ""
    images: str = ""
    flip_test: bool = False
    dtype: str | None = None
    device: str = "auto"
    num_devices: int = 1
    shard: Share = WHOLE
    batch_size: int = 16
    workers: int = 2
    overwrite: bool = False
    replaces: str | None = None

    def frames(self) -> Frames:
        """The crops, in the order of the store."""
        return (
            frames_of_folder(self.images)
            if self.images
            else frames_of_dataset(self.dataset, self.root)
        )


def extract(job: Job) -> bool:
    """Do a job, or this machine's shard of it.

    Returns:
        whether the store is there now; False: other shards are still to be made.

    Raises:
        UserError: whatever is wrong with the crops, the estimator, the device or the disk.
    """
    if bool(job.images) == bool(job.dataset):
        raise UserError("say which crops: either --dataset NAME or --images FOLDER")
    if not 0 <= job.shard.number < job.shard.of:
        raise UserError(
            f"--shard {job.shard.number + 1}/{job.shard.of}: shards count from 1/{job.shard.of}"
        )
    for name, value, least in (("batch-size", job.batch_size, 1), ("workers", job.workers, 0)):
        if value < least:
            raise UserError(f"--{name} {value}: it must be at least {least}")
    count = device_count(job.device)
    if job.num_devices < 1 or (count is not None and job.num_devices > count):
        raise UserError(
            f"--num-devices {job.num_devices}: this machine shows {count or 'any number of CPU'} device(s)"
        )
    if job.num_devices > 1 and ":" in job.device:
        raise UserError(
            f"--device {job.device} names one device for {job.num_devices} processes: leave the index out"
        )
    job = replace(job, replaces=which_store(job.output))
    if job.num_devices == 1:
        _extract_share(job)
    else:
        launch(_extract_share, job.num_devices, device=job.device, args=(job,))
    # without --overwrite a store that is there was found to be this job's, or made by it
    return (
        not os.path.exists(parts_folder(job.output))
        if job.overwrite
        else os.path.exists(job.output)
    )


def _extract_share(job: Job) -> None:
    number = comm.get_local_rank()
    frames = job.frames()
    device = choose_device(job.device, number)
    estimator = build_estimator(
        job.backend,
        model=job.model,
        checkpoint=job.checkpoint,
        device=device,
        flip_test=job.flip_test,
        dtype=job.dtype,
    )
    extraction = Extraction(
        frames,
        job.output,
        estimator.describe(),
        batch_size=job.batch_size,
        overwrite=job.overwrite,
        replaces=job.replaces,
    )
    share = Share(job.shard.number * job.num_devices + number, job.shard.of * job.num_devices)
    extraction.run(estimator, share=share, workers=job.workers, progress=number == 0)
    extraction.finish()
