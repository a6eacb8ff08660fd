"""What a run can do without does not end it, and is missed with one warning."""

import pytest
from fastreid.utils.events import EventStorage, EventWriter, JSONWriter, TensorboardXWriter

from fastreid_star.engine.writers import Dispensable, open_writers

from .conftest import fill


def put(storage, count):
    for number in range(count):
        storage.put_scalar(f"loss_{number}", 1.0)


def test_a_writer_that_fails_is_left_with_one_warning(caplog):
    with EventStorage(0) as storage:
        writer = Dispensable("metrics.json", lambda: JSONWriter("/dev/full"))
        for iteration in range(3):
            storage.iter = iteration
            put(storage, 1)
            writer.write()
        writer.close()
    (record,) = caplog.records
    assert record.getMessage().startswith(
        "metrics.json cannot be written any more (No space left on device)"
    )


def test_one_that_cannot_be_opened_is_left_too(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    writer = Dispensable(
        "metrics.json", lambda: JSONWriter(str(tmp_path / "file" / "metrics.json"))
    )
    writer.write()
    writer.close()
    assert len(caplog.records) == 1


def test_a_bug_is_no_reason_to_go_on():
    class Broken(EventWriter):
        def write(self):
            raise KeyError("x")

    with pytest.raises(KeyError):
        Dispensable("x", Broken).write()


def test_tensorboard_without_room(disk, caplog, capfd):
    """Its own thread meets the full disk; the next write or the close tells of it."""
    folder = disk("1m")
    with EventStorage(0) as storage:
        open_writers(str(folder), 10)  # quietens TensorBoard's thread
        writer = Dispensable("TensorBoard", lambda: TensorboardXWriter(str(folder)))
        fill(folder)
        for iteration in range(3):
            storage.iter = iteration
            put(storage, 200)  # more than fits into the last page
            writer.write()
        writer.close()
    assert [
        record.getMessage().count("TensorBoard cannot be written any more")
        for record in caplog.records
    ] == [1]
    assert "Traceback" not in capfd.readouterr().err


def test_a_folder_that_vanishes_does_not_stop_them(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    with EventStorage(0) as storage:
        writers = open_writers(str(folder), 10)
        (folder / "metrics.json").unlink()
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
        storage.epoch = 0
        put(storage, 3)
        for writer in writers:
            writer.write()
        for writer in writers:
            writer.close()
