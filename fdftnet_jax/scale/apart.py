"""Reads pictures and videos where the network is not: in other processes.

What comes out of a video there are its sampled frames, scored later. A file that takes
its process down is tried again, and then has a reason.
"""

import contextlib
import functools
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from fdftnet_jax.data.preprocess import Preprocessing
from fdftnet_jax.faces import workers
from fdftnet_jax.faces.choice import FaceRules
from fdftnet_jax.prediction import faces, inputs, sampling, scorer, stream, video
from fdftnet_jax.prediction.results import Row
from fdftnet_jax.scale import storage

# How often a file is read that takes its process down.
TRIES = 3


class Frames(NamedTuple):
    """The sampled frames of a video, which stand for its result until it is scored."""

    samples: tuple[sampling.Sample | sampling.Stopped, ...]
    reason: str = ""


class Reading(NamedTuple):
    """How files are read; it can be sent to other processes."""

    preprocessing: Preprocessing
    rules: FaceRules | None
    folder: str  # Where relative paths begin.

    def reader(self, *, in_a_process: bool = False) -> stream.Reader:
        """Makes what reads a file.

        Args:
          in_a_process: whether that is one of its own, which then reads a video, too.
        """
        rules = self.rules
        read = (
            sampling.samples
            if in_a_process
            else functools.partial(sampling.read, seconds=video.SECONDS)
        )

        def sample(path: str) -> Any:
            task = sampling.Task(
                *(path, video.EVERY, video.MAX_FRAMES, rules, self.preprocessing)
            )
            return Frames(tuple(read(task)))

        return stream.Reader(
            self.preprocessing,
            find=None if rules is None else functools.partial(faces.find, rules=rules),
            video=sample,
            opened=functools.partial(storage.on_this_machine, base=self.folder),
        )


def read(
    reading: Reading, items: Sequence[inputs.Item], processes: int = 0
) -> Generator[tuple[int, stream.Content], None, None]:
    """Reads each picture in a process that may be lost with it.

    Args:
      reading: how.
      items: what; a video has a process of its own anyway.
      processes: how many, at most; 0 for one for each core.

    Yields:
      The number of an item and its content, in any order.
    """
    processes = processes or os.cpu_count() or 1
    waiting: list[tuple[int, inputs.Item]] = []
    ordinary = reading.reader()
    for number, item in enumerate(items):
        if item.reason or item.kind == inputs.VIDEO:
            yield number, ordinary(item)
        else:
            waiting.append((number, item))
    make = functools.partial(_make, reading)
    for last in [False] * (TRIES - 1) + [True]:
        tried, waiting = waiting, []
        dealt = workers.deal(make, tried, processes)
        with contextlib.closing(dealt):
            for task, result in dealt:
                number, item = task
                if not isinstance(result, workers.Lost):
                    yield number, result
                elif not last:
                    waiting.append(task)
                else:
                    reason = (
                        f"reading it ended with {result.signal}: {TRIES} times, each "
                        "in a process of its own"
                    )
                    yield number, stream.Content(item, item.kind, reason=reason)


def _make(reading: Reading) -> Callable[[tuple[int, inputs.Item]], stream.Content]:
    reader = reading.reader(in_a_process=True)
    return lambda task: reader(task[1])


def score(
    contents: Iterator[tuple[int, stream.Content]],
    work: scorer.Scorer,
    detector: Any,
    rules: FaceRules | None,
) -> Iterator[tuple[int, list[Row]]]:
    """Scores what was read, in full batches of one size.

    Args:
      contents: numbers, and what the files of these hold.
      work: makes the rows.
      detector: a `Detector`, for its preprocessing.
      rules: how faces were cut out.

    Yields:
      The numbers, in the same order, and the rows of the files.
    """

    def full(views: np.ndarray) -> np.ndarray:
        return stream.full(views, video.BATCH, work.logits)

    numbers: list[int] = []

    def each() -> Iterator[stream.Content]:
        for number, content in contents:
            numbers.append(number)
            if isinstance(content.video, Frames):
                samples = content.video.samples
                result = video.score_video(
                    content.item.path,
                    detector,
                    rules=rules,
                    score=full,
                    reader=lambda *_, samples=samples: iter(samples),
                )
                content = content._replace(video=result, reason=result.reason)
            yield content

    scored = stream.scored(each(), full, video.BATCH)
    for done, (content, logits) in enumerate(scored):
        yield numbers[done], work.rows_of(content, logits)
