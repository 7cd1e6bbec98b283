"""Reads the frames of a video that are scored, in a process that can be ended.

The process sends views of faces, not frames. Nothing here imports JAX, so it starts at
once.
"""

import threading
from collections.abc import Callable, Generator, Iterator
from typing import NamedTuple

import cv2
import numpy as np

from fdftnet_jax.data import images
from fdftnet_jax.data.preprocess import Preprocessing
from fdftnet_jax.errors import counted
from fdftnet_jax.faces import videos, workers
from fdftnet_jax.faces.choice import FaceRules
from fdftnet_jax.prediction import faces

# Why a video is not read to its end.
UNREADABLE, SLOW, STOPPED = "unreadable video", "reading takes too long", "stopped"
DAMAGED = videos.DAMAGED


class Sample(NamedTuple):
    """A sampled frame: its faces, and the views of them."""

    number: int  # Counts the video's frames from 0.
    seconds: float  # From the start of the video.
    boxes: list[faces.Box]  # Of its faces, the largest first; or the whole frame.
    # [faces, windows, size, size, 3] uint8; the windows are those of 'crops', else one.
    views: np.ndarray | None  # None where there is no face.
    reason: str = ""  # Why there is none; '' where there is one.
    note: str = ""  # What was done to its colours.
    total: int = 0  # Frames of the video, roughly; 0 where that is not known.


class Stopped(NamedTuple):
    """The last item where a video is not read to its end."""

    reason: str


class Task(NamedTuple):
    """A video, and how it is read."""

    path: str
    every: int
    max_frames: int
    rules: FaceRules | None
    preprocessing: Preprocessing


Reader = Callable[[Task, float, threading.Event | None], Iterator[Sample | Stopped]]


def read(
    task: Task, seconds: float, stop: threading.Event | None = None
) -> Generator[Sample | Stopped, None, None]:
    """Reads a video in a process of its own.

    Args:
      task: what to read; with `rules` its faces, without them whole frames. For
        `every` and `max_frames` see `videos.read`.
      seconds: at most so long, not counting what is done with the samples.
      stop: reading ends when it is set.

    Yields:
      The samples in order; at last `Stopped` where the video cannot be read, ends
      early, takes too long, is stopped, or took its process down.

    Raises:
      UserError: the face detector's packages are missing.
    """
    for item in workers.stream(samples, task, seconds, stop):
        if isinstance(item, workers.Late):
            is_set = stop is not None and stop.is_set()
            yield Stopped(STOPPED if is_set else f"{SLOW}: stopped after {seconds:g} s")
        elif isinstance(item, workers.Lost):
            yield Stopped(f"{UNREADABLE}: reading it ended with {item.signal}")
        else:
            yield item


def samples(task: Task) -> Iterator[Sample | Stopped]:
    """Reads a video in this process; see `read`."""
    # The process has a single core's work.
    cv2.setNumThreads(1)
    try:
        for frame in videos.read(task.path, task.every, task.max_frames):
            if frame.problem == videos.CUT_SHORT:
                read = counted(frame.number, "frame")
                end = f"after {read} ({frame.seconds:.1f} s)"
                yield Stopped(f"{videos.CUT_SHORT}: {end}")
            elif frame.pixels is None:
                yield Sample(
                    *(frame.number, frame.seconds, [], None),
                    reason=frame.problem,
                    total=frame.total,
                )
            else:
                yield _sample(frame, frame.pixels, task)
    except videos.VideoError as error:
        yield Stopped(f"{UNREADABLE}: {error.reason}")


def _sample(frame: videos.Frame, pixels: np.ndarray, task: Task) -> Sample:
    height, width, _ = pixels.shape
    crops, reason = [pixels], ""
    boxes: list[faces.Box] = [(0, 0, width, height)]
    if task.rules is None:
        reason = images.nothing_to_judge(pixels)
        crops, boxes = ([], []) if reason else (crops, boxes)
    else:
        cut, reason = faces.find(pixels, task.rules)
        crops, boxes = [face.crop for face in cut], [face.box for face in cut]
    views = [task.preprocessing(crop) for crop in crops]
    size = task.preprocessing.size
    stacked = np.stack(views).reshape(len(views), -1, size, size, 3) if views else None
    return Sample(
        *(frame.number, frame.seconds, boxes, stacked),
        reason=reason,
        note=frame.note,
        total=frame.total,
    )
