"""Frames and their times, and what cannot be read."""

import itertools
import struct
import sys
from fractions import Fraction

import av
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


# Which video, and what its player shows of it.


def stream_of(file, frame, codec="libx264", number=5):
    """Adds a video of one picture to a file; returns the stream and its packets."""
    stream = file.add_stream(codec, rate=10)
    stream.height, stream.width, _ = frame.shape
    stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    frames = [av.VideoFrame.from_ndarray(frame, format="rgb24") for _ in range(number)]
    packets = [packet for f in frames for packet in stream.encode(f)]
    return stream, packets + stream.encode()


def test_the_default_video_is_read_and_not_the_first(tmp_path):
    path = tmp_path / "a.mkv"
    with av.open(path, "w") as file:
        first, packets = stream_of(file, drawn_videos.canvas(48, 64, (0, 0, 0)))
        second, more = stream_of(file, drawn_videos.canvas(96, 128, (200, 60, 20)))
        first.disposition = av.stream.Disposition(0)
        second.disposition = av.stream.Disposition.default
        for packet in packets + more:
            file.mux(packet)
    found = frames(path)
    assert len(found) == 5 and found[0].pixels.shape == (96, 128, 3)
    np.testing.assert_allclose(found[0].pixels.mean((0, 1)), (200, 60, 20), atol=4)


def test_a_cover_picture_and_sound_are_no_videos(tmp_path):
    path = tmp_path / "song.mp4"
    with av.open(path, "w") as file:
        sound = file.add_stream("aac", rate=8000)
        silence = np.zeros((1, 1024), np.float32)
        frame = av.AudioFrame.from_ndarray(silence, format="fltp", layout="mono")
        frame.sample_rate = 8000
        file.mux(sound.encode(frame))
        cover, packets = stream_of(file, drawn_videos.canvas(), "mjpeg", 1)
        cover.disposition = av.stream.Disposition.attached_pic
        for packet in packets:
            file.mux(packet)
    with pytest.raises(videos.VideoError, match="found only a cover picture"):
        frames(path)


def test_pixels_are_shown_square(tmp_path):
    image = drawn_videos.rectangle(16, 12, 32, 24, image=drawn_videos.canvas(48, 64))
    path = tmp_path / "a.mkv"
    for aspect, shape in ((2, (48, 128)), (0.5, (96, 64)), (1, (48, 64))):
        with av.open(path, "w") as file:
            stream = file.add_stream("mpeg4", rate=10)
            stream.height, stream.width, _ = image.shape
            stream.pix_fmt = "yuv420p"
            stream.sample_aspect_ratio = Fraction(aspect)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            file.mux(stream.encode())
        [frame] = frames(path)
        assert frame.pixels.shape == (*shape, 3)
        # The rectangle is the middle half of both sides.
        red = np.argwhere(frame.pixels[..., 0].astype(int) - frame.pixels[..., 1] > 90)
        height, width = np.ptp(red, axis=0) + 1
        assert height == pytest.approx(shape[0] / 2, abs=3)
        assert width == pytest.approx(shape[1] / 2, abs=3)


def test_frames_keep_their_size_where_it_changes(tmp_path):
    small = drawn_videos.encode(tmp_path / "a.mkv", shades(4), "mjpeg")
    larger = [drawn_videos.canvas(96, 128, (200, 60, 20))] * 4
    large = drawn_videos.encode(tmp_path / "b.mkv", larger, "mjpeg")
    path = tmp_path / "both.mkv"
    with av.open(path, "w") as new, av.open(small) as a, av.open(large) as b:
        stream = new.add_stream_from_template(a.streams.video[0])
        for start, old in ((0, a), (400, b)):
            for packet in old.demux(old.streams.video[0]):
                if packet.dts is not None:
                    packet.pts, packet.dts = packet.pts + start, packet.dts + start
                    packet.stream = stream
                    new.mux(packet)
    shapes = [frame.pixels.shape for frame in frames(path)]
    assert shapes == [(48, 64, 3)] * 4 + [(96, 128, 3)] * 4


def test_hdr_is_shown_in_standard_range_with_a_note(tmp_path):
    grey = [drawn_videos.canvas(48, 64, (191, 191, 191))]
    tags = "colorprim=bt2020:transfer=arib-std-b67:colormatrix=bt2020nc"
    path = drawn_videos.encode(tmp_path / "a.mp4", grey, x264_params=tags)
    [frame] = frames(path)
    assert frame.note == "high dynamic range (HLG), shown in standard range"
    # 75 % of HLG is the reference white (BT.2408).
    assert 235 < frame.pixels.mean() < 252


# Which frames are sampled.


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts", ".flv"])
def test_what_lies_between_sampled_frames_is_passed_over(suffix, tmp_path):
    shown = drawn_videos.textured(400)
    source = drawn_videos.encode(tmp_path / "a.mp4", shown, b_frames=2, rate=10)
    path = drawn_videos.remux(tmp_path / f"b{suffix}", source)
    everything = frames(path)
    video = videos._Video(path)
    numbers = videos.spread(400, 1, 5)
    found = list(video.spread_over(400, 1, 5))
    video.container.close()
    assert [frame.number for frame in found] == numbers
    for frame in found:
        assert frame.seconds == everything[frame.number].seconds
        np.testing.assert_array_equal(frame.pixels, everything[frame.number].pixels)
    # (Packets that were read.)
    assert video._numbers < 200


def test_a_recording_that_states_no_duration(tmp_path):
    source = drawn_videos.encode(tmp_path / "a.webm", shades(), "libvpx")
    path = drawn_videos.remux(tmp_path / "b.webm", source, options={"live": "1"})
    with av.open(path) as file:
        assert file.duration is None
    assert [frame.number for frame in frames(path, most=4)] == [2, 7, 12, 17]
    assert not any(frame.problem for frame in frames(path))


def test_a_container_that_states_a_hundredfold_length(tmp_path):
    path = drawn_videos.encode(tmp_path / "a.mkv", shades(), "mpeg4")
    data = bytearray(path.read_bytes())
    place = data.index(b"\x44\x89\x88") + 3  # Matroska's Duration, 8 bytes.
    [duration] = struct.unpack_from(">d", data, place)
    struct.pack_into(">d", data, place, 100 * duration)
    path.write_bytes(data)
    *found, last = frames(path, most=4)
    assert [frame.number for frame in found] == [2, 7, 12, 17]
    assert last.problem == videos.CUT_SHORT


# Damage.


def test_only_frames_of_the_damage_are_damaged(tmp_path):
    """H.264 in groups of ten: from the damaged frame to the end of its group."""
    shown = drawn_videos.textured()
    path = drawn_videos.encode(tmp_path / "a.mp4", shown, preset="veryfast")
    whole = frames(path)
    data = bytearray(path.read_bytes())
    position, size = drawn_videos.packets(path)[13]
    data[position + 8 : position + size] = bytes(size - 8)
    path.write_bytes(data)
    found = frames(path)
    assert [f.number for f in found if f.problem] == list(range(13, 20))
    for frame, same in zip(found, whole, strict=True):
        if not frame.problem:
            np.testing.assert_array_equal(frame.pixels, same.pixels)


def test_frames_that_were_left_out_damage_no_others(tmp_path):
    """A recorder drops B-frames: the decoder complains, what is there is whole."""
    shown = drawn_videos.textured()
    b_pyramid = {"b_pyramid": "none", "sc_threshold": 0}
    source = drawn_videos.encode(tmp_path / "a.mp4", shown, b_frames=2, **b_pyramid)
    whole = {frame.seconds: frame for frame in frames(source)}
    latest = itertools.accumulate(
        (packet.pts for packet in _demuxed(source)), max, initial=-1
    )
    b_frames = [
        i
        for i, (packet, before) in enumerate(
            zip(_demuxed(source), latest, strict=False)
        )
        if packet.pts < before
    ]
    gone = set(b_frames[3:6])
    assert len(gone) == 3
    path = drawn_videos.remux(tmp_path / "b.mp4", source, lambda i, _: i not in gone)
    found = frames(path)
    assert len(found) == 37
    for frame in found:
        assert not frame.problem
        np.testing.assert_array_equal(frame.pixels, whole[frame.seconds].pixels)


def _demuxed(path):
    with av.open(path) as file:
        return [p for p in file.demux(file.streams.video[0]) if p.pts is not None]


@pytest.mark.parametrize(
    ("codec", "suffix"),
    [
        *[("libx264", ".ts"), ("libx264", ".mkv"), ("libx265", ".ts")],
        *[("mpeg2video", ".mpg"), ("mpeg4", ".mkv"), ("wmv2", ".asf")],
        *[("flv", ".flv"), ("libvpx", ".webm"), ("libvpx-vp9", ".webm")],
    ],
)
def test_a_recording_that_begins_inside_a_group(codec, suffix, tmp_path):
    """Some decoders show grey with a few moving blocks until the first key frame."""
    options = {"x265_params": "log-level=none"} if codec == "libx265" else {}
    source = drawn_videos.encode(
        tmp_path / f"a{'.mkv' if suffix == '.ts' else suffix}",
        drawn_videos.textured(30),
        codec,
        rate=25,
        **options,
    )
    whole = np.array([frame.pixels for frame in frames(source)], int)
    path = drawn_videos.remux(tmp_path / f"b{suffix}", source, lambda i, _: i >= 4)
    found = frames(path)
    assert 20 <= len(found) <= 22 and not any(frame.problem for frame in found)
    for frame in found:
        assert np.abs(whole - frame.pixels).mean((1, 2, 3)).min() < 1


def test_without_pyav_a_video_says_what_to_install(tmp_path, monkeypatch):
    path = drawn_videos.write(tmp_path / "a.mp4", shades(2))
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(videos.VideoError, match="give `pip install av`"):
        frames(path)


def test_a_lossless_trim_does_not_end_early(tmp_path):
    source = drawn_videos.encode(tmp_path / "a.mp4", drawn_videos.textured())
    with av.open(source) as file:
        step = 1 / (10 * file.streams.video[0].time_base)
    # From frame 15 on: it is cut at the key frame 10, and says what is not shown.
    path = drawn_videos.remux(
        tmp_path / "b.mp4",
        source,
        lambda i, _: 10 <= i < 35,
        start=round(15 * step),
        options={"avoid_negative_ts": "disabled"},
    )
    found = frames(path)
    assert 20 <= len(found) <= 25 and not any(frame.problem for frame in found)


@pytest.mark.parametrize("most", [0, 5])
def test_a_video_whose_index_promises_more(most, tmp_path):
    source = drawn_videos.encode(tmp_path / "a.mp4", drawn_videos.textured())
    fast = {"options": {"movflags": "faststart"}}
    path = drawn_videos.remux(tmp_path / "b.mp4", source, **fast)
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    path.write_bytes(data[: len(data) * 2 // 3])
    *read, last = frames(path, most=most)
    assert last.problem == videos.CUT_SHORT and 15 < last.number < 35
    assert read and not any(frame.problem for frame in read[:-1])


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
