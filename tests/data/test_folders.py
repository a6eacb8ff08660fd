"""Tracklets found in folders: order, names, modality, skeleton keys, and what is refused."""

import cv2
import numpy as np
import pytest

from fastreid_star.data.folders import natural_key, tracklets_at, tracklets_in
from fastreid_star.data.skeletons import SkeletonStore, write_skeleton_store
from fastreid_star.errors import UserError
from fastreid_star.structures import Modality


def make(root, *files):
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(b"")
    return root


def test_natural_order():
    names = ["10.jpg", "2.jpg", "1.jpg", "b2c10", "b2c9", "b10", "a"]
    assert sorted(names, key=natural_key) == [
        "1.jpg",
        "2.jpg",
        "10.jpg",
        "a",
        "b2c9",
        "b2c10",
        "b10",
    ]


def test_every_folder_with_images_is_a_tracklet(tmp_path):
    make(
        tmp_path,
        *(f"crops/rgb/p{p}/{k}.jpg" for p in (1, 2, 10) for k in (1, 2, 10)),
        "crops/ir/p1/a.PNG",
    )
    make(
        tmp_path,
        "crops/rgb/p1/notes.txt",
        "crops/rgb/p1/.hidden.jpg",
        "crops/.thumbs/1.jpg",
        "crops/Infrared/x/1.bmp",
    )
    tracklets = tracklets_in(tmp_path / "crops")
    assert [tracklet.name for tracklet in tracklets] == [
        "Infrared/x",
        "ir/p1",
        "rgb/p1",
        "rgb/p2",
        "rgb/p10",
    ]
    assert [tracklet.modality for tracklet in tracklets] == [Modality.INFRARED] * 2 + [
        Modality.VISIBLE
    ] * 3
    folder = tmp_path / "crops" / "rgb" / "p1"
    assert tracklets[2].frames == [str(folder / f"{k}.jpg") for k in (1, 2, 10)]
    assert tracklets[2].skeletons is tracklets[2].keys is None


def test_the_nearest_folder_tells_the_modality_and_a_given_one_comes_first(tmp_path):
    make(tmp_path, "ir/sub/visible/p/1.jpg", "ir/q/1.jpg")
    both = [tracklet.modality for tracklet in tracklets_in(tmp_path / "ir")]
    assert both == [Modality.INFRARED, Modality.VISIBLE]  # q, sub/visible/p
    assert {tracklet.modality for tracklet in tracklets_in(tmp_path / "ir", "visible")} == {
        Modality.VISIBLE
    }
    # a folder above the given one counts too
    assert tracklets_in(tmp_path / "ir" / "q")[0].modality == Modality.INFRARED
    make(tmp_path, "other/q/1.jpg")
    with pytest.raises(UserError, match=r"the modality of .*other.q is unknown"):
        tracklets_in(tmp_path / "other" / "q")
    given = tracklets_in(tmp_path / "other" / "q", "infrared")
    assert [tracklet.name for tracklet in given] == ["q"]


def test_links_to_folders_are_followed(tmp_path):
    make(tmp_path, "disk/night/p1/1.jpg", "crops/rgb/p1/1.jpg")
    (tmp_path / "crops" / "ir").symlink_to(tmp_path / "disk" / "night")
    (tmp_path / "crops" / "rgb" / "all").symlink_to(tmp_path / "crops")  # not up, without end
    (tmp_path / "disk" / "night" / "p1" / "same").symlink_to(".")
    tracklets = tracklets_in(tmp_path / "crops")
    assert [(tracklet.name, tracklet.modality) for tracklet in tracklets] == [
        ("ir/p1", Modality.INFRARED),
        ("rgb/p1", Modality.VISIBLE),
    ]


def test_skeleton_keys_are_the_paths_below_the_folder(tmp_path):
    make(tmp_path, "crops/rgb/p1/1.jpg", "crops/rgb/p1/2.x.jpg", "crops/1.jpg")
    write_skeleton_store(tmp_path / "store", ["rgb/p1/1"], np.zeros((1, 17, 3)))
    store = SkeletonStore.open(tmp_path / "store")
    tracklets = tracklets_in(tmp_path / "crops", "visible", skeletons=store)
    assert [(tracklet.name, tracklet.keys) for tracklet in tracklets] == [
        ("crops", ["1"]),
        ("rgb/p1", ["rgb/p1/1", "rgb/p1/2.x"]),
    ]
    assert all(tracklet.skeletons is store for tracklet in tracklets)
    # a folder in that of the store, and one that holds it
    assert tracklets_in(tmp_path / "crops" / "rgb" / "p1", "visible", skeletons=store)[0].keys == [
        "rgb/p1/1",
        "rgb/p1/2.x",
    ]
    with pytest.raises(
        UserError,
        match=r"has none of 2 images of .*, such as crops/1: it was",
    ):
        tracklets_in(tmp_path, "visible", skeletons=store)


def test_folders_and_videos(tmp_path):
    make(tmp_path, "rgb/p1/1.jpg", "night/ir/b.mp4", "other/c.MOV")
    tracklets = tracklets_at([tmp_path / "rgb", tmp_path / "night" / "ir" / "b.mp4"])
    assert [(tracklet.name, tracklet.modality) for tracklet in tracklets] == [
        ("p1", Modality.VISIBLE),
        ("b.mp4", Modality.INFRARED),
    ]
    assert tracklets[1].is_video
    assert not tracklets[0].is_video
    assert tracklets_at([tmp_path / "other" / "c.MOV"], "visible")[0].modality == Modality.VISIBLE


def test_folders_of_videos_and_single_images(tmp_path):
    make(tmp_path, "night/thermal/b10.dav", "night/thermal/b2.h264", "night/.x/c.mp4", "lwir/1.jpg")
    make(tmp_path, "both/rgb/v.flv", "both/rgb/p1/1.jpg")
    found = tracklets_at([tmp_path / "night", tmp_path / "lwir" / "1.jpg", tmp_path / "both"])
    infrared, visible = Modality
    assert [(tracklet.name, tracklet.modality, tracklet.is_video) for tracklet in found] == [
        ("thermal/b2.h264", infrared, True),
        ("thermal/b10.dav", infrared, True),
        ("1.jpg", infrared, False),
        ("rgb/v.flv", visible, True),
        ("rgb/p1", visible, False),
    ]
    assert found[2].frames == [str(tmp_path / "lwir" / "1.jpg")]


@pytest.mark.parametrize(
    ("size", "scene"), [((96, 64), True), ((64, 64), False), ((32, 64), False)]
)
def test_a_video_of_whole_scenes_is_refused(tmp_path, size, scene):
    path = tmp_path / "a.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, size)
    for _ in range(3):
        writer.write(np.zeros((size[1], size[0], 3), np.uint8))
    writer.release()
    if scene:
        with pytest.raises(UserError, match=r"96 x 64 .*fastreid-star tracklets .*a\.avi"):
            tracklets_at([path], "visible")
    else:
        assert len(tracklets_at([path], "visible")) == 1


def test_what_is_refused(tmp_path):
    make(tmp_path, "rgb/p1/1.jpg", "ir/p1/1.jpg", "empty/readme.txt", "x.txt", "v.mp4")
    for message, paths, modality in (
        (r"no images in .*empty", ["empty"], None),
        (r"none is neither a folder of images, nor an image, nor a video", ["none"], None),
        (r"x\.txt is neither a folder of images, nor an image, nor", ["x.txt"], None),
        (r"first 'p1'", ["rgb", "ir"], None),
        (r"modality of .* unknown", ["v.mp4"], None),
        (r"modality 'green'", ["rgb"], "green"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            tracklets_at([tmp_path / path for path in paths], modality)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "names",
    [
        ("0002_c1s1_000451_03.jpg", "0007_c3s3_077419_03.jpg"),  # Market-1501
        ("0001_c2_f0046182.jpg", "0001_c5_f0051341.jpg"),  # DukeMTMC
        ("0001C1T0001F001.jpg", "0003C2T0001F001.jpg"),  # MARS
    ],
)
def test_a_folder_of_an_image_dataset_is_not_a_tracklet(tmp_path, names):
    make(tmp_path, *(f"rgb/bounding_box_test/{name}" for name in names))
    with pytest.raises(UserError, match="bounding_box_test holds images of 2 identities and cam"):
        tracklets_in(tmp_path / "rgb")
    # images of one person at one camera are a tracklet, whatever their names
    (tmp_path / "rgb" / "bounding_box_test" / names[1]).unlink()
    assert len(tracklets_in(tmp_path / "rgb")) == 1
