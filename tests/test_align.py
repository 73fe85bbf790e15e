"""dfdc.data.align: matching frames of two clips are found, and unrelated clips are refused."""

from __future__ import annotations

import numpy as np
import pytest

from dfdc.data.align import align_clips, find_offset, fit_frames, walk_pairs
from dfdc.errors import Misaligned
from dfdc.video import stream_frames
from tests.clips import number_of, write_clip
from tests.pairs import RATE, draw_scene, paint, write_pair_clip


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return write_pair_clip(tmp_path_factory.mktemp("align") / "original.mp4")


@pytest.mark.parametrize("k", [-7, -1, 1, 12])
def test_offset_of_k_frames_is_found(tmp_path, k):
    # The scene begins at frame 20: the fake that begins k frames earlier shows each moment k frames later.
    first = write_pair_clip(tmp_path / "a.mp4", first=20)
    second = write_pair_clip(tmp_path / "b.mp4", first=20 - k, change=paint)
    alignment = align_clips(first, second)
    assert alignment.offset_s == pytest.approx(k / RATE, abs=1e-3)
    assert len(alignment) == 40 - abs(k)
    np.testing.assert_allclose(np.diff(alignment.times, axis=1)[:, 0], k / RATE, atol=2e-3)


def test_fake_without_offset_has_none(original, tmp_path):
    alignment = align_clips(original, write_pair_clip(tmp_path / "b.mp4", change=paint, crf=30))
    assert alignment.offset_s == 0
    assert len(alignment) == 40


def test_paired_frames_show_the_same_moment(tmp_path):
    first = write_pair_clip(tmp_path / "a.mp4", first=5, n_frames=30)
    second = write_pair_clip(tmp_path / "b.mp4", first=0, n_frames=30)
    pairs = list(walk_pairs(first, second, align_clips(first, second)))
    assert len(pairs) == 25
    for _, a, b in pairs:  # neighbours differ by more than 20 levels where the figure moves; CRF 18 leaves 3
        assert np.abs(a.astype(int) - b).mean() < 6


def test_every_frame_is_streamed_once_at_reduced_size(tmp_path, monkeypatch):
    monkeypatch.setattr("dfdc.pixels.MAX_SIDE", 64)
    path = write_clip(tmp_path / "a.mp4", n_frames=20, size=(128, 64))
    frames = list(stream_frames(path))
    assert [number_of(frame.pixels) for frame in frames] == list(range(20))
    assert {frame.pixels.shape for frame in frames} == {(32, 64, 3)}
    np.testing.assert_allclose([frame.time_s for frame in frames], np.arange(20) / 30, atol=1e-3)


def test_another_scene_is_refused(original, tmp_path):
    with pytest.raises(Misaligned, match="another scene"):
        align_clips(original, write_pair_clip(tmp_path / "b.mp4", seed=1))


def test_another_recording_of_the_same_scene_is_refused(original, tmp_path):
    def mirror_time(index, picture):
        return draw_scene(390 - index)

    with pytest.raises(Misaligned, match="the movement matches at no offset"):
        align_clips(original, write_pair_clip(tmp_path / "b.mp4", change=mirror_time))


def test_trimmed_fake_is_aligned_with_the_middle_of_the_original(original, tmp_path):
    trimmed = write_pair_clip(tmp_path / "b.mp4", size=(112, 120))
    _, a, b = next(walk_pairs(original, trimmed, align_clips(original, trimmed)))
    assert a.shape == b.shape == (120, 112, 3)
    assert np.abs(a.astype(int) - b).mean() < 6


@pytest.mark.parametrize(
    ("original", "fake", "size"),
    [
        ((1080, 1920), (1080, 1920), (1080, 1920)),
        ((480, 854), (480, 832), (480, 832)),
        ((1080, 1920), (720, 1280), (720, 1280)),
        ((360, 640), (720, 1280), (360, 640)),
    ],
)
def test_sizes_that_can_be_compared(original, fake, size):
    fit = fit_frames(original, fake)
    assert fit.size == size
    for shape in (original, fake):
        assert fit.apply(np.zeros((*shape, 3), np.uint8)).shape == (*size, 3)


@pytest.mark.parametrize("fake", [(1920, 1080), (1080, 1440)])
def test_sizes_that_cannot_be_compared_are_named(fake):
    with pytest.raises(Misaligned, match="its original 1920x1080"):
        fit_frames((1080, 1920), fake)


def test_offset_is_zero_if_no_other_is_clearly_better():
    generator = np.random.default_rng(0)
    still = np.ones((30, 1)) @ generator.normal(size=(1, 50))
    noisy = [still + 0.01 * generator.normal(size=still.shape) for _ in range(2)]
    assert find_offset(*noisy, least=10)[0] == 0


def test_still_clips_are_aligned_without_an_offset(tmp_path):
    def stand(index, picture):
        return draw_scene(0)

    first = write_pair_clip(tmp_path / "a.mp4", change=stand, n_frames=12)
    second = write_pair_clip(tmp_path / "b.mp4", change=lambda i, p: paint(i, stand(i, p)), n_frames=12)
    alignment = align_clips(first, second)
    assert alignment.offset_s == 0
    assert len(alignment) == 12


def test_clips_of_one_frame_are_aligned(tmp_path):
    first = write_pair_clip(tmp_path / "a.mp4", n_frames=1)
    assert len(align_clips(first, first)) == 1


def test_real_pair_is_aligned_and_an_unrelated_one_refused(shared_videos):
    alignment = align_clips(shared_videos / "ghost_original.webm", shared_videos / "ghost_elon.webm")
    assert alignment.offset_s == 0
    assert len(alignment) == 66
    with pytest.raises(Misaligned):
        align_clips(shared_videos / "grid_bbaf2n.mpg", shared_videos / "grid_swiz3n.mpg")
