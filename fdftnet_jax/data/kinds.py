"""Whether a file is a picture or a video: by its name, or by how it begins."""

import os

from fdftnet_jax.data import images

IMAGE, VIDEO = "image", "video"
# What FFmpeg reads and people keep videos in.
VIDEO_SUFFIXES = (
    *(".3g2", ".3gp", ".asf", ".avi", ".f4v", ".flv", ".m2ts", ".m2v", ".m4v"),
    *(".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".mxf", ".ogv", ".qt", ".ts"),
    *(".vob", ".webm", ".wmv"),
)
# Programs in TypeScript have these suffixes, too: of them only the content tells.
_AMBIGUOUS = (".mts", ".ts")
_BEGINNINGS = (
    b"\x1a\x45\xdf\xa3",  # Matroska and WebM.
    b"FLV\x01",
    b"\x30\x26\xb2\x75\x8e\x66\xcf\x11",  # ASF, WMV.
    b"\x06\x0e\x2b\x34\x02\x05\x01\x01\x0d\x01\x02",  # MXF.
    b"\x00\x00\x01\xba",  # MPEG program stream.
    b"\x00\x00\x01\xb3",  # MPEG-1 and MPEG-2 without a container.
)
# First boxes of MP4 and QuickTime files, and brands of such files that are songs or
# pictures.
_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"pnot")
_NO_VIDEOS = (b"M4A ", b"M4B ", b"avif", b"heic", b"heix", b"mif1", b"msf1")
# Packets of an MPEG transport stream begin with this byte, so far apart; with a time
# stamp before each, the first is four bytes later.
_SYNC, _PACKETS = 0x47, ((0, 188), (4, 192), (0, 204))


def kind_of(path: str) -> str:
    """IMAGE or VIDEO by a file's suffix, else by its content; '' for neither.

    A suffix is believed: what the file holds is found out when it is read.
    """
    suffix = os.path.splitext(path)[1].lower()
    if suffix in images.SUFFIXES:
        return IMAGE
    if suffix in VIDEO_SUFFIXES and suffix not in _AMBIGUOUS:
        return VIDEO
    if not os.path.isfile(path):
        return ""
    if images.format_of(path):
        return IMAGE
    return VIDEO if is_video(path) else ""


def is_video(path: str) -> bool:
    """Whether a file begins as videos do; False for one that cannot be read."""
    # (Opening a pipe would wait for somebody to write to it.)
    if not os.path.isfile(path):
        return False
    try:
        with open(path, "rb") as file:
            head = file.read(1024)
    except OSError:
        return False
    if head[4:8] in _BOXES:
        return head[8:12] not in _NO_VIDEOS
    if head.startswith(b"RIFF"):
        return head[8:12] == b"AVI "
    if head.startswith(b"OggS"):
        return b"theora" in head
    return head.startswith(_BEGINNINGS) or any(
        head[start + 2 * step : start + 2 * step + 1] == bytes([_SYNC])
        and head[start] == head[start + step] == _SYNC
        for start, step in _PACKETS
    )
