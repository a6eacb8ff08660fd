"""From videos that the tests draw to folders of crops."""

import json

import cv2
import numpy as np
import pytest

from fastreid_star.cli.main import run
from fastreid_star.data.folders import tracklets_at
from fastreid_star.data.io import read_frame
from fastreid_star.errors import UserError
from fastreid_star.structures import Modality
from fastreid_star.tracking.cut import inside
from fastreid_star.tracking.detectors import MotionDetector
from fastreid_star.tracking.follow import follow, intersection_over_union
from fastreid_star.tracking.people import extract_tracklets, frames_of, gray_levels, scenes

SIZE = (240, 160)  # width, height


def write_video(path, frames):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, SIZE)
    for frame in frames:
        writer.write(frame)
    writer.release()
    return path


def numbered(count=20):
    """Gray frames whose left half has the brightness 10 k in frame k, and whose right half is white."""
    frame = np.full((count, SIZE[1], SIZE[0], 3), 255, np.uint8)
    frame[:, :, : SIZE[0] // 2] = 10 * np.arange(1, count + 1)[:, None, None, None]
    return frame


def walkers(count=60):
    """A noisy room in which two dark figures cross, one above the other, and a car drives by below."""
    rng = np.random.default_rng(0)
    room = cv2.blur(rng.integers(90, 200, (SIZE[1], SIZE[0], 3), np.uint8), (7, 7))
    for k in range(count):
        frame = room.copy()
        for x, y, color in ((20 + 3 * k, 40, (20, 20, 30)), (210 - 3 * k, 100, (30, 10, 240))):
            cv2.ellipse(frame, (x, y), (7, 22), 0, 0, 360, color, -1)
        cv2.rectangle(frame, (4 * k, 140), (4 * k + 40, 155), (250, 250, 250), -1)
        yield cv2.add(frame, rng.integers(0, 4, frame.shape, np.uint8))


def tracks_file(folder, *lines):
    (folder / "tracks.txt").write_text("\n".join(lines))
    return folder / "tracks.txt"


def lines_of(track, frames, box):
    return [f"{frame},{track},{','.join(map(str, box))},0.75" for frame in frames]


def test_tracks_of_a_file(tmp_path, capsys):
    """Gaps, boxes outside of the frame, a short track, and a video that ends before its tracks."""
    video = write_video(tmp_path / "cam 1.avi", numbered())
    tracks = tracks_file(
        tmp_path,
        *lines_of(7, [*range(18, 0, -2), *range(19, 25)], (-10, 20, 50, 90)),  # 10 are in the video
        *lines_of(3, range(1, 6), (130, 20, 40, 80)),
        *lines_of(4, range(1, 21), (200, 20, 90, 100)),  # mostly outside
    )
    options = ["--tracks", tracks, "--modality", "infrared", "-o", tmp_path / "crops"]
    run("tracklets", video, *options, "--min-frames", 6)
    said = capsys.readouterr().out
    assert "1 tracklets with 11 crops" in said
    assert "1 tracks with too few crops, 20 boxes that are mostly outside of the frame" in said
    assert "4 boxes after the video's last frame, 20" in said

    folder = tmp_path / "crops" / "ir" / "cam 1_0007"
    numbers = [*range(2, 19, 2), 19, 20]
    assert sorted(file.name for file in folder.iterdir()) == [f"{n:06d}.jpg" for n in numbers]
    for number in numbers:
        crop = read_frame(folder / f"{number:06d}.jpg")
        assert crop.shape == (90, 40, 3)
        np.testing.assert_allclose(crop, 10 * number, atol=3)
    manifest = json.loads((tmp_path / "crops" / "ir" / "cam 1.json").read_text())
    assert manifest["tracklets"].keys() == {"cam 1_0007"}
    entry = manifest["tracklets"]["cam 1_0007"]
    assert entry["frames"] == numbers
    assert entry["boxes"] == [[0, 20, 40, 90]] * 11
    assert entry["scores"] == [0.75] * 11
    assert (manifest["video"], manifest["frames"]) == ("cam 1.avi", 20)
    assert (manifest["size"], manifest["modality"]) == ([*SIZE], "infrared")

    (tracklet,) = tracklets_at([tmp_path / "crops"])
    assert (tracklet.name, tracklet.modality) == ("ir/cam 1_0007", Modality.INFRARED)
    assert len(tracklet.images) == 11
    with pytest.raises(UserError, match=r"has tracklets of cam 1: .*-o"):
        run("tracklets", video, *options)
    (tmp_path / "crops" / "ir" / "cam 1.json").unlink()
    with pytest.raises(UserError, match=r"has tracklets of cam 1: .*-o"):
        run("tracklets", video, *options)  # by its folders
    (tmp_path / "crops" / "ir" / "cam 1_0007").rename(tmp_path / "crops" / "ir" / "cam 1_2_0007")
    run("tracklets", video, *options, "--min-frames", 6)  # that was of another video, cam 1_2


def test_nobody(tmp_path):
    video = write_video(tmp_path / "a.avi", numbered())
    tracks = tracks_file(tmp_path, *lines_of(1, range(1, 6), (0, 0, 40, 80)))
    with pytest.raises(UserError, match=r"a\.avi: no person has 12 crops \(1 tracks are shorter"):
        extract_tracklets([str(video)], tmp_path / "crops", "visible", tracks=str(tracks))
    assert list((tmp_path / "crops" / "rgb").iterdir()) == []
    (tmp_path / "b.avi").write_bytes(b"no video")
    with pytest.raises(UserError, match="b has no decodable frame"):
        extract_tracklets(
            [str(tmp_path / "b.avi")], tmp_path / "crops", "visible", tracks=str(tracks)
        )


def test_an_interrupted_call_leaves_nothing_and_is_repeated(tmp_path, monkeypatch):
    video = write_video(tmp_path / "a.avi", numbered())
    tracks = tracks_file(tmp_path, *lines_of(1, range(1, 16), (0, 0, 40, 80)))
    real, calls = cv2.imencode, []

    def interrupt(*args):
        calls.append(args)
        if len(calls) == 9:
            raise KeyboardInterrupt
        return real(*args)

    def extract():
        return extract_tracklets([str(video)], tmp_path / "crops", "ir", tracks=str(tracks))

    with monkeypatch.context() as patch:
        patch.setattr(cv2, "imencode", interrupt)
        with pytest.raises(KeyboardInterrupt):
            extract()
    assert list((tmp_path / "crops" / "ir").iterdir()) == []
    (tmp_path / "crops" / "ir" / ".a.unfinished").mkdir()  # as a killed process leaves it
    assert extract()[0].tracklets == {"a_0001": 15}


def test_scenes(tmp_path):
    for name in (
        "day/b.h264",
        "day/a2.flv",
        "day/a10.dav",
        "seq/2.png",
        "seq/10.png",
        "none/x.txt",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / name), np.full((8, 8, 3), 7)) if "seq" in name else (
            tmp_path / name
        ).touch()
    found = scenes([str(tmp_path / "day"), str(tmp_path / "seq"), str(tmp_path / "day/b.h264")])
    assert [path.name for path in found] == ["a2.flv", "a10.dav", "b.h264", "seq", "b.h264"]
    assert len(list(frames_of(tmp_path / "seq"))) == 2
    for wrong in ("none", "none/x.txt", "missing"):
        with pytest.raises(UserError, match="is no video, and no folder"):
            scenes([str(tmp_path / wrong)])
    with pytest.raises(UserError, match="one at a time"):
        extract_tracklets([str(tmp_path / "day")], tmp_path / "o", "ir", tracks="t.txt")
    with pytest.raises(UserError, match="have the name b: rename"):
        extract_tracklets([str(tmp_path / "day"), str(tmp_path / "day/b.h264")], tmp_path, "ir")


def test_inside_by_hand():
    assert inside(np.array([10.4, 20.6, 50, 100]), 100, 200) == (10, 21, 50, 100)
    assert inside(np.array([-20.0, 0, 20, 100]), 100, 200) == (0, 0, 20, 100), "exactly half"
    assert inside(np.array([-21.0, 0, 20, 100]), 100, 200) is None
    assert inside(np.array([120.0, 0, 160, 100]), 100, 200) is None
    assert inside(np.array([0.0, 0, 7, 100]), 100, 200) is None, "too narrow"


def test_motion_finds_upright_moving_regions():
    detect = MotionDetector(walkers())
    found = [detect(frame) for frame in walkers()]
    assert detect.describe()["detector"] == "motion"
    for k in (5, 20, 50):
        sizes = found[k][:, 2:4] - found[k][:, :2]
        assert (sizes[:, 0] < 30).all(), "the car is wider than high"
        people = found[k][sizes[:, 1] > 40]  # parts of the car may have another shape
        centers = sorted(((people[:, 0] + people[:, 2]) / 2).tolist())
        np.testing.assert_allclose(centers, sorted([20 + 3 * k, 210 - 3 * k]), atol=4)
        assert (people[:, 3] - people[:, 1] < 70).all()
        assert ((people[:, 4] > 0.3) & (people[:, 4] <= 1)).all()
    still = MotionDetector([next(walkers())] * 50)
    assert still(next(walkers())).shape == (0, 5)


def test_people_who_cross_are_two_tracklets(tmp_path):
    video = write_video(tmp_path / "room.avi", walkers())
    (cut,) = extract_tracklets([str(video)], tmp_path / "crops", "visible")
    assert len(cut.tracklets) == 2
    assert min(cut.tracklets.values()) >= 40
    colors = []
    for name in cut.tracklets:
        files = sorted((tmp_path / "crops" / "rgb" / name).iterdir())
        crops = [read_frame(file) for file in files]
        red = [crop[crop.shape[0] // 2, crop.shape[1] // 2, 0] > 120 for crop in crops]
        assert len(set(red)) == 1, "one person"
        colors.append(red[0])
    assert sorted(colors) == [False, True]
    manifest = json.loads((tmp_path / "crops" / "rgb" / "room.json").read_text())
    assert manifest["detector"] == "motion"


def test_overlap_by_hand():
    one = np.array([[0.0, 0, 10, 10], [20, 0, 30, 10]])
    other = np.array([[5.0, 0, 15, 10], [20, 0, 30, 10], [0, 0, 0, 0]])
    expected = [[50 / 150, 0, 0], [0, 1, 0]]
    np.testing.assert_allclose(intersection_over_union(one, other), expected)


def test_a_person_is_expected_where_the_motion_leads():
    """One walks 8 pixels a frame and is not seen in frames 6 to 9; another one comes later."""
    boxes = {n: [[8.0 * n, 0, 8.0 * n + 20, 50, 0.9]] for n in (*range(1, 6), *range(10, 15))}
    boxes[12].append([300.0, 0, 320, 50, 0.4])
    found = iter([np.array(boxes.get(n, [])).reshape(-1, 5) for n in range(1, 15)])
    (track,) = follow([np.zeros((1, 1, 3), np.uint8)] * 14, lambda frame: next(found))
    assert track.frames == (*range(1, 6), *range(10, 15))
    assert track.boxes[-1].tolist() == [112, 0, 132, 50]
    assert track.scores.tolist() == [0.9] * 10


def test_frames_of_16_bits_have_one_range(tmp_path):
    """A still scene of 7000 to 7400 counts, into which something warm comes: the scene stays as it is."""
    folder = tmp_path / "ir" / "night"
    folder.mkdir(parents=True)
    scene = np.linspace(7000, 7400, 64 * 48).reshape(64, 48).astype(np.uint16)
    for k in range(1, 61):
        frame = scene.copy()
        if k > 57:
            frame[:32, :24] = 9000
        cv2.imwrite(str(folder / f"{k}.png"), frame)
    low, high = gray_levels(folder)
    assert 7000 <= low < 7010
    assert high == 9000
    film = tmp_path / "film.mkv"
    kind = [cv2.VIDEOWRITER_PROP_DEPTH, cv2.CV_16U, cv2.VIDEOWRITER_PROP_IS_COLOR, 0]
    writer = cv2.VideoWriter(
        str(film), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*"FFV1"), 10, (48, 64), kind
    )
    for k in range(1, 61):
        writer.write(cv2.imread(str(folder / f"{k}.png"), cv2.IMREAD_UNCHANGED))
    writer.release()
    assert gray_levels(film) == (low, high)
    for one, other in zip(frames_of(film), frames_of(folder), strict=True):
        np.testing.assert_array_equal(one, other)
    first, *_, last = frames_of(folder, levels=(low, high))
    np.testing.assert_array_equal(first[32:], last[32:])
    assert first[-1, -1, 0] == round(255 * (7400 - low) / (9000 - low))
    tracks = tracks_file(tmp_path, *lines_of(1, range(1, 61), (0, 32, 40, 32)))
    extract_tracklets([str(folder)], tmp_path / "crops", "ir", tracks=str(tracks))
    crops = [read_frame(tmp_path / "crops/ir/night_0001" / f"{k:06d}.jpg") for k in (1, 60)]
    np.testing.assert_array_equal(*crops)
    assert gray_levels(tmp_path / "crops/ir/night_0001") == (), "8 bits stay as they are"


def test_a_damaged_frame_is_named(tmp_path):
    folder = tmp_path / "night"
    folder.mkdir()
    for k in range(3):
        cv2.imwrite(str(folder / f"{k}.png"), np.full((60, 40, 3), 7))
    (folder / "1.png").write_bytes((folder / "1.png").read_bytes()[:40])
    tracks = tracks_file(tmp_path, *lines_of(1, range(3), (0, 0, 20, 40)))
    with pytest.raises(UserError, match=r"1\.png: .*restore the frame"):
        extract_tracklets([str(folder)], tmp_path / "crops", "ir", tracks=str(tracks))
    with pytest.raises(UserError, match=r"1\.png: .*restore the frame"):
        list(frames_of(folder))
