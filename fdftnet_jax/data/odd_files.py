"""Files whose form is odd and whose picture is whole: other programs read them.

Decoding here is strict (see `images`), and refuses what a decoder would only warn of.
Some of these warnings are about the form alone: a header that a camera fills in wrongly
says nothing of the picture. Here such files are put into a form without a warning, so
that the same strict decoder can tell whether the picture itself is whole.
"""

import dataclasses
import re
import struct
import zlib
from collections.abc import Iterator

import simplejpeg

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Pillow refuses a PNG with more text or a larger profile than this in one part.
_LONG_TEXT = 2**20
# The largest profiles, with tables for four inks, have some 4 MB.
_LARGEST_PROFILE = 2**24
# Bytes of a PNG's rows that are counted at a time.
_PART = 2**24
# Zero bytes that an interval of a JPEG may end with and need.
_OWN_ZEROS = 2
_MARKER = re.compile(rb"\xff+[\x01-\xfe]")
_BASELINE = (0xC0, 0xC1)
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_APP0, _APP14, _RESTARTS, _START_OF_SCAN, _END = 0xE0, 0xEE, 0xDD, 0xDA, 0xD9
# The parameters of a scan that has all coefficients of its components at once.
_ONE_SCAN = b"\x00\x3f\x00"
# What a file says of its colours, by the number of components: see Adobe's technical
# note 5116. Decoders take the last where they find another value.
_ADOBE_TRANSFORMS = {1: (0,), 3: (0, 1), 4: (0, 2)}


def check_jpeg(data: bytes) -> None:
    """Decodes a JPEG; raises ValueError for all that libjpeg warns of."""
    # At 1/8 of the size: this is about the entropy code, not the pixels.
    simplejpeg.decode_jpeg(data, "GRAY", min_height=1, min_width=1)


def mend_jpeg(data: bytes) -> tuple[bytes, list[str]]:
    """Makes a JPEG that is odd in its form alone one that decodes without a warning.

    The picture stays the same. What is mended: parameters of a baseline scan that are
    zero (Samsung), versions of JFIF that do not exist, unknown values of Adobe's colour
    transform, bytes between the segments of the header, and zero bytes behind whole
    restart intervals (webcams).

    Args:
      data: of a JPEG file that `check_jpeg` refuses.

    Returns:
      The JPEG's bytes, and what was odd, for people.

    Raises:
      ValueError: the picture itself is damaged.
    """
    header, rest = _Header.read(data)
    mended = bytes(header.data) + rest
    try:
        check_jpeg(mended)
    except ValueError:
        mended = bytes(header.data) + _without_zeros(header, rest)
        check_jpeg(mended)
        header.notes.append("zero bytes between parts of its data")
    return mended, list(dict.fromkeys(header.notes))


@dataclasses.dataclass
class _Header:
    """What precedes the data of a JPEG's first scan, mended."""

    data: bytearray = dataclasses.field(default_factory=lambda: bytearray(b"\xff\xd8"))
    notes: list[str] = dataclasses.field(default_factory=list)
    frame: int = 0  # The kind of its frame.
    size_at: int = 0  # Where its height and width are in `data`.
    sampling: tuple[tuple[int, int], ...] = ()  # Of each component: across, down.
    scanned: int = 0  # Number of components in the first scan.
    interval: int = 0  # Blocks (MCUs) from a restart to the next; 0 for all of them.

    @classmethod
    def read(cls, jpeg: bytes) -> tuple["_Header", bytes]:
        """Reads and mends the header; returns it, and what follows it in the file."""
        header = cls()
        place, kind, adobe = 2, 0, 0
        while kind != _START_OF_SCAN:
            found = _MARKER.search(jpeg, place)
            if found is None:
                raise ValueError("no picture in it")
            if found.start() > place:
                header.notes.append("bytes between the segments of its header")
            kind, start = jpeg[found.end() - 1], found.end()
            place = start + int.from_bytes(jpeg[start : start + 2], "big")
            segment = bytearray(jpeg[start:place])
            if kind == _END or not 2 <= len(segment) == place - start:
                raise ValueError("no picture in it")
            if kind == _APP14 and segment[2:7] == b"Adobe" and len(segment) > 13:
                adobe = len(header.data) + 2 + 13
            header._take(kind, segment)
            header.data += bytes([0xFF, kind]) + segment
        known = _ADOBE_TRANSFORMS.get(len(header.sampling))
        if adobe and known and header.data[adobe] not in known:
            header.notes.append(f"unknown colour transform {header.data[adobe]}")
            header.data[adobe] = known[-1]
        return header, jpeg[place:]

    def _take(self, kind: int, segment: bytearray) -> None:
        """Takes what a segment says, and mends it."""
        if kind in _FRAMES:
            self.frame, self.size_at = kind, len(self.data) + 2 + 3
            factors = segment[9::3]
            self.sampling = tuple((both >> 4, both & 15) for both in factors)
        elif kind == _RESTARTS:
            self.interval = int.from_bytes(segment[2:4], "big")
        elif kind == _APP0 and segment[2:7] == b"JFIF\0" and segment[7:8] != b"\1":
            self.notes.append("unknown version of JFIF")
            segment[7:8] = b"\1"
        elif kind == _START_OF_SCAN:
            self.scanned = int.from_bytes(segment[2:3], "big")
            if self.frame in _BASELINE and segment[-3:] == bytes(3):
                self.notes.append("wrong parameters of its scan")
                segment[-3:] = _ONE_SCAN

    def of_size(self, height: int, width: int) -> bytes:
        """The header of a picture of another size, in pixels."""
        data = bytearray(self.data)
        data[self.size_at : self.size_at + 4] = struct.pack(">HH", height, width)
        return bytes(data)


def _without_zeros(header: _Header, rest: bytes) -> bytes:
    """Takes out the zero bytes that follow complete restart intervals.

    Each interval that ends with zeros is decoded as a picture by itself, without them.
    If it is not whole, one or two of the zeros may be its own, which stay; or its end
    was lost and filled up with zeros. To be sure, the number of zeros behind it must be
    one that is also found behind an interval that is whole without any.

    Args:
      header: of the file.
      rest: what follows the header.

    Raises:
      ValueError: an interval is not whole, or the file is of another kind.
    """
    factors = [factor for both in header.sampling for factor in both]
    if (
        header.frame not in _BASELINE
        or header.scanned != len(header.sampling)
        or not all(factors)
    ):
        raise ValueError("the picture's data is corrupt")
    across, down = (max(factors) for factors in zip(*header.sampling, strict=True))
    if header.scanned == 1:
        across = down = 1
    height, width = struct.unpack_from(">HH", header.data, header.size_at)
    columns, rows = -(-width // (8 * across)), -(-height // (8 * down))
    left, place = columns * rows, 0
    parts: list[bytes] = []
    # Numbers of zeros behind intervals that need none of them, and that need some.
    sure: set[int] = set()
    unsure: set[int] = set()
    for marker in re.finditer(rb"\xff+[\xd0-\xd9]", rest):
        data = rest[place : marker.start()]
        count = min(header.interval or left, left)
        if data.endswith(b"\0") and count > 0:
            whole_rows = count % columns == 0
            shape = (count // columns, columns) if whole_rows else (1, count)
            size = shape[0] * 8 * down, shape[1] * 8 * across
            if max(size) > 65535:
                raise ValueError("the picture's data is corrupt")
            interval, complete = _interval(header.of_size(*size), data)
            (sure if complete else unsure).add(len(data) - len(interval))
            data = interval
        parts += [data, marker[0]]
        left -= count
        place = marker.end()
        if marker[0][-1] == _END:
            break
    if unsure - sure:
        raise ValueError("the picture's data is corrupt")
    return b"".join(parts) + rest[place:]


def _interval(header: bytes, data: bytes) -> tuple[bytes, bool]:
    """Takes the zeros behind an interval off.

    Args:
      header: of a picture of this interval alone.
      data: of the interval, with zeros behind it.

    Returns:
      The interval, and whether it is whole without any of these zeros.

    Raises:
      ValueError: it is not whole with `_OWN_ZEROS` of them either.
    """
    short = data.rstrip(b"\0")
    if short.endswith(b"\xff"):
        short += b"\0"
    for count in range(min(_OWN_ZEROS, len(data) - len(short)) + 1):
        interval = short + count * b"\0"
        try:
            check_jpeg(header + interval + b"\xff\xd9")
        except ValueError:
            continue
        return interval, count == 0
    raise ValueError("the picture's data is corrupt")


def png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
    """Yields kind, body and checksum of the parts of a PNG, as far as there are any."""
    place, kind = len(PNG_SIGNATURE), b""
    while kind != b"IEND" and place < len(data):
        size = int.from_bytes(data[place : place + 4], "big")
        kind, body = data[place + 4 : place + 8], data[place + 8 : place + 8 + size]
        place += 12 + size
        yield kind, body, data[place - 4 : place]


def without_long_text(data: bytes) -> tuple[bytes, bytes | None, list[str]]:
    """Takes what Pillow finds too long out of a PNG: texts and profiles above 1 MB.

    Args:
      data: of a PNG file, which may be damaged.

    Returns:
      The file without them; the colour profile, where it is one of them; and notes.
    """
    profile, notes, parts = None, [], []
    start = place = len(PNG_SIGNATURE)
    kept = data[:start]
    for kind, body, _ in png_chunks(data):
        size = 12 + len(body)
        if kind in (b"tEXt", b"iTXt", b"zTXt") and _text_size(kind, body) > _LONG_TEXT:
            notes = ["more than 1 MB of text in it"]
        elif kind == b"iCCP" and len(large := _inflated(kind, body)) > _LONG_TEXT:
            profile = large
        else:
            place += size
            continue
        parts.append(data[start:place])
        start = place = place + size
    return kept + b"".join(parts) + data[start:] if parts else data, profile, notes


def _text_size(kind: bytes, body: bytes) -> int:
    """Bytes of a text, or a little more than are allowed where it has more."""
    _, _, text = body.partition(b"\0")
    compressed = kind == b"zTXt" or text[:1] == b"\x01"
    if kind == b"tEXt" or not compressed:
        return len(text)
    return len(_inflated(kind, body, _LONG_TEXT))


def _inflated(kind: bytes, body: bytes, most: int = _LARGEST_PROFILE) -> bytes:
    """What is compressed in a part of a PNG, at most a byte more than `most`."""
    _, _, packed = body.partition(b"\0")
    # A flag; in an iTXt two of them, a language and a translated keyword.
    packed = packed[2:].split(b"\0", 2)[-1] if kind == b"iTXt" else packed[1:]
    try:
        return zlib.decompressobj().decompress(packed, most + 1)
    except zlib.error:
        return b""


def check_png(data: bytes) -> None:
    """Raises ValueError for a wrong checksum, or fewer rows than the header says."""
    packed = bytearray()
    kind = b""
    for kind, body, checksum in png_chunks(data):
        if zlib.crc32(kind + body).to_bytes(4, "big") != checksum:
            raise ValueError("a checksum is wrong, or image file is truncated")
        if kind == b"IHDR":
            width, height, depth, colours, *_, interlaced = struct.unpack(
                ">IIBBBBB", body
            )
        elif kind == b"IDAT":
            packed += body
    if kind != b"IEND":
        raise ValueError("image file is truncated")
    bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colours]
    # Each pass takes every so many pixels from a first one: (row, column), (rows, ...).
    passes = [(0, 0, 1, 1)]
    if interlaced:
        passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4)]
        passes += [(2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    expected = 0
    for row, column, down, right in passes:
        rows, columns = -((row - height) // down), -((column - width) // right)
        if columns > 0:
            # A row begins with the number of its filter.
            expected += max(rows, 0) * (1 + -(-columns * bits // 8))
    inflater, rest = zlib.decompressobj(), bytes(packed)
    while expected > 0:
        part = inflater.decompress(rest, min(expected, _PART))
        if not part:
            raise ValueError("image file is truncated")
        expected -= len(part)
        rest = inflater.unconsumed_tail
