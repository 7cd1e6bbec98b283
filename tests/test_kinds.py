"""What a file is, by its name and by how it begins."""

import av
import drawn_videos
import numpy as np
import pytest
from PIL import Image

from fdftnet_jax.data import kinds

FORMATS = [
    *[("mp4", "mpeg4"), ("mov", "mpeg4"), ("3gp", "mpeg4"), ("matroska", "mpeg4")],
    *[("webm", "libvpx"), ("avi", "mpeg4"), ("flv", "flv"), ("asf", "mpeg4")],
    *[("mpeg", "mpeg2video"), ("mpegts", "mpeg2video"), ("mxf", "mpeg2video")],
    *[("mpeg2video", "mpeg2video")],
]


@pytest.mark.parametrize(("name", "codec"), FORMATS)
def test_videos_without_a_suffix(name, codec, tmp_path):
    path = tmp_path / "video"
    sides = (144, 176) if name == "3gp" else (128, 160)
    with av.open(path, "w", format=name) as file:
        stream = file.add_stream(codec, rate=25)
        stream.height, stream.width = sides
        stream.pix_fmt = "yuv420p"
        frame = np.zeros((*sides, 3), np.uint8)
        for _ in range(4):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        file.mux(stream.encode())
    assert kinds.kind_of(str(path)) == kinds.VIDEO


def test_transport_streams_of_cameras(tmp_path):
    """With a time stamp before each packet, as AVCHD has them."""
    source = drawn_videos.encode(tmp_path / "a.ts", drawn_videos.moving(), "mpeg2video")
    data = source.read_bytes()
    parts = [b"\0\0\0\0" + data[i : i + 188] for i in range(0, len(data), 188)]
    (tmp_path / "camera.mts").write_bytes(b"".join(parts))
    assert kinds.kind_of(str(tmp_path / "camera.mts")) == kinds.VIDEO


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF"])
def test_pictures_without_a_suffix(form, tmp_path):
    Image.new("RGB", (40, 40)).save(tmp_path / "picture", form)
    assert kinds.kind_of(str(tmp_path / "picture")) == kinds.IMAGE
    assert not kinds.is_video(str(tmp_path / "picture"))


def test_other_files(tmp_path):
    for name, data in (
        ("empty", b""),
        ("program.ts", b"export const G = 1;\n" * 50),
        ("module.mts", b"G" * 10 + b"x" * 1000),
        ("notes.txt", b"notes\n"),
        ("song.m4a", b"\0\0\0\x20ftypM4A \0\0\2\0" + bytes(100)),
        ("song.mp3", b"ID3\4" + bytes(1000)),
        ("song.ogg", b"OggS" + bytes(24) + b"\1vorbis" + bytes(100)),
        ("sound.wav", b"RIFF\0\1\0\0WAVEfmt " + bytes(100)),
    ):
        (tmp_path / name).write_bytes(data)
        assert kinds.kind_of(str(tmp_path / name)) == ""
    assert kinds.kind_of(str(tmp_path)) == kinds.kind_of(str(tmp_path / "no")) == ""


def test_a_suffix_is_believed(tmp_path):
    for name, kind in (("a.JPG", kinds.IMAGE), ("a.mp4", kinds.VIDEO)):
        assert kinds.kind_of(str(tmp_path / name)) == kind
