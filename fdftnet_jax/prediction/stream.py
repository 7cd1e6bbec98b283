"""Files are decoded beside the scoring, in bounded memory, and results keep the order.

Threads decode (the libraries that do so let others run meanwhile), a few batches ahead
of the network at most; the network scores batches of one size.
"""

import collections
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent import futures
from typing import NamedTuple, TypeVar

import numpy as np

from fdftnet_jax.data import images, preprocess
from fdftnet_jax.errors import UserError
from fdftnet_jax.faces import videos
from fdftnet_jax.prediction import inputs
from fdftnet_jax.prediction.faces import Box, FoundFace
from fdftnet_jax.prediction.inputs import Item
from fdftnet_jax.prediction.video import VideoResult

# Characters of an unexpected error that are shown.
_LONGEST = 150
Given = TypeVar("Given")
Made = TypeVar("Made")


class Seen(NamedTuple):
    """What a file holds, ready to be scored; nothing but a reason where that fails."""

    item: Item
    kind: str  # As its content says.
    # [k, v, size, size, 3] uint8: v views of each of k faces, or of the whole picture.
    views: np.ndarray | None = None
    # (x, y, width, height) of each face; None for the whole picture.
    boxes: tuple[Box | None, ...] = ()
    reason: str = ""
    # A video has been scored already.
    video: VideoResult | None = None


class Looker:
    """Decodes a file and cuts out what the network sees of it; for any thread."""

    def __init__(
        self,
        preprocessing: preprocess.Preprocessing,
        *,
        find: Callable[[np.ndarray], tuple[list[FoundFace], str]] | None,
        video: Callable[[str], VideoResult],
        debug: bool = False,
    ):
        """Looks at pictures by these rules.

        Args:
          preprocessing: of the detector.
          find: finds the faces of a picture, see `faces.find`; None takes it as it is.
          video: looks at a video, see `video.score_video`.
          debug: whether an unexpected error ends the work, instead of being a reason.
        """
        self._preprocessing = preprocessing
        self._find = find
        self._video = video
        self._debug = debug

    def __call__(self, item: Item) -> Seen:
        """Looks at one file; raises UserError for what is wrong with all of them."""
        if item.reason:
            return Seen(item, item.kind, reason=item.reason)
        kind = item.kind
        # Suffixes may be wrong.
        if kind == inputs.VIDEO and images.format_of(item.path):
            kind = inputs.IMAGE
        try:
            if kind == inputs.VIDEO:
                found = self._video(item.path)
                return Seen(item, kind, reason=found.reason, video=found)
            return self._picture(item)
        except (images.ImageError, videos.VideoError) as error:
            return Seen(item, kind, reason=error.reason)
        except UserError:
            raise
        # One file in thousands must not end the work on the others.
        except Exception as error:
            if self._debug:
                raise
            told = " ".join(f"{type(error).__name__}: {error}".split())[:_LONGEST]
            return Seen(item, kind, reason=f"unexpected error, {told}")

    def pictures(self, path: str) -> tuple[list[np.ndarray], list[Box | None], str]:
        """What is scored of a picture.

        Args:
          path: of the file.

        Returns:
          The pictures [h, w, 3] uint8 of its faces, or itself; where they are in it
          (None for all of it); and why there are none, '' where there are some.

        Raises:
          ImageError: the file is no picture, or damaged.
        """
        image = images.decode(path)
        if self._find is None:
            return [image], [None], ""
        found, reason = self._find(image)
        return [face.crop for face in found], [face.box for face in found], reason

    def _picture(self, item: Item) -> Seen:
        pictures, boxes, reason = self.pictures(item.path)
        if reason:
            return Seen(item, inputs.IMAGE, reason=reason)
        views = [self._preprocessing(picture) for picture in pictures]
        stacked = np.stack([v if v.ndim == 4 else v[None] for v in views])
        return Seen(item, inputs.IMAGE, stacked, tuple(boxes))


def in_order(
    work: Callable[[Given], Made], given: Iterable[Given], *, threads: int, ahead: int
) -> Generator[Made, None, None]:
    """Works on things in threads and yields the results in the order of the things.

    Args:
      work: is called in any thread; what it raises is raised here.
      given: is read as far as needed.
      threads: that work.
      ahead: results that may wait, or be worked on, before the one that is yielded.
    """
    pool = futures.ThreadPoolExecutor(threads)
    waiting: collections.deque[futures.Future[Made]] = collections.deque()
    try:
        for one in given:
            waiting.append(pool.submit(work, one))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def scored(
    seen: Iterable[Seen], logits: Callable[[np.ndarray], np.ndarray], batch: int
) -> Iterator[tuple[Seen, np.ndarray]]:
    """Scores what was seen, in batches across files; keeps the order.

    Args:
      seen: in any number.
      logits: [b, v, size, size, 3] uint8 -> [b] float64, see `Detector.logits`.
      batch: the most views, b * v, unless v alone is more. Where there was one of that
        size, the last is filled up to it: another size would be compiled.

    Yields:
      Each with the logits [k] of its faces; [0] where there is nothing to score.
    """
    # Of what is not given back yet, in the same order.
    waiting: collections.deque[Seen] = collections.deque()
    views: list[np.ndarray] = []
    made = np.zeros(0)
    filled_up = False

    def score(*, rest: bool) -> None:
        nonlocal made, views
        stacked = np.concatenate(views)
        number = max(1, batch // stacked.shape[1])
        end = len(stacked) if rest else len(stacked) // number * number
        parts = [stacked[i : i + number] for i in range(0, end, number)]
        if rest and filled_up:
            found = [full(part, batch, logits) for part in parts]
        else:
            found = [logits(part) for part in parts]
        made = np.concatenate([made, *found])
        views = [stacked[end:]]

    for one in seen:
        waiting.append(one)
        if one.views is not None:
            views.append(one.views)
            if sum(part.shape[0] * part.shape[1] for part in views) >= batch:
                score(rest=False)
                filled_up = True
        while waiting and len(waiting[0].boxes) <= len(made):
            first = waiting.popleft()
            number = len(first.boxes)
            yield first, made[:number]
            made = made[number:]
    if views:
        score(rest=True)
    for one in waiting:
        number = len(one.boxes)
        yield one, made[:number]
        made = made[number:]


def full(
    views: np.ndarray, batch: int, logits: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """Scores views [b, v, size, size, 3] in a batch that is filled up, see `scored`."""
    number = max(1, batch // views.shape[1])
    missing = max(number - len(views), 0)
    black = np.zeros((missing, *views.shape[1:]), np.uint8)
    return logits(np.concatenate([views, black]))[: len(views)]
