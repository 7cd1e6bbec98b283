"""Judges files for many requests at a time, by one network.

Threads read pictures, one thread reads videos, one after another, and a single thread
runs the network: it takes the views that wait, of whichever request, as one batch.
Every batch is filled up to the same number of views, so the network is compiled once,
and a picture has the same score whatever else is judged beside it.
"""

import contextlib
import dataclasses
import os
import queue
import threading
from collections.abc import Callable
from concurrent import futures
from typing import Any, Generic, NamedTuple, TypeVar

import cv2
import numpy as np

from fdftnet_jax.data import kinds
from fdftnet_jax.prediction import results, scorer, stream, video
from fdftnet_jax.prediction.inputs import Item
from fdftnet_jax.prediction.results import Row
from fdftnet_jax.prediction.video import VideoResult
from fdftnet_jax.serving import case
from fdftnet_jax.serving.case import Case

# Views of a batch: a single picture must not wait for many that are not there.
BATCH = 8
# Files that may wait or be judged at a time.
CAPACITY = 64
# Videos whose scores are remembered, so that nobody waits for the same one twice.
_REMEMBERED = 100
Result = TypeVar("Result")


class FullError(Exception):
    """So many files wait already that no more are taken."""


class Judged(NamedTuple):
    """A file that has been judged."""

    rows: list[Row]  # See `results`.
    video: VideoResult | None  # What they were made of, where it is one.


class Control:
    """Says how far the reading of a video is, and ends it.

    Attributes:
      stop: once it is set, the reading ends.
      frame: frames that lie behind the reader.
      total: frames of the video, roughly; 0 where that is not known.
    """

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.frame, self.total = 0, 0

    def progress(self, frame: int, total: int) -> None:
        """Takes how far it is."""
        self.frame, self.total = frame, total


@dataclasses.dataclass(frozen=True)
class Job(Generic[Result]):
    """Work on a file.

    Attributes:
      result: of the work, once it is done.
      control: of the reading of a video.
    """

    result: futures.Future[Result]
    control: Control

    def cancel(self) -> None:
        """Gives the file up; one that is being read may still be for a moment."""
        self.control.stop.set()
        self.result.cancel()


@dataclasses.dataclass(frozen=True)
class _Views:
    """Views of one picture, or of a batch of a video, that wait for the network."""

    array: np.ndarray  # [k, v, size, size, 3] uint8.
    logits: futures.Future[np.ndarray]


class Engine:
    """Judges files; see the module.

    Attributes:
      detector: a `Detector`.
      header: what the results depend on, see `scorer.header`.
      judge: gives the verdicts.
      stopping: whether what is not judged yet is to be given up.
    """

    def __init__(
        self,
        detector: Any,
        *,
        faces: str = "auto",
        capacity: int = CAPACITY,
        readers: int = 0,
    ):
        """Compiles the network and starts the threads.

        Args:
          detector: a `Detector`.
          faces: see `scorer.face_rules`.
          capacity: files that may wait or be judged at a time.
          readers: threads that read pictures; 0 for one for each core.

        Raises:
          UserError: an option is wrong, or the network does not score here as where it
            was exported.
        """
        self.detector = detector
        self.stopping = False
        self.judge = judge = results.Judge(detector)
        rules = scorer.face_rules(faces, detector)
        self.header = scorer.header(detector, judge, crop=rules is not None)
        self._scorer = scorer.Scorer(detector, judge, rules)
        self._capacity = capacity
        self._free = capacity
        self._lock = threading.Lock()
        self._jobs: set[Job[Any]] = set()
        # By their digests, the oldest first.
        self._remembered: dict[str, VideoResult] = {}
        preprocessing = detector.preprocessing
        size, number = preprocessing.size, preprocessing.number
        # A batch holds one picture at least.
        self._batch = max(BATCH, number)
        self._score(np.zeros((1, number, size, size, 3), np.uint8))
        # The threads look for faces each: OpenCV's own would be in their way.
        self._cv2_threads = cv2.getNumThreads()
        cv2.setNumThreads(1)
        self._waiting: queue.SimpleQueue[_Views | None] = queue.SimpleQueue()
        self._network = threading.Thread(target=self._run, name="network", daemon=True)
        self._network.start()
        self._pictures = futures.ThreadPoolExecutor(
            readers or os.cpu_count() or 1, "pictures"
        )
        self._videos = futures.ThreadPoolExecutor(1, "videos")
        self._cases = futures.ThreadPoolExecutor(1, "cases")

    @property
    def ready(self) -> bool:
        """Whether a file would be taken now."""
        alive = self._network.is_alive() and not self.stopping
        return alive and self._free > 0

    def submit(self, items: list[Item]) -> list[Job[Judged]]:
        """Begins to judge files: all of them, or none.

        Raises:
          FullError: too many wait already.
        """
        self._reserve(len(items))
        return [self._begin(self._pool(item), self._judge, item) for item in items]

    def examine(self, item: Item) -> Job[Case]:
        """Begins to look closer at a file, one after another.

        Raises:
          FullError: too many wait already.
        """
        self._reserve(1)
        return self._begin(self._cases, self._examine, item)

    def close(self) -> None:
        """Gives up what is not judged yet, and ends the threads."""
        with self._lock:
            self._free = 0
            jobs = list(self._jobs)
        for job in jobs:
            job.cancel()
        # (It may wait for a video, which has been told to end.)
        self._videos.shutdown(wait=False, cancel_futures=True)
        self._cases.shutdown(cancel_futures=True)
        self._pictures.shutdown(cancel_futures=True)
        self._videos.shutdown(cancel_futures=True)
        self._waiting.put(None)
        self._network.join()
        cv2.setNumThreads(self._cv2_threads)

    def _reserve(self, count: int) -> None:
        with self._lock:
            if count > self._free:
                raise FullError
            self._free -= count

    def _pool(self, item: Item) -> futures.ThreadPoolExecutor:
        return self._videos if _is_video(item) else self._pictures

    def _begin(
        self,
        pool: futures.ThreadPoolExecutor,
        work: Callable[[Item, Control], Result],
        item: Item,
    ) -> Job[Result]:
        control = Control()
        job = Job(pool.submit(work, item, control), control)
        with self._lock:
            self._jobs.add(job)
        job.result.add_done_callback(lambda _: self._end(job))
        return job

    def _end(self, job: Job[Any]) -> None:
        with self._lock:
            self._jobs.discard(job)
            self._free += 1

    def _reader(self, control: Control) -> stream.Reader:
        return self._scorer.reader(
            control.stop,
            batch=self._batch,
            score=self._logits,
            progress=control.progress,
        )

    def _judge(self, item: Item, control: Control) -> Judged:
        digest = _digest(item)
        known = self._remembered.get(digest)
        if known is None:
            content = self._reader(control)(item)
        else:
            content = stream.Content(item, kinds.VIDEO, video=known)
        if content.video is not None:
            self._remember(digest, content.video, control)
        logits = np.zeros(0)
        if content.views is not None:
            logits = self._logits(content.views)
        return Judged(self._scorer.rows_of(content, logits), content.video)

    def _remember(self, digest: str, result: VideoResult, control: Control) -> None:
        # What was stopped is read again.
        in_part = any(note.startswith(video.IN_PART) for note in result.notes)
        if not digest or control.stop.is_set() or in_part or not result.tracks:
            return
        with self._lock:
            self._remembered[digest] = result
            if len(self._remembered) > _REMEMBERED:
                del self._remembered[next(iter(self._remembered))]

    def _examine(self, item: Item, control: Control) -> Case:
        if _is_video(item) and _digest(item) not in self._remembered:
            # Videos are read one after another.
            judged = self._videos.submit(self._judge, item, control).result()
        else:
            judged = self._judge(item, control)
        if judged.video is not None:
            return case.of_video(
                *(item.path, judged.rows, judged.video, self.judge),
                detector=self.detector,
                stop=control.stop,
            )
        return case.of_picture(
            *(item.path, judged.rows, self._reader(control), self.detector),
            # (Each window by itself.)
            logits=lambda views: self._score(views[:, None]),
        )

    def _logits(self, views: np.ndarray) -> np.ndarray:
        """Has the views [k, v, size, size, 3] scored, beside others: [k]."""
        logits: futures.Future[np.ndarray] = futures.Future()
        self._waiting.put(_Views(views, logits))
        return logits.result()

    def _run(self) -> None:
        """Scores what waits, until None does."""
        while (first := self._waiting.get()) is not None:
            together, ends = [first], False
            count = len(first.array)
            with contextlib.suppress(queue.Empty):
                while count < self._batch // first.array.shape[1]:
                    more = self._waiting.get_nowait()
                    if more is None:
                        ends = True
                        break
                    together.append(more)
                    count += len(more.array)
            try:
                logits = self._score(np.concatenate([v.array for v in together]))
            except Exception as error:
                for views in together:
                    views.logits.set_exception(error)
            else:
                at = np.cumsum([len(views.array) for views in together])[:-1]
                for views, own in zip(together, np.split(logits, at), strict=True):
                    views.logits.set_result(own)
            if ends:
                return

    def _score(self, views: np.ndarray) -> np.ndarray:
        """Scores views [k, v, size, size, 3], in batches of one size: [k]."""
        count = max(1, self._batch // views.shape[1])
        parts = [views[i : i + count] for i in range(0, len(views), count)]
        logits = self._scorer.logits
        return np.concatenate([stream.full(p, self._batch, logits) for p in parts])


def _is_video(item: Item) -> bool:
    return not item.reason and kinds.kind_of(item.path) == kinds.VIDEO


def _digest(item: Item) -> str:
    """The digest of a video; '' of another file, and of one that cannot be read."""
    with contextlib.suppress(OSError):
        return case.sha256(item.path) if _is_video(item) else ""
    return ""
