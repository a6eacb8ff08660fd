import logging

import numpy as np
import pytest
from PIL import Image

from fastreid_star.data import images
from fastreid_star.data.images import BrokenImage, read_clip, read_frame
from fastreid_star.errors import UserError
from fastreid_star.structures import Modality, Tracklet


@pytest.fixture
def pixels():
    rows, columns = np.mgrid[:12, :20]
    return np.stack([rows * 20, columns * 12, (rows + columns) * 7], axis=-1).astype(np.uint8)


def test_reads_rgb(tmp_path, pixels):
    Image.fromarray(pixels).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_frame(tmp_path / "a.png"), pixels)


def test_applies_exif_rotation(tmp_path, pixels):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise to see it upright
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_frame(tmp_path / "a.png"), np.rot90(pixels, -1))


@pytest.mark.parametrize("mode", ["L", "P", "LA", "RGBA", "1", "CMYK"])
def test_other_modes(tmp_path, pixels, mode):
    image = Image.fromarray(pixels).convert(mode)
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    image.save(path)
    frame = read_frame(path)
    assert (frame.shape, frame.dtype) == (pixels.shape, np.uint8)
    np.testing.assert_array_equal(frame, np.asarray(image.convert("RGB")))


def test_sixteen_bits_keep_their_range(tmp_path):
    grey = np.array([[0, 257, 32896, 65535]], np.uint16)
    Image.fromarray(grey).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_frame(tmp_path / "a.png")[..., 1], [[0, 1, 128, 255]])


def test_first_frame_of_an_animation(tmp_path):
    red, blue = Image.new("RGB", (4, 4), "red"), Image.new("RGB", (4, 4), "blue")
    red.save(tmp_path / "a.gif", save_all=True, append_images=[blue])
    assert read_frame(tmp_path / "a.gif")[0, 0].tolist() == [255, 0, 0]


def damage(path, how):
    data = path.read_bytes()
    if how == "missing":
        path.unlink()
    else:
        path.write_bytes({"empty": b"", "truncated": data[: len(data) // 2], "text": b"not an image"}[how])


DAMAGES = ["missing", "empty", "truncated", "text"]


@pytest.mark.parametrize("how", DAMAGES)
def test_broken_image(tmp_path, pixels, how):
    Image.fromarray(np.tile(pixels, (8, 8, 1))).save(tmp_path / "a.jpg")
    damage(tmp_path / "a.jpg", how)
    with pytest.raises(BrokenImage, match=r"a\.jpg"):
        read_frame(tmp_path / "a.jpg")
    assert issubclass(BrokenImage, OSError)


@pytest.fixture
def tracklet(tmp_path):
    """Ten frames, each of the grey value 20 x its position, of a size of its own."""
    folder = tmp_path / "0001" / "ir" / "D4"
    folder.mkdir(parents=True)
    for index in range(10):
        Image.new("RGB", (40 + index, 80), (20 * index,) * 3).save(folder / f"{index}.jpg")
    return Tracklet(1, 4, Modality.INFRARED, str(tmp_path), tuple(f"0001/ir/D4/{i}.jpg" for i in range(10)))


def shown(frames):
    return [round(float(frame.mean()) / 20) for frame in frames]


def test_read_clip(tracklet):
    frames, used, replaced = read_clip(tracklet, np.array([0, 4, 9, 9]))
    assert shown(frames) == used == [0, 4, 9, 9]
    assert [frame.shape for frame in frames] == [(80, 40, 3), (80, 44, 3), (80, 49, 3), (80, 49, 3)]
    assert replaced == 0


@pytest.mark.parametrize("how", DAMAGES)
def test_nearest_good_neighbour(tmp_path, tracklet, caplog, how):
    for index in (0, 1, 4, 5, 9):
        damage(tmp_path / "0001" / "ir" / "D4" / f"{index}.jpg", how)
    for _ in range(3):
        frames, used, replaced = read_clip(tracklet, [0, 1, 2, 4, 5, 9, 9])
        assert shown(frames) == used == [2, 2, 2, 3, 6, 8, 8]
        assert replaced == 6
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 5  # once a file, not once a clip
    assert "4.jpg" in caplog.text


def test_of_two_as_near_the_earlier_one(tmp_path, tracklet):
    damage(tmp_path / "0001" / "ir" / "D4" / "4.jpg", "empty")
    assert read_clip(tracklet, [4])[1] == [3]


def test_each_candidate_at_most_once(tracklet, monkeypatch):
    tried = []

    def broken(path):
        tried.append(path)
        raise BrokenImage(path)

    monkeypatch.setattr(images, "read_frame", broken)
    with pytest.raises(UserError, match="none of the 10 frames") as error:
        read_clip(tracklet, range(10))
    assert "0001/ir/D4" in str(error.value)
    assert sorted(tried) == [tracklet.path(i) for i in range(10)]
