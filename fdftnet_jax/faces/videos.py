"""Reads the frames of a video file: RGB, upright, square pixels, with their times.

PyAV reads with FFmpeg, which conceals damage: it fills up what it cannot decode with
what it has, and goes on. A frame is called damaged here where the decoder gave it that
flag, where its data could not be decoded at all, and where it is predicted from such
a frame: up to the next key frame, or to the next frame of another kind after a B-frame.
Complaints of the decoder alone are no damage: it has many about files that play well.
(HEVC and VP8 hardly notice a few wrong bytes; others notice some late.)
"""

import contextlib
import itertools
import math
import os
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from fdftnet_jax.errors import UserError
from fdftnet_jax.faces import colours

# FFmpeg's readers of the files of `kinds`. Others follow addresses in a file to other
# files, or take a text for a video.
_READERS = (
    "mov,matroska,avi,flv,asf,mpeg,mpegts,mpegvideo,m4v,h264,hevc,mxf,mxf_opatom,ogg"
)
DAMAGED = "damaged frame"
CUT_SHORT = "video ends early"
# Where only its duration tells how long a video is, it ends early if it is shorter by
# more than this share and so many seconds: some containers know it only roughly.
_SHARE, _SECONDS = 0.02, 0.5
# Frames so far ahead, in seconds, are jumped to where no index says how far the next
# key frame is.
_FAR = 5.0
# In these formats it is jumped to any frame: so many seconds before the one that is
# wanted, so that a key frame lies between them.
_WITHOUT_INDEX, _EARLIER = ("mpeg", "mpegts"), 2.0
# Of a frame: four times as many as those of 8K have.
_MOST_PIXELS = 2**27
# Pixels are made square where one side is at most so many times the other.
_LONGEST_PIXEL = 4


class VideoError(UserError):
    """A file that cannot be read as a video; the message names it and the reason.

    Attributes:
      reason: why, in a few words.
    """

    def __init__(self, name: str, reason: str):
        advice = "" if "; " in reason else "; replace or remove it"
        super().__init__(f"expected a video, cannot read {name}: {reason}{advice}")
        self.reason = reason


class Frame(NamedTuple):
    """A frame of a video."""

    # Counts the frames from 0; where not all of them are decoded, it is counted from
    # the time and the average frame rate.
    number: int
    seconds: float  # Its own time stamp, from the start of the video.
    pixels: np.ndarray | None  # [height, width, 3] uint8 RGB; None with a problem.
    problem: str = ""  # DAMAGED, CUT_SHORT or '' for none.
    note: str = ""  # What was done to its colours.
    # Frames of the video, roughly; 0 where all are read and nobody has counted.
    total: int = 0


def read(
    path: str | os.PathLike[str], every: int = 1, most: int = 0
) -> Iterator[Frame]:
    """Reads the video of a file from its beginning to its end.

    Of several videos in the file it is the one that a player shows. Frames are turned
    upright as the video's orientation says, and those whose pixels are not square are
    stretched. Each frame has its own size, which may change. HDR is shown in SDR, see
    `colours`. A time is the frame's own time stamp, so it is right where the frame rate
    varies. One thread decodes.

    Args:
      path: the file.
      every: reads the frames 0, `every`, 2 * `every`...
      most: of these, reads at most so many, spread evenly over the video; 0 for all.
        What lies between them is passed over where a key frame allows it.

    Yields:
      The frames in order. A damaged one has no pixels. Where the file ends before its
      container says, the last is CUT_SHORT, with the number of frames that were read.

    Raises:
      VideoError: if it cannot be opened, or no frame can be decoded.
    """
    video = _Video(path)
    with contextlib.closing(video.container):
        count = video.count() if most else 0
        if count > every * most:
            frames = video.spread_over(count, every, most)
        else:
            frames = video.each(every)
        last = None
        try:
            for last in frames:
                yield last._replace(total=count)
        except video.error as error:
            # (A damaged file can end in the middle.)
            if last is None:
                raise VideoError(video.name, _plain(error)) from error
            video.exhausted = True
        if last is None:
            raise VideoError(video.name, "no frame can be decoded")
        if video.ends_early():
            yield Frame(video.frames, video.seconds, None, CUT_SHORT)


class Header(NamedTuple):
    """What a video file says of itself."""

    container: str  # Such as 'QuickTime / MOV'.
    codec: str  # Such as 'h264'.
    width: int  # Of a frame as it is stored, in pixels.
    height: int
    seconds: float  # 0 where it is not known.
    rate: float  # Frames a second.
    frames: int  # Roughly.


def header(path: str | os.PathLike[str]) -> Header:
    """Reads what a video file says of itself; raises VideoError as `read` does."""
    video = _Video(path)
    with contextlib.closing(video.container):
        return Header(
            video.container.format.long_name,
            video.codec.name,
            video.codec.width,
            video.codec.height,
            video._stated(),
            float(video.rate),
            video.count(),
        )


def spread(count: int, every: int, most: int) -> list[int]:
    """The middles of `most` equal parts of the frames 0, `every`... below `count`."""
    sampled = len(range(0, count, every))
    if sampled <= most:
        return list(range(0, count, every))
    return [(2 * i + 1) * sampled // (2 * most) * every for i in range(most)]


class _Packet(NamedTuple):
    """What came of one packet: a frame, or None where it cannot be decoded."""

    pts: int
    frame: Any
    damaged: bool


class _Video:
    """An open file, and how far its video has been read."""

    def __init__(self, path: str | os.PathLike[str]):
        """Opens a file and chooses its video; raises VideoError."""
        self.name = os.path.abspath(path)
        if not os.path.isfile(self.name) or not os.path.getsize(self.name):
            found = "empty" if os.path.isfile(self.name) else "no such file"
            raise VideoError(self.name, found)
        try:
            self.name.encode()
        except UnicodeEncodeError:
            raise VideoError(self.name, "its name is not UTF-8") from None
        try:
            self._av = _import_av()
        except UserError as error:
            raise VideoError(self.name, str(error)) from error
        self.error = self._av.FFmpegError
        self.container = self._open()
        try:
            self.stream = self._choose()
        except VideoError:
            self.container.close()
            raise
        self.codec = self.stream.codec_context
        self.codec.thread_count = 1
        # So that a frame knows which packet it is of.
        self.codec.copy_opaque = True
        self.start = self.stream.start_time or 0
        rate = self.stream.average_rate or self.stream.guessed_rate
        self.rate = rate or Fraction(25)
        # How far it has been read: frames, seconds, and whether there is no more.
        self.frames, self.seconds, self.exhausted = 0, 0.0, False
        # Time stamp of the last frame, in seconds.
        self.end = 0.0
        # Of packets, and the time stamp of the last one.
        self._numbers, self._read = 0, self.start
        self._far = _FAR
        self._has_index = self.container.format.name not in _WITHOUT_INDEX

    def _open(self) -> Any:
        self._av.logging.set_level(self._av.logging.PANIC)
        options = {"protocol_whitelist": "file", "format_whitelist": _READERS}
        try:
            return self._av.open(self.name, options=options)
        except self.error as error:
            # What FFmpeg says of a file tells more than its error number.
            *_, said = getattr(error, "log", None) or [_plain(error)]
            if "whitelist" in said or "Invalid data" in said:
                said = "not a video that is read here"
            raise VideoError(self.name, said.strip()) from error

    def _choose(self) -> Any:
        """The video that players show: the default one, and no picture of a cover."""
        pictures = self._av.stream.Disposition.attached_pic
        streams = [
            stream
            for stream in self.container.streams.video
            if not stream.disposition & pictures
        ]
        if not streams:
            kind = "only a cover picture" if self.container.streams.video else "none"
            raise VideoError(self.name, f"expected a video in it, found {kind}")
        default = self._av.stream.Disposition.default
        stream = max(streams, key=lambda stream: bool(stream.disposition & default))
        if stream.codec_context is None:
            raise VideoError(self.name, "its codec is not read here")
        if stream.codec_context.width * stream.codec_context.height > _MOST_PIXELS:
            raise VideoError(self.name, f"frames of more than {_MOST_PIXELS:,} pixels")
        return stream

    def count(self) -> int:
        """The number of frames, as the container has it: roughly, in some of them."""
        duration = self._stated() or self._measured()
        return self.stream.frames or round(duration * self.rate)

    def _stated(self) -> float:
        """The duration in seconds that the container states; 0 where there is none."""
        if self.stream.duration:
            return float(self.stream.duration * self.stream.time_base)
        return (self.container.duration or 0) / self._av.time_base

    def _measured(self) -> float:
        """The time of the last packet: of recordings that state no duration."""
        last = self.start
        with contextlib.suppress(self.error):
            for packet in self.container.demux(self.stream):
                last = max(last, packet.pts or last)
        self.container.seek(self.start, stream=self.stream)
        return self._time(last) + float(1 / self.rate)

    def _time(self, pts: int) -> float:
        return float((pts - self.start) * self.stream.time_base)

    def each(self, every: int) -> Iterator[Frame]:
        """Decodes all frames, yields those of the numbers 0, `every`..."""
        for packet in self._decoded():
            self.frames += 1
            if (self.frames - 1) % every == 0:
                yield self._frame(packet, self.frames - 1)
        self.exhausted = True

    def spread_over(self, count: int, every: int, most: int) -> Iterator[Frame]:
        """Yields `most` of about `count` frames, counted at the average rate."""
        packets = self._decoded()
        first = next(packets, None)
        if first is None:
            return
        packets = itertools.chain([first], packets)
        jumps, last = True, -1
        for number in spread(count, every, most):
            pts = first.pts + round(number / self.rate / self.stream.time_base)
            # Time stamps are rounded.
            least = pts - 1 / (2 * self.rate * self.stream.time_base)
            before = self._read
            jumped = jumps and self._is_far(pts)
            if jumped:
                packets = self._jump(pts)
            found = next((p for p in packets if p.pts > least), None)
            if jumped and self._first <= before:
                # There was no key frame ahead, and it has been jumped back.
                self._far *= 2
            if found is None and jumps:
                # No key frame is found from where it was jumped to.
                jumps, packets = False, self._jump(self.start)
                found = next((p for p in packets if p.pts > least), None)
            if found is None:
                self.frames = round(self.seconds * self.rate) + 1
                self.exhausted = True
                if last < 0 and self.frames < count:
                    # Far shorter than the container states.
                    self.container.seek(self.start, stream=self.stream)
                    yield from self.spread_over(self.frames, every, most)
                return
            own = round((found.pts - first.pts) * self.stream.time_base * self.rate)
            if own > last:
                self.frames = own + 1
                yield self._frame(found, own)
            last = own

    def _jump(self, pts: int) -> Iterator[_Packet]:
        """Decodes from a key frame near a time."""
        if pts == self.start:
            self.container.seek(pts, stream=self.stream)
            return self._decoded()
        if not self._has_index:
            pts -= round(_EARLIER / self.stream.time_base)
        self.container.seek(pts, stream=self.stream)
        # What is shown before it may be predicted from frames that were passed over.
        return itertools.dropwhile(
            lambda packet: packet.frame is None or not packet.frame.key_frame,
            self._decoded(),
        )

    def _is_far(self, pts: int) -> bool:
        """Whether a key frame lies between the last packet and a time."""
        entries = self.stream.index_entries
        last = entries[len(entries) - 1].timestamp if len(entries) else -math.inf
        # (Some formats read theirs with the first jump.)
        if self._has_index and last > self._read:
            found = entries.search_timestamp(pts)
            return found >= 0 and entries[found].timestamp > self._read
        return (pts - self._read) * self.stream.time_base > self._far

    def _decoded(self) -> Iterator[_Packet]:
        """Decodes from where the file is read on; says which frames are damaged."""
        types = self._av.video.frame.PictureType
        # The number of a damaged packet, and whether it is of a B-frame.
        lost: list[tuple[int, bool]] = []
        spoilt, latest = "", -math.inf
        # The first key frame's packet: a recording may begin with what is predicted
        # from earlier frames.
        begin = math.inf
        self._first: float = math.inf
        for packet in self.container.demux(self.stream):
            pts = packet.pts if packet.pts is not None else packet.dts
            self._numbers += 1
            packet.opaque = self._numbers
            if packet.dts is not None:
                self._read = packet.dts
                self._first = min(self._first, packet.dts)
            try:
                frames = packet.decode()
            except self.error:
                if pts is not None:
                    lost.append((self._numbers, pts < latest))
                    if begin < self._numbers:
                        yield _Packet(pts, None, True)
                continue
            if pts is not None:
                latest = max(latest, pts)
            if packet.is_keyframe:
                begin = min(begin, self._numbers)
            for frame in frames:
                number = frame.opaque or self._numbers
                if frame.key_frame or frame.pict_type == types.I:
                    begin = min(begin, number)
                if number < begin:
                    continue
                is_b = frame.pict_type == types.B
                before = [is_b for lost_number, is_b in lost if lost_number < number]
                lost = lost[len(before) :]
                # dav1d does not decode what is predicted from a lost frame.
                if before and self.codec.name != "libdav1d":
                    spoilt = "B" if all(before) and spoilt != "all" else "all"
                if frame.key_frame or (spoilt == "B" and not is_b):
                    spoilt = ""
                if frame.is_corrupt:
                    spoilt = "B" if is_b and spoilt != "all" else "all"
                own = frame.pts if frame.pts is not None else frame.dts
                if own is not None:
                    self.seconds = max(self.seconds, self._time(own))
                    self.end = float(own * self.stream.time_base)
                    yield _Packet(own, frame, bool(spoilt))

    def _frame(self, packet: _Packet, number: int) -> Frame:
        seconds = self._time(packet.pts)
        if packet.damaged:
            return Frame(number, seconds, None, DAMAGED)
        frame = packet.frame
        if frame.width * frame.height > _MOST_PIXELS:
            raise VideoError(self.name, f"frames of more than {_MOST_PIXELS:,} pixels")
        width, height = self._square(frame.width, frame.height)
        try:
            pixels, note = colours.shown(frame, width, height, self.stream)
        except (self.error, ValueError):
            # (No conversion from the colours of this frame.)
            return Frame(number, seconds, None, DAMAGED)
        # Counterclockwise, as `rot90` turns.
        pixels = np.rot90(pixels, frame.rotation // 90 % 4)
        return Frame(number, seconds, np.ascontiguousarray(pixels), note=note)

    def _square(self, width: int, height: int) -> tuple[int, int]:
        """The sides of a frame with square pixels: the shorter ones are stretched."""
        aspect = self.stream.sample_aspect_ratio or Fraction(1)
        if not 1 / _LONGEST_PIXEL <= aspect <= _LONGEST_PIXEL:
            return width, height
        return (
            round(width * max(aspect, Fraction(1))),
            round(height / min(aspect, Fraction(1))),
        )

    def ends_early(self) -> bool:
        """Whether the file has less than its index, or its duration, promises."""
        entries = self.stream.index_entries
        if (last := len(entries) - 1) >= 0 and entries[last].size:
            end = entries[last].pos + entries[last].size
            return end > os.path.getsize(self.name)
        # (Where a recording was cut, its first time stamp may be later than 0.)
        missing = self._stated() - max(self.end, self.seconds) - 1 / self.rate
        return self.exhausted and missing > max(_SECONDS, _SHARE * self._stated())


def version() -> str:
    """Version of the package that reads videos; raises UserError without it."""
    return _import_av().__version__


def _import_av() -> Any:
    try:
        import av
    except ImportError as error:
        raise UserError("videos need PyAV; give `pip install av`") from error
    return av


def _plain(error: Exception) -> str:
    """What FFmpeg says of an error, without its number and the file's name."""
    return (getattr(error, "strerror", "") or str(error)).strip()
