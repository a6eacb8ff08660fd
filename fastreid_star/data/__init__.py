"""From files on disk to batches of clips."""

from fastreid_star.data import datasets  # noqa: F401 - registers them
