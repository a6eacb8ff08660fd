import numpy as np
import pytest

from fastreid_star.benchmark.parts import store
from fastreid_star.data.skeletons import FlatStore


def compare(options):
    return {
        figure.name: figure
        for figure in store.compare(options, frames=480, hdf5_frames=96, clips=50)
    }


def test_figures(options):
    figures = compare(options)
    flat, hdf5 = figures["store_clips_per_s"], figures["store_clips_per_s_over_hdf5"]
    assert flat.value == hdf5.value
    assert flat.limit != hdf5.limit
    assert "480 frames" in flat.note
    assert "96 frames" in hdf5.note


def test_a_store_that_gives_other_skeletons_is_not_timed(options, monkeypatch):
    read = FlatStore.read

    def wrong(self, keys):
        joints, present = read(self, keys)
        return joints[::-1], present

    monkeypatch.setattr(FlatStore, "read", wrong)
    with pytest.raises(RuntimeError, match="gives other skeletons than were stored"):
        compare(options)


def test_keys_and_clips():
    rng = np.random.default_rng(0)
    keys, joints = store.make(72, rng)
    assert keys[:2] == ["0001/ir/D1/1", "0001/ir/D1/2"]
    assert keys[24] == "0001/rgb/D2/1"
    assert len(set(keys)) == len(joints) == 72
    clips = store.draw_clips(72, 100, rng)
    assert clips.shape == (100, 12)
    assert (np.diff(clips, axis=1) > 0).all()
    assert (clips[:, 0] // 24 == clips[:, -1] // 24).all(), "a clip is of one tracklet"
    assert set(clips[:, 0] // 24) == {0, 1, 2}
