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
from concurrent import futures
from typing import Any

import cv2
import numpy as np

from fdftnet_jax.data import kinds
from fdftnet_jax.prediction import results, scorer, stream
from fdftnet_jax.prediction.inputs import Item
from fdftnet_jax.prediction.results import Row

# Views of a batch: a single picture must not wait for many that are not there.
BATCH = 8
# Files that may wait or be judged at a time.
CAPACITY = 64


class FullError(Exception):
    """So many files wait already that no more are taken."""


@dataclasses.dataclass(frozen=True)
class Job:
    """A file that is judged.

    Attributes:
      rows: those of the file, once it is judged; see `results`.
      stop: once it is set, the reading of a video ends.
    """

    rows: futures.Future[list[Row]]
    stop: threading.Event

    def cancel(self) -> None:
        """Gives the file up; one that is being read may still be for a moment."""
        self.stop.set()
        self.rows.cancel()


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
        judge = results.Judge(detector)
        rules = scorer.face_rules(faces, detector)
        self.header = scorer.header(detector, judge, crop=rules is not None)
        self._scorer = scorer.Scorer(detector, judge, rules)
        self._capacity = capacity
        self._free = capacity
        self._lock = threading.Lock()
        self._jobs: set[Job] = set()
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

    @property
    def ready(self) -> bool:
        """Whether a file would be taken now."""
        alive = self._network.is_alive() and not self.stopping
        return alive and self._free > 0

    def submit(self, items: list[Item]) -> list[Job]:
        """Begins to judge files: all of them, or none.

        Raises:
          FullError: too many wait already.
        """
        with self._lock:
            if len(items) > self._free:
                raise FullError
            self._free -= len(items)
        return [self._begin(item) for item in items]

    def close(self) -> None:
        """Gives up what is not judged yet, and ends the threads."""
        with self._lock:
            self._free = 0
            jobs = list(self._jobs)
        for job in jobs:
            job.cancel()
        self._pictures.shutdown(cancel_futures=True)
        self._videos.shutdown(cancel_futures=True)
        self._waiting.put(None)
        self._network.join()
        cv2.setNumThreads(self._cv2_threads)

    def _begin(self, item: Item) -> Job:
        stop = threading.Event()
        is_video = not item.reason and kinds.kind_of(item.path) == kinds.VIDEO
        pool = self._videos if is_video else self._pictures
        job = Job(pool.submit(self._judge, item, stop), stop)
        with self._lock:
            self._jobs.add(job)
        job.rows.add_done_callback(lambda _: self._end(job))
        return job

    def _end(self, job: Job) -> None:
        with self._lock:
            self._jobs.discard(job)
            self._free += 1

    def _judge(self, item: Item, stop: threading.Event) -> list[Row]:
        reader = self._scorer.reader(stop, batch=self._batch, score=self._logits)
        content = reader(item)
        if content.views is None:
            return self._scorer.rows_of(content, np.zeros(0))
        return self._scorer.rows_of(content, self._logits(content.views))

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
