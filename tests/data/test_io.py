"""Reading images, videos and lists, sound and damaged."""

import errno
import io as python_io
import os
import re

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from fastreid_star.data import io
from fastreid_star.data.io import (
    BrokenImage,
    LostImage,
    as_array,
    explain_missing,
    read_frame,
    read_image,
    read_json,
    read_lines,
    read_video,
    to_rgb,
)
from fastreid_star.errors import UserError


@pytest.fixture
def pixels():
    rows, columns = np.mgrid[:12, :20]
    return np.stack([rows * 20, columns * 12, (rows + columns) * 7], axis=-1).astype(np.uint8)


def encoded(image, kind, **options):
    buffer = python_io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


# --- images ---


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "LA", "RGBA", "1", "CMYK"])
def test_modes(tmp_path, pixels, mode):
    image = Image.fromarray(pixels).convert(mode)
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    image.save(path)
    frame = read_frame(path)
    assert (frame.shape, frame.dtype) == (pixels.shape, np.uint8)
    np.testing.assert_array_equal(frame, np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "WEBP"])
def test_formats_are_recognized_by_content(tmp_path, pixels, kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    (tmp_path / "a.jpg").write_bytes(encoded(Image.fromarray(pixels), kind, **options))
    np.testing.assert_array_equal(read_frame(tmp_path / "a.jpg"), pixels)


@pytest.mark.parametrize(("kind", "order"), [("PNG", "<u2"), ("TIFF", "<u2"), ("TIFF", ">u2")])
@pytest.mark.parametrize(("lowest", "highest"), [(7250, 7640), (0, 65535), (3, 3)])
def test_sixteen_bits_are_stretched_to_eight(tmp_path, kind, order, lowest, highest):
    """The raw counts of an infrared camera, and values that fill the 16 bits."""
    ramp = np.linspace(lowest, highest, 2000).round().astype(order).reshape(40, 50)
    ramp[0, 0], ramp[-1, -1] = 0, 65535  # a dead and a hot pixel
    (tmp_path / "a.png").write_bytes(encoded(Image.fromarray(ramp), kind))
    with np.errstate(all="raise"):
        gray = read_frame(tmp_path / "a.png")[..., 1].astype(int).ravel()[1:-1]
    # hand-computed: 1 % and 99 % of the ramp are at the steps 20 and 1979
    expected = np.clip((np.arange(1, 1999) - 20) / (1979 - 20), 0, 1) * 255
    np.testing.assert_allclose(gray, expected if highest > lowest else 0, atol=1.5)


def test_transparency_is_dropped(tmp_path):
    Image.new("RGBA", (1, 1), (10, 20, 30, 0)).save(tmp_path / "a.png")
    assert read_frame(tmp_path / "a.png").tolist() == [[[10, 20, 30]]]


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "MPO"])
def test_the_first_picture_of_an_animation(tmp_path, kind):
    Image.init()
    if kind not in Image.SAVE_ALL:
        pytest.skip(f"this Pillow writes no {kind}")
    red, blue = Image.new("RGB", (4, 4), "red"), Image.new("RGB", (4, 4), "blue")
    (tmp_path / "a.jpg").write_bytes(encoded(red, kind, save_all=True, append_images=[blue]))
    np.testing.assert_allclose(read_frame(tmp_path / "a.jpg")[0, 0], [255, 0, 0], atol=2)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, pixels, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
        np.testing.assert_array_equal(as_array(image), expected)
        assert image.size == (20, 12), "the given image is not changed"
    np.testing.assert_array_equal(read_frame(tmp_path / "a.png"), expected)


BROKEN = {
    "empty": b"",
    "text": b"not an image",
    "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n",
    "floats": encoded(Image.fromarray(np.zeros((2, 2), np.float32)), "TIFF"),
    "half": encoded(Image.effect_noise((64, 64), 50), "JPEG")[:800],
}


@pytest.mark.parametrize("what", [*BROKEN, "missing", "folder"])
def test_broken_images(tmp_path, what):
    path = tmp_path / "a.jpg"
    if what in BROKEN:
        path.write_bytes(BROKEN[what])
    elif what == "folder":
        path.mkdir()
    with pytest.raises(BrokenImage, match=r"a\.jpg: ") as error:
        read_frame(path)
    assert type(error.value) is BrokenImage
    assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF"])
def test_a_truncated_image_is_broken_or_whole(tmp_path, kind):
    """If only bytes after the pixels are missing, every pixel is as before; never other pixels."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (12, 8, 3), np.uint8))
    whole, path = encoded(image, kind), tmp_path / "a.jpg"
    path.write_bytes(whole)
    expected, broken = read_frame(path), 0
    lengths = range(0, len(whole), 5)
    for length in lengths:
        path.write_bytes(whole[:length])
        try:
            np.testing.assert_array_equal(read_frame(path), expected)
        except BrokenImage:
            broken += 1
    assert broken >= len(lengths) - 5


def failing_with(number):
    def failing(path):
        raise OSError(number, os.strerror(number), path)

    return failing


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES])
def test_a_failing_disk_is_not_a_broken_image(monkeypatch, number):
    monkeypatch.setattr(io, "read_bytes", failing_with(number))
    with pytest.raises(LostImage, match=rf"a\.jpg: {os.strerror(number)}$"):
        read_frame("a.jpg")


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_a_limit_of_the_machine_is_not_a_broken_image(monkeypatch, number):
    monkeypatch.setattr(io, "read_bytes", failing_with(number))
    with pytest.raises(OSError, match=os.strerror(number)) as error:
        read_frame("a.jpg")
    assert not isinstance(error.value, BrokenImage)


# --- videos ---


def write_video(path, frames=10, fourcc="MJPG", size=(48, 32)):
    """Frame k has the RGB color (20 k, 120, 250 - 20 k)."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*fourcc), 10, size)
    for k in range(frames):  # OpenCV's order is BGR
        writer.write(np.full((size[1], size[0], 3), (250 - 20 * k, 120, 20 * k), np.uint8))
    writer.release()
    return path


def numbers(frames):
    """The number of each frame by its color; red and blue must agree."""
    red = [round(float(frame[..., 0].mean()) / 20) for frame in frames]
    assert red == [round((250 - float(frame[..., 2].mean())) / 20) for frame in frames]
    return red


@pytest.mark.parametrize(("name", "fourcc"), [("a.avi", "MJPG"), ("a.mp4", "mp4v")])
def test_frames_of_a_video_in_rgb(tmp_path, name, fourcc):
    path = write_video(tmp_path / name, fourcc=fourcc)
    frames, n = read_video(path)
    assert (numbers(frames), n) == (list(range(10)), 10)
    assert all(frame.shape == (32, 48, 3) and frame.flags.c_contiguous for frame in frames)
    frames, n = read_video(path, lambda n: [n - 1, 2, 2])
    assert (numbers(frames), n) == ([9, 2, 2], 10)


def test_a_video_of_16_bits_gives_counts(tmp_path):
    """OpenCV's own conversion would give the gray levels 27 to 29."""
    kind = [cv2.VIDEOWRITER_PROP_DEPTH, cv2.CV_16U, cv2.VIDEOWRITER_PROP_IS_COLOR, 0]
    path, ffv1 = str(tmp_path / "a.mkv"), cv2.VideoWriter_fourcc(*"FFV1")
    writer = cv2.VideoWriter(path, cv2.CAP_FFMPEG, ffv1, 10, (16, 32), kind)
    counts = np.linspace(7000, 7400, 16 * 32).reshape(32, 16).astype(np.uint16)
    for k in range(3):
        writer.write(counts + np.uint16(k))
    writer.release()
    frames, n = read_video(path, lambda n: [0, 2])
    assert n == 3
    np.testing.assert_array_equal(frames, [counts, counts + 2])


def test_frames_that_cannot_be_decoded_do_not_count(tmp_path, caplog):
    path = write_video(tmp_path / "a.avi")
    data = bytearray(path.read_bytes())
    starts = [found.start() for found in re.finditer(b"\xff\xd8\xff", data)]
    for frame in (4, 5, 6):  # nothing but zeros is left of these
        end = starts[frame + 1] - 8
        data[starts[frame] : end] = bytes(end - starts[frame])
    path.write_bytes(data)
    frames, n = read_video(path)
    assert (numbers(frames), n) == ([0, 1, 2, 3, 7, 8, 9], 7)
    assert "7 of its 10 frames" in caplog.text


def test_a_truncated_video(tmp_path, caplog):
    path = write_video(tmp_path / "a.avi")
    path.write_bytes(path.read_bytes()[:-1500])
    frames, n = read_video(path, lambda n: [0, n - 1])
    assert 2 < n < 9
    assert numbers(frames) == [0, n - 1]
    assert f"{n} of its 10 frames" in caplog.text


def test_no_video(tmp_path):
    with pytest.raises(UserError, match=r"none\.mp4 does not exist"):
        read_video(tmp_path / "none.mp4")
    (tmp_path / "text.mp4").write_bytes(b"no video")
    for path in (tmp_path / "text.mp4", write_video(tmp_path / "a.avi", frames=0)):
        with pytest.raises(UserError, match=rf"{path.name} has no decodable frame"):
            read_video(path)


# --- text ---


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        (b"a b\n\nc\n", ["a b", "", "c"]),
        (b"\xef\xbb\xbfa\r\nb \t\r\n\r\n", ["a", "b"]),
        (b"a\rb\r", ["a", "b"]),
        ("1\u2028\u00e9".encode(), ["1\u2028\u00e9"]),
        (b"", []),
        (b" \n\t\n", []),
    ],
)
def test_lines(tmp_path, data, lines):
    (tmp_path / "a.txt").write_bytes(data)
    assert read_lines(tmp_path / "a.txt") == lines


def test_files_that_are_not_text(tmp_path):
    for data in ("a\nb".encode("utf-16"), b"a\nb\xe9\n"):
        (tmp_path / "a.txt").write_bytes(data)
        with pytest.raises(UserError, match=r"a\.txt is not UTF-8 text"):
            read_lines(tmp_path / "a.txt")
    for path in (tmp_path / "none.txt", tmp_path):
        with pytest.raises(UserError, match="cannot be read"):
            read_lines(path)


def test_json(tmp_path):
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": [1, "\xc3\xa9"]}\r\n')
    assert read_json(tmp_path / "a.json") == {"a": [1, "\u00e9"]}
    (tmp_path / "a.json").write_bytes(b'{"a": [1')
    with pytest.raises(UserError, match=r"a\.json cannot be read: .*line 1"):
        read_json(tmp_path / "a.json")


def test_explain_missing(tmp_path, monkeypatch):
    place = tmp_path / "0001" / "IR"
    place.mkdir(parents=True)
    image = str(tmp_path / "0001" / "ir" / "1.jpg")
    assert explain_missing(image).endswith(f"ir does not exist, {tmp_path}/0001 holds IR")
    image = str(place / "1.jpg")
    assert explain_missing(image) == f"{image} does not exist, {place} holds nothing"
    for number in range(6):
        (place / f"000{number}.jpg").touch()
    assert explain_missing(image).endswith("holds 0000.jpg, 0001.jpg, 0002.jpg, 0003.jpg, ...")
    monkeypatch.setattr(os, "listdir", failing_with(errno.EACCES))
    assert explain_missing(image) == f"{image} cannot be found: Permission denied"


def test_the_frames_of_a_clip_are_scaled_together(tmp_path):
    """A dark and a bright frame keep their difference; frames of 8 bits are not changed."""
    dark, bright = np.full((2, 50), 1000, np.uint16), np.full((2, 50), 3000, np.uint16)
    color = np.full((2, 2, 3), 7, np.uint8)
    frames = to_rgb([dark, color, bright])
    assert [frame[0, 0].tolist() for frame in frames] == [[0] * 3, [7] * 3, [255] * 3]
    frames = to_rgb([dark, color, bright], [2000, 4000])
    assert [frame[0, 0, 0] for frame in frames] == [0, 7, 128]
    Image.fromarray(bright).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), bright)
