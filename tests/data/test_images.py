import errno
import io
import logging
import os
import resource
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, seed, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from fastreid_star.data import images
from fastreid_star.data.clips import segment_indices
from fastreid_star.data.contents import read_bytes
from fastreid_star.data.images import BrokenImage, LostImage, as_rgb, read_clip, read_frame
from fastreid_star.data.transforms import Clip, Resize
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
    gray = np.array([[0, 257, 32896, 65535]], np.uint16)
    Image.fromarray(gray).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_frame(tmp_path / "a.png")[..., 1], [[0, 1, 128, 255]])


def test_what_lies_beyond_sixteen_bits_is_black_and_white(tmp_path):
    Image.fromarray(np.array([[-300, 0, 65535, 1_000_000]], np.int32)).save(tmp_path / "a.tif")
    np.testing.assert_array_equal(read_frame(tmp_path / "a.tif")[..., 1], [[0, 0, 255, 255]])


def test_first_frame_of_an_animation(tmp_path):
    red, blue = Image.new("RGB", (4, 4), "red"), Image.new("RGB", (4, 4), "blue")
    red.save(tmp_path / "a.gif", save_all=True, append_images=[blue])
    assert read_frame(tmp_path / "a.gif")[0, 0].tolist() == [255, 0, 0]


def damage(path, how):
    data = path.read_bytes()
    if how == "missing":
        path.unlink()
    else:
        path.write_bytes(
            {"empty": b"", "truncated": data[: len(data) // 2], "text": b"not an image"}[how]
        )


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
    """Ten frames, each of the gray value 20 x its position, of a size of its own."""
    folder = tmp_path / "0001" / "ir" / "D4"
    folder.mkdir(parents=True)
    for index in range(10):
        Image.new("RGB", (40 + index, 80), (20 * index,) * 3).save(folder / f"{index}.jpg")
    return Tracklet(
        1, 4, Modality.INFRARED, str(tmp_path), tuple(f"0001/ir/D4/{i}.jpg" for i in range(10))
    )


def shown(frames):
    return [round(float(frame.mean()) / 20) for frame in frames]


def test_read_clip(tracklet):
    frames, used, replaced = read_clip(tracklet, np.array([0, 4, 9, 9]))
    assert shown(frames) == used == [0, 4, 9, 9]
    assert [frame.shape for frame in frames] == [(80, 40, 3), (80, 44, 3), (80, 49, 3), (80, 49, 3)]
    assert replaced == 0


@pytest.mark.parametrize("how", DAMAGES)
def test_nearest_good_neighbor(tmp_path, tracklet, caplog, how):
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


@pytest.mark.parametrize("only", [0, 9])
def test_the_ends_of_a_tracklet_stand_in_too(tmp_path, tracklet, only):
    for index in set(range(10)) - {only}:
        damage(tmp_path / "0001" / "ir" / "D4" / f"{index}.jpg", "empty")
    assert read_clip(tracklet, [0, 5, 9])[1:] == ([only] * 3, 2)


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


# --- what a file may hold ----------------------------------------------------------------------------------------


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_of(width, height, pixels=b""):
    """A PNG by hand, of a size that Pillow would not write."""

    def chunk(name, data):
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(pixels))
        + chunk(b"IEND", b"")
    )


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM"])
def test_truncated_at_any_byte(tmp_path, kind, amount):
    """Broken, or, where only what ends the file is missing, every pixel as it was: never another picture."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (12, 8, 3), np.uint8))
    whole, path = encoded(image, kind), tmp_path / "a.jpg"
    path.write_bytes(whole)
    expected, broken = read_frame(path), []
    tried = sorted({*range(0, len(whole), amount(5, 1)), *range(len(whole) - 30, len(whole))})
    for length in tried:
        path.write_bytes(whole[:length])
        try:
            np.testing.assert_array_equal(read_frame(path), expected)
        except BrokenImage:
            broken.append(length)
    assert broken[: len(tried) - 20] == tried[:-20]


@pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF", "TIFF", "PPM", "WEBP"])
def test_a_kind_is_told_by_what_is_in_the_file(tmp_path, pixels, kind):
    image = Image.fromarray(pixels)
    (tmp_path / "a.jpg").write_bytes(
        encoded(image, kind, **({"lossless": True} if kind == "WEBP" else {}))
    )
    expected = (
        image.convert("P", palette=Image.Palette.ADAPTIVE).convert("RGB")
        if kind == "GIF"
        else image
    )
    if kind == "GIF":  # 256 colors
        np.testing.assert_allclose(read_frame(tmp_path / "a.jpg"), np.asarray(expected), atol=40)
    else:
        np.testing.assert_array_equal(read_frame(tmp_path / "a.jpg"), pixels)


def test_no_program_is_started_for_a_picture(tmp_path, monkeypatch):
    """Pillow hands PostScript to Ghostscript."""
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    (tmp_path / "a.jpg").write_bytes(eps)
    Image.open(tmp_path / "a.jpg").close()  # Pillow would
    with pytest.raises(BrokenImage, match=r"a\.jpg: it is no image of a known kind \(JPEG, PNG"):
        read_frame(tmp_path / "a.jpg")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("size", [(20_000, 20_000), (9000, 9000), (1 << 16, 1 << 11)])
def test_a_header_that_promises_gigabytes(tmp_path, size):
    rows = (1 + 3 * size[0]) * size[1]
    (tmp_path / "a.png").write_bytes(png_of(*size, bytes(min(rows, 1 << 20))))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(BrokenImage, match=r"a\.png: .*(\d pixels|pixels\))"):
        read_frame(tmp_path / "a.png")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 << 10, "in kB"


def test_a_file_of_gigabytes(tmp_path):
    with open(tmp_path / "a.jpg", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(BrokenImage, match="it has 1,099,511,627,776 bytes"):
        read_frame(tmp_path / "a.jpg")


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 3000), (3000, 1)])
def test_extreme_shapes_are_read_and_resized(tmp_path, width, height):
    row = b"\0" + b"\x0a\x14\x1e" * width
    (tmp_path / "a.png").write_bytes(png_of(width, height, row * height))
    frame = read_frame(tmp_path / "a.png")
    assert frame.shape == (height, width, 3)
    clip = Resize((16, 8))(
        Clip([frame], np.ones((1, 17, 3), np.float32), np.ones(1, bool)), np.random.default_rng(0)
    )
    assert clip.frames.shape == (1, 16, 8, 3)
    assert (clip.frames == [10, 20, 30]).all()
    assert np.isfinite(clip.joints).all()


def test_an_image_without_pixels(tmp_path):
    (tmp_path / "a.png").write_bytes(png_of(0, 5))
    with pytest.raises(BrokenImage, match=r"a\.png"):
        read_frame(tmp_path / "a.png")


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF", "MPO"])
def test_of_several_pictures_in_a_file_the_first(tmp_path, kind):
    red, blue = Image.new("RGB", (4, 4), "red"), Image.new("RGB", (4, 4), "blue")
    (tmp_path / "a.jpg").write_bytes(encoded(red, kind, save_all=True, append_images=[blue]))
    np.testing.assert_allclose(read_frame(tmp_path / "a.jpg")[0, 0], [255, 0, 0], atol=2)


@pytest.mark.parametrize(("mode", "order"), [("PNG", "<u2"), ("TIFF", "<u2"), ("TIFF", ">u2")])
def test_sixteen_bits_of_any_order(tmp_path, mode, order):
    gray = np.array([[0, 257, 32896, 65535]], np.uint16).astype(order)
    (tmp_path / "a.png").write_bytes(encoded(Image.fromarray(gray), mode))
    np.testing.assert_array_equal(read_frame(tmp_path / "a.png")[..., 1], [[0, 1, 128, 255]])


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
def test_transparency_is_dropped_and_not_drawn_on_a_color(tmp_path):
    palette = Image.new("P", (3, 1))
    palette.putpalette([255, 0, 0, 0, 255, 0])
    palette.putpixel((1, 0), 1)
    for transparency in (1, b"\x00\x80"):
        palette.save(tmp_path / "a.png", transparency=transparency)
        assert read_frame(tmp_path / "a.png").tolist() == [[[255, 0, 0], [0, 255, 0], [255, 0, 0]]]
    Image.new("RGBA", (1, 1), (10, 20, 30, 0)).save(tmp_path / "a.png")
    assert read_frame(tmp_path / "a.png").tolist() == [[[10, 20, 30]]]


def test_cmyk_jpeg(tmp_path):
    Image.new("RGB", (8, 8), (200, 100, 50)).convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    np.testing.assert_allclose(read_frame(tmp_path / "a.jpg")[4, 4], [200, 100, 50], atol=6)


def test_floats_have_no_white(tmp_path):
    Image.fromarray(np.array([[0, 0.5, 1]], np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(BrokenImage, match=r"a\.tif: its pixels are floats: save 8 or 16 bits"):
        read_frame(tmp_path / "a.tif")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_as_pillow_has_it_and_the_given_image_stays(
    tmp_path, pixels, orientation
):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
        np.testing.assert_array_equal(as_rgb(image), expected)
        assert image.size == (20, 12)
        np.testing.assert_array_equal(as_rgb(image), expected)
    np.testing.assert_array_equal(read_frame(tmp_path / "a.png"), expected)


# --- what a path may lead to -------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["folder", "pipe", "loop", "null", "long"])
def test_what_is_no_file_is_broken(tmp_path, what):
    path = {"null": f"{tmp_path}/a\0.jpg", "long": f"{tmp_path}/{'x' * 5000}.jpg"}.get(
        what, f"{tmp_path}/a.jpg"
    )
    if what == "folder":
        os.mkdir(path)
    elif what == "pipe":  # a reader would wait for ever
        os.mkfifo(path)
    elif what == "loop":
        os.symlink("a.jpg", path)
    with pytest.raises(BrokenImage) as error:
        read_frame(path)
    assert type(error.value) is BrokenImage
    assert len(str(error.value).splitlines()) == 1


def test_a_link_to_an_image_on_another_disk(tmp_path, pixels):
    (tmp_path / "disk").mkdir()
    Image.fromarray(pixels).save(tmp_path / "disk" / "a.png")
    (tmp_path / "a.png").symlink_to("disk/a.png")
    np.testing.assert_array_equal(read_frame(tmp_path / "a.png"), pixels)


class Disk:
    """Makes reading some files fail, so many times or always."""

    def __init__(self, monkeypatch):
        self.faults, self.pauses = {}, []
        monkeypatch.setattr(images, "read_bytes", self.read)
        monkeypatch.setattr(images.time, "sleep", self.pauses.append)

    def read(self, path, most):
        number, times = self.faults.get(os.path.basename(path), (0, 0))
        if times > 0:
            self.faults[os.path.basename(path)] = number, times - 1
            raise OSError(number, os.strerror(number), path)
        return read_bytes(path, most)


@pytest.fixture
def disk(monkeypatch):
    return Disk(monkeypatch)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES, errno.ETIMEDOUT])
def test_a_disk_that_fails_for_one_frame(tracklet, disk, number, caplog):
    """Replaced and counted as any other, without waiting: training goes on."""
    disk.faults = {"4.jpg": (number, 9)}
    with pytest.raises(LostImage, match=rf"4\.jpg: {os.strerror(number)}$"):
        read_frame(tracklet.path(4))
    assert read_clip(tracklet, [3, 4])[1:] == ([3, 3], 1)
    assert "4.jpg" in caplog.text
    assert disk.pauses == []


def test_a_disk_that_is_away_for_a_moment(tracklet, disk, caplog):
    disk.faults = {f"{index}.jpg": (errno.ESTALE, 2) for index in range(10)}
    frames, used, replaced = read_clip(tracklet, [0, 4, 9])
    assert shown(frames) == used == [0, 4, 9]
    assert replaced == 0
    assert disk.pauses == list(images.PAUSES[:2])
    assert "like all frames of its tracklet: tried again in 1 s" in caplog.text


def test_a_disk_that_stays_away(tracklet, disk):
    disk.faults = {f"{index}.jpg": (errno.EIO, 99) for index in range(9)} | {
        "9.jpg": (errno.ENOENT, 99)
    }
    with pytest.raises(
        UserError, match=r"none of the 10 frames .*: check the disk and the files' rights"
    ) as error:
        read_clip(tracklet, [0, 4, 9])
    assert disk.pauses == list(images.PAUSES)
    assert len(str(error.value).splitlines()) == 1


def test_a_tracklet_of_which_nothing_can_be_read_is_named(tracklet, disk):
    for index in range(10):
        damage(Path(tracklet.path(index)), "empty")
    with pytest.raises(UserError) as error:
        read_clip(tracklet, [5])
    assert str(error.value) == (
        f"none of the 10 frames of the tracklet from {tracklet.path(0)} to 9.jpg can be read ({tracklet.path(0)}: the "
        "file is empty): restore the images, or take the tracklet out of the lists"
    )
    assert disk.pauses == [], "no disk brings these back"


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_a_machine_at_its_limit_is_no_broken_image(tracklet, disk, number):
    disk.faults = {"4.jpg": (number, 9)}
    with pytest.raises(OSError, match=os.strerror(number)) as error:
        read_clip(tracklet, [4])
    assert not isinstance(error.value, BrokenImage)


def test_a_tracklet_of_one_frame(tracklet):
    single = replace(tracklet, frames=tracklet.frames[7:8])
    frames, used, replaced = read_clip(single, segment_indices(1, 4))
    assert (shown(frames), used, replaced) == ([7] * 4, [0] * 4, 0)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")
@seed(0)
@settings(max_examples=300, deadline=None, database=None)
@given(
    st.sampled_from(["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM"]),
    st.lists(st.tuples(st.integers(0, 1 << 12), st.binary(max_size=8)), min_size=1, max_size=4),
)
def test_damaged_bytes_are_a_picture_or_broken(tmp_path_factory, kind, changes):
    data = bytearray(
        encoded(Image.fromarray(np.arange(8 * 6 * 3, dtype=np.uint8).reshape(8, 6, 3)), kind)
    )
    for place, new in changes:
        data[place % len(data) : place % len(data) + len(new)] = new
    path = tmp_path_factory.getbasetemp() / "damaged.jpg"
    path.write_bytes(data)
    try:
        frame = read_frame(path)
    except BrokenImage as error:
        message = str(error)
        assert message.startswith(f"{path}: ")
        assert len(message.splitlines()) == 1
    else:
        assert frame.dtype == np.uint8
        assert frame.shape[2:] == (3,)
        assert frame.size
