"""Frames and their times, and what cannot be read."""

import itertools

import drawn_videos
import numpy as np
import pytest

from fdftnet_jax.faces import colours, videos


def frames(path, every=1, most=0):
    return list(videos.read(path, every, most))


def shades(number=20):
    """Frames that are told apart by their grey."""
    return [drawn_videos.canvas(48, 64, (12 * i,) * 3) for i in range(number)]


@pytest.mark.parametrize("suffix", [".avi", ".mp4", ".mkv", ".mov"])
def test_frames_are_those_that_were_written(suffix, tmp_path):
    path = drawn_videos.write(tmp_path / f"a{suffix}", shades(), rate=8)
    found = frames(path)
    assert [frame.number for frame in found] == list(range(20))
    for i, frame in enumerate(found):
        assert frame.problem == ""
        assert frame.seconds == pytest.approx(i / 8, abs=1e-3)
        assert frame.pixels.shape == (48, 64, 3) and frame.pixels.dtype == np.uint8
        np.testing.assert_allclose(frame.pixels, 12 * i, atol=drawn_videos.TOLERANCE)


def test_pixels_are_rgb(tmp_path):
    image = drawn_videos.canvas(48, 64, (200, 60, 20))
    [frame] = frames(drawn_videos.write(tmp_path / "a.avi", [image]))
    np.testing.assert_allclose(frame.pixels.mean((0, 1)), (200, 60, 20), atol=4)


@pytest.mark.parametrize(("every", "most"), [(1, 0), (7, 0), (1, 4), (4, 3), (9, 50)])
def test_chosen_frames_are_the_same_as_when_all_are_read(every, most, tmp_path):
    path = drawn_videos.write(tmp_path / "a.mp4", drawn_videos.moving(30))
    everything = frames(path)
    chosen = frames(path, every, most)
    assert [f.number for f in chosen] == videos.spread(30, every, most or 30)
    for frame in chosen:
        same = everything[frame.number]
        assert frame.seconds == same.seconds
        np.testing.assert_array_equal(frame.pixels, same.pixels)


def test_a_spread_is_even():
    for number, every, most in itertools.product(range(40), (1, 3, 10), (1, 4, 9, 50)):
        found = videos.spread(number, every, most)
        steps = set(np.diff(found))
        assert len(found) == min(most, -(-number // every))
        assert all(i % every == 0 and 0 <= i < number for i in found)
        assert not steps or (min(steps) > 0 and max(steps) - min(steps) <= every)
        if found:
            # The gaps at both ends are half a step, to the frame.
            ends = found[0], (number - 1) // every * every - found[-1]
            assert abs(ends[0] - ends[1]) <= every


def test_a_turned_video_is_upright(tmp_path):
    path = drawn_videos.write(tmp_path / "a.mp4", drawn_videos.moving())
    before = frames(path)
    drawn_videos.turn(path)
    for frame, other in zip(frames(path), before, strict=True):
        np.testing.assert_array_equal(frame.pixels, np.rot90(other.pixels, -1))


def test_times_where_the_frame_rate_varies(tmp_path):
    path = drawn_videos.write(tmp_path / "a.mp4", shades(10), rate=10)
    drawn_videos.slow_down(path, 4)
    expected = np.cumsum([0] + 4 * [0.1] + 5 * [0.3])
    found = frames(path)
    np.testing.assert_allclose([f.seconds for f in found], expected, atol=1e-3)
    assert not any(frame.problem for frame in found)


# Damage.


def test_damaged_frames_are_told_from_whole_ones(tmp_path, capfd):
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (48, 64, 3), np.uint8) for _ in range(40)]
    path = drawn_videos.write(tmp_path / "a.mp4", noise)
    whole = frames(path)
    data = bytearray(path.read_bytes())
    start = len(data) // 3
    data[start : start + 200] = rng.bytes(200)
    path.write_bytes(data)
    found = frames(path)
    damaged = [frame for frame in found if frame.problem == videos.DAMAGED]
    assert damaged and all(frame.pixels is None for frame in damaged)
    good = [frame for frame in found if not frame.problem]
    assert good[0].number == 0 and good[-1].number > damaged[-1].number
    for frame in good:
        np.testing.assert_array_equal(frame.pixels, whole[frame.number].pixels)
    # What the decoder says is for us.
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("most", [0, 5])
@pytest.mark.parametrize("suffix", [".avi", ".mkv"])
def test_a_video_that_was_cut_short(suffix, most, tmp_path):
    path = drawn_videos.write(tmp_path / f"a{suffix}", drawn_videos.moving(30))
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    *read, last = frames(path, most=most)
    assert last.problem == videos.CUT_SHORT and last.pixels is None
    assert 10 < last.number < 28
    # Of the promised length, only this much is there.
    assert len(read) == (round(most * last.number / 30) or last.number)
    # The very last may be there in part.
    assert not any(frame.problem for frame in read[:-1])


def test_files_that_are_no_videos(tmp_path):
    whole = drawn_videos.write(tmp_path / "whole.mp4", shades()).read_bytes()
    for name, data, reason in (
        ("empty", b"", "empty"),
        ("text", b"no video\n" * 1000, ""),
        ("no_index", whole[: len(whole) // 2], "moov atom not found"),
        ("header", whole[:40], ""),
    ):
        path = tmp_path / f"{name}.mp4"
        path.write_bytes(data)
        with pytest.raises(videos.VideoError, match=f"cannot read {path}") as error:
            frames(path)
        assert error.value.reason and reason in error.value.reason
    for path in (tmp_path, tmp_path / "nowhere.mp4"):
        with pytest.raises(videos.VideoError, match="no such file"):
            frames(path)


def test_a_file_named_like_an_address_or_a_pattern(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("http:a.mp4", "%03d.mp4"):
        drawn_videos.write(tmp_path / "a.mp4", shades(3)).rename(name)
        assert len(frames(name)) == 3


def test_a_frame_that_cannot_be_converted_is_damaged(tmp_path, monkeypatch):
    path = drawn_videos.write(tmp_path / "a.avi", shades(3))

    def broken(*_):
        raise ValueError("no such colour")

    monkeypatch.setattr(colours, "shown", broken)
    assert [f.problem for f in frames(path, every=2)] == [videos.DAMAGED] * 2


def test_frames_that_would_fill_the_memory(tmp_path, monkeypatch):
    path = drawn_videos.write(tmp_path / "a.mp4", shades(2))
    monkeypatch.setattr(videos, "_MOST_PIXELS", 48 * 64)
    assert len(frames(path)) == 2
    monkeypatch.setattr(videos, "_MOST_PIXELS", 48 * 64 - 1)
    with pytest.raises(videos.VideoError, match="frames of more than 3,071 pixels"):
        frames(path)
