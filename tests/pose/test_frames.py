import pytest

from fastreid_star.data.datasets.synthetic import Track, frame_paths, write_info_files
from fastreid_star.errors import UserError
from fastreid_star.pose.frames import Frames, frames_of_dataset, frames_of_folder
from fastreid_star.structures import Modality


def touch(folder, *names):
    for name in names:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()


def test_folder_in_natural_order_with_keys_without_suffix(tmp_path):
    touch(tmp_path, "b/10.jpg", "b/2.JPG", "a1/x.png", "a10/1.jpg", "a2/1.webp", "0.bmp")
    touch(tmp_path, "a1/readme.txt", "a1/.hidden.jpg", ".cache/1.jpg")
    frames = frames_of_folder(tmp_path)
    assert frames.keys == ["0", "a1/x", "a2/1", "a10/1", "b/2", "b/10"]
    assert frames.paths == ["0.bmp", "a1/x.png", "a2/1.webp", "a10/1.jpg", "b/2.JPG", "b/10.jpg"]
    assert frames.path(4) == str(tmp_path / "b/2.JPG")
    assert frames.tracklets() == [[0], [1], [2], [3], [4, 5]]


def test_refusals(tmp_path):
    with pytest.raises(UserError, match="there is no such folder"):
        frames_of_folder(tmp_path / "none")
    with pytest.raises(UserError, match="no image"):
        frames_of_folder(tmp_path)
    touch(tmp_path, "a/1.jpg", "a/1.png")
    with pytest.raises(UserError, match=r"a/1\.(jpg|png) and a/1\.(jpg|png) have the same key"):
        frames_of_folder(tmp_path)
    with pytest.raises(UserError, match="--images"):
        frames_of_dataset("Market1501", "datasets")
    with pytest.raises(UserError, match="HITSZVCM"):
        frames_of_dataset("HITSZVMC", "datasets")


def test_dataset_every_frame_once_short_tracklets_too(tmp_path):
    train = [Track(1, Modality.INFRARED, 2, 3), Track(1, Modality.VISIBLE, 1, 12)]
    test = [Track(4, Modality.VISIBLE, 1, 12), Track(4, Modality.INFRARED, 3, 1)]
    write_info_files(tmp_path / "HITSZ-VCM" / "info", train, test)
    for split, tracks in (("Train", train), ("Test", test)):
        for names in frame_paths(tracks):
            touch(tmp_path / "HITSZ-VCM" / split, *names)
    frames = frames_of_dataset("HITSZVCM", str(tmp_path))
    assert len(frames) == len(set(frames.keys)) == 3 + 12 + 12 + 1
    assert {"0001/ir/D2/3", "0004/ir/D3/1"} <= set(frames.keys)
    assert [len(rows) for rows in frames.tracklets()] == [3, 12, 1, 12], "as they are listed"
    place = list(frames.keys).index("0004/rgb/D1/12")
    assert frames.path(place) == str(tmp_path / "HITSZ-VCM/Test/0004/rgb/D1/12.jpg")


def test_digest_tells_lists_apart():
    lists = (["a", "b"], ["b", "a"], ["ab"], ["a\nb"], ["a"])
    assert len({Frames("r", keys, keys).digest() for keys in lists}) == 5
    assert Frames("x", ["a"], ["1.jpg"]).digest() == Frames("y", ["a"], ["2.jpg"]).digest()
