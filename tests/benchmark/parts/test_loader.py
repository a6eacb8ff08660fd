import numpy as np
import pytest
from PIL import Image

from fastreid_star.benchmark.parts import loader
from fastreid_star.data import io as images
from fastreid_star.data.build import build_clip_train_loader

SIZE = (32, 16)


def test_both_sides_open_the_same_files(options, small_loader, monkeypatch):
    cfg = loader.config(options, **{"INPUT.SIZE_TRAIN": list(SIZE)})
    made = build_clip_train_loader(cfg, seed=0)
    requests = next(iter(made.batch_sampler))
    opened, read = [], images.read_frame

    def recording(path):
        opened.append(str(path))
        return read(path)

    monkeypatch.setattr(images, "read_frame", recording)
    for request in requests:
        opened.clear()
        made.dataset[request]
        (files,) = loader.frame_files(made, [request])
        assert len(files) == made.dataset.length
        assert set(files) == set(opened)


def test_the_loader_augments_as_the_paper_does(options, small_loader):
    cfg = loader.config(options)
    assert (cfg.INPUT.PADDING.ENABLED, cfg.INPUT.FLIP.ENABLED, cfg.INPUT.REA.ENABLED) == (
        True,
        True,
        True,
    )
    assert tuple(cfg.INPUT.SIZE_TRAIN) == loader.SIZE


def test_decoding(tmp_path):
    Image.fromarray(np.full((10, 8, 3), (200, 100, 50), np.uint8)).save(tmp_path / "plain.png")
    frame = loader.decode(str(tmp_path / "plain.png"), (32, 16))
    assert frame.shape == (32, 16, 3)
    assert (frame == (200, 100, 50)).all()


def test_pixel_moves():
    frames = np.arange(2 * 32 * 16 * 3, dtype=np.uint32).reshape(2, 32, 16, 3).astype(np.uint8)
    moved = loader.move_pixels(frames, padding=4)
    assert moved.shape == (2, 3, 32, 16)
    assert moved.flags.c_contiguous
    # the second frame is not painted over: shifted by 4 and mirrored, zeros where nothing came
    expected = np.pad(frames[1, 4:, 4:], ((0, 4), (0, 4), (0, 0)))[:, ::-1].transpose(2, 0, 1)
    assert np.array_equal(moved[1], expected)
    assert (moved[0, :, 10, 8] == (124, 116, 104)).all()


def test_figures(options, small_loader, monkeypatch):
    monkeypatch.setattr(
        loader, "worker_memory", lambda options, clips: (clips * 1000, clips * 2000)
    )
    monkeypatch.setattr(loader, "SIZE", SIZE)
    figures = {figure.name: figure for figure in loader.figures(options)}
    rate, pixels = figures["loader_frames_per_s"], figures["loader_frames_per_s_of_pixels"]
    assert rate.value == pixels.value
    assert rate.ratio == pytest.approx(rate.value / rate.limit)
    assert "384 JPEGs of 32x16 to" in rate.note
    assert figures["loader_worker_memory_mb"].ratio == 2
    assert loader.supply(options) > 0


def test_memory_of_a_worker(options, small_loader):
    early, late = loader.worker_memory(options, clips=160, size=SIZE)
    assert 10e6 < early < 10e9
    assert 10e6 < late < 10e9
