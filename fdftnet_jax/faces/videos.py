"""Reads the frames of a video file: RGB, upright, with their times.

OpenCV reads with FFmpeg, which conceals damage: it fills up what it cannot decode with
what it has, says so on standard error, and goes on. Here such frames are told from good
ones by what the decoder says while it works. (Codecs without any redundancy, such as
VP8 and VP9, say nothing of a few wrong bytes; others notice some late.)
"""

import contextlib
import math
import os
import sys
import tempfile
from collections.abc import Collection, Iterator
from typing import IO, NamedTuple

import cv2
import numpy as np

from fdftnet_jax.errors import UserError

# What FFmpeg reads and people keep videos in.
SUFFIXES = (
    *(".3g2", ".3gp", ".asf", ".avi", ".f4v", ".flv", ".m2ts", ".m2v", ".m4v"),
    *(".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".mxf", ".ogv", ".qt", ".ts"),
    *(".vob", ".webm", ".wmv"),
)
DAMAGED = "damaged frame"
CUT_SHORT = "video ends early"
# Share of the frames, and of the duration, that a container may promise in excess: some
# containers know them only roughly.
_TOLERANCE = 0.02
# A decoder gives frames in another order than it reads them. So the first key frame
# after a complaint may be the damaged one; the second is whole.
_KEY_FRAMES = 2
# Of a frame: four times as many as those of 8K have.
_MOST_PIXELS = 2**27


class VideoError(UserError):
    """A file that cannot be read as a video; the message names it and the reason.

    Attributes:
      reason: why, in a few words.
    """

    def __init__(self, name: str, reason: str):
        super().__init__(
            f"expected a video, cannot read {name}: {reason}; replace or remove it"
        )
        self.reason = reason


class Frame(NamedTuple):
    """A frame of a video."""

    number: int  # Counts the decoded frames from 0.
    seconds: float  # Its own time stamp, from the start of the video.
    pixels: np.ndarray | None  # [height, width, 3] uint8 RGB; None with a problem.
    problem: str = ""  # DAMAGED, CUT_SHORT or '' for none.


def read(
    path: str | os.PathLike[str], every: int = 1, most: int = 0
) -> Iterator[Frame]:
    """Reads a video from its beginning to its end.

    Frames are turned upright as the video's orientation says. A time is the frame's own
    time stamp, so it is right where the frame rate varies. One thread decodes.

    Args:
      path: the file.
      every: reads the frames 0, `every`, 2 * `every`...
      most: of these, reads at most so many, spread evenly over the video; 0 for all.
        (The video is decoded once more, to count its frames: what containers say of
        their number is not always true.)

    Yields:
      The frames in order. A damaged one has no pixels. Where the video ends before its
      container says, the last is CUT_SHORT, with the number of frames that were read.

    Raises:
      VideoError: if it cannot be opened, or no frame can be decoded.
    """
    wanted: Collection[int] = range(0, sys.maxsize, every)
    if most:
        count = sum(frame.problem != CUT_SHORT for frame in _decode(path, ()))
        wanted = frozenset(spread(count, every, most))
    for frame in _decode(path, wanted):
        if frame.number in wanted or frame.problem == CUT_SHORT:
            yield frame


def spread(count: int, every: int, most: int) -> list[int]:
    """The middles of `most` equal parts of the frames 0, `every`... below `count`."""
    sampled = len(range(0, count, every))
    if sampled <= most:
        return list(range(0, count, every))
    return [(2 * i + 1) * sampled // (2 * most) * every for i in range(most)]


def _decode(path: str | os.PathLike[str], wanted: Collection[int]) -> Iterator[Frame]:
    """Yields all frames, those of the numbers `wanted` with their pixels."""
    name = os.path.abspath(path)
    if not os.path.isfile(name) or not os.path.getsize(name):
        raise VideoError(name, "empty" if os.path.isfile(name) else "no such file")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise VideoError(name, "its name is not UTF-8") from None
    with _Listener() as decoder:
        video, message = decoder.hear(
            lambda: cv2.VideoCapture(name, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
        )
        try:
            if not video.isOpened():
                # (OpenCV's own words say less.)
                if not message or "VIDEOIO" in message:
                    message = "not a video that is read here"
                raise VideoError(name, message)
            sides = (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT)
            if math.prod(map(video.get, sides)) > _MOST_PIXELS:
                raise VideoError(name, f"frames of more than {_MOST_PIXELS:,} pixels")
            number, seconds, damaged = 0, 0.0, 0
            while True:
                grabbed, complaint = decoder.hear(video.grab)
                if not grabbed:
                    break
                if complaint:
                    damaged = _KEY_FRAMES
                elif damaged and video.get(cv2.CAP_PROP_FRAME_TYPE) == ord("I"):
                    damaged -= 1
                seconds = video.get(cv2.CAP_PROP_POS_MSEC) / 1000
                pixels = None
                if number in wanted and not damaged:
                    pixels = _pixels(video, decoder)
                bad = damaged or (number in wanted and pixels is None)
                yield Frame(number, seconds, pixels, DAMAGED if bad else "")
                number += 1
            if not number:
                raise VideoError(name, message or "no frame can be decoded")
            if _ends_early(video, number, seconds):
                yield Frame(number, seconds, None, CUT_SHORT)
        finally:
            video.release()


def _pixels(video: cv2.VideoCapture, decoder: "_Listener") -> np.ndarray | None:
    try:
        (decoded, image), _ = decoder.hear(video.retrieve)
        return cv2.cvtColor(image, cv2.COLOR_BGR2RGB) if decoded else None
    except cv2.error:
        return None


def _ends_early(video: cv2.VideoCapture, number: int, seconds: float) -> bool:
    """Whether both the frames and the time are fewer than the container says."""
    stated = video.get(cv2.CAP_PROP_FRAME_COUNT) * (1 - _TOLERANCE)
    rate = video.get(cv2.CAP_PROP_FPS)
    return rate > 0 and number < stated and seconds + 1 / rate < stated / rate


class _Listener:
    """Captures what C libraries print to the process's standard error."""

    def __enter__(self) -> "_Listener":
        self._file: IO[bytes] = tempfile.TemporaryFile()
        return self

    def __exit__(self, *_) -> None:
        self._file.close()

    def hear(self, call):
        """Calls a function; returns its result, and the last line that was printed."""
        start = self._file.tell()
        with quiet(self._file):
            result = call()
        end = self._file.seek(0, os.SEEK_END)
        if end == start:
            return result, ""
        self._file.seek(start)
        lines = self._file.read().decode("utf-8", "replace").strip().splitlines()
        return result, _plain(lines[0]) if lines else ""


@contextlib.contextmanager
def quiet(file: IO[bytes] | None = None) -> Iterator[None]:
    """Sends what this process prints to standard error to a file, or nowhere."""
    sys.stderr.flush()
    with contextlib.ExitStack() as stack:
        target = file or stack.enter_context(open(os.devnull, "wb"))
        kept = os.dup(2)
        try:
            os.dup2(target.fileno(), 2)
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def _plain(line: str) -> str:
    """Removes the part's name and address from a message of FFmpeg."""
    return line.rpartition("] ")[2].strip()
