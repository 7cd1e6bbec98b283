"""Reads files while others are scored, in bounded memory and in order.

Threads decode (the libraries that do so let others run meanwhile), a few batches ahead
of the network at most; the network scores batches of one size.
"""

import collections
import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from fdftnet_jax.data import images, kinds, preprocess
from fdftnet_jax.errors import UserError
from fdftnet_jax.faces import videos
from fdftnet_jax.prediction import inputs
from fdftnet_jax.prediction.faces import Box, CutFace
from fdftnet_jax.prediction.inputs import Item
from fdftnet_jax.prediction.video import VideoResult

# Characters of an unexpected error that are shown.
_LONGEST = 150
# From an item's path to one that can be opened, for as long as it is needed.
Opened = Callable[[str], contextlib.AbstractContextManager[str]]


class Content(NamedTuple):
    """What a file holds, ready to be scored; a reason alone where that fails."""

    item: Item
    kind: str  # As its content says.
    # [k, v, size, size, 3] uint8: v views of each of k faces, or of the whole picture.
    views: np.ndarray | None = None
    # (x, y, width, height) of each face; None for the whole picture.
    boxes: tuple[Box | None, ...] = ()
    reason: str = ""
    # What to know before trusting the verdict, of a picture.
    notes: tuple[str, ...] = ()
    # A video has been scored already.
    video: VideoResult | None = None


class Crops(NamedTuple):
    """What is scored of a picture."""

    crops: list[np.ndarray]  # [h, w, 3] uint8 of its faces, or itself.
    boxes: Sequence[Box | None]  # Where they are in it; None for all of it.
    reason: str  # Why there are none; '' where there are some.
    picture: images.Picture  # All of it.


class Reader:
    """Decodes a file and cuts out what the network sees of it; for any thread."""

    def __init__(
        self,
        preprocessing: preprocess.Preprocessing,
        *,
        find: Callable[[np.ndarray], tuple[list[CutFace], str]] | None,
        video: Callable[[str], VideoResult],
        opened: Opened = contextlib.nullcontext,
        debug: bool = False,
    ):
        """Keeps how files are read.

        Args:
          preprocessing: of the detector.
          find: finds the faces of a picture, see `faces.find`; None takes it as it is.
          video: scores a video, see `video.score_video`.
          opened: gives the path of a file on this machine, or raises ImageError; by
            default that of the item.
          debug: whether an unexpected error ends the work, instead of being a reason.
        """
        self._preprocessing = preprocessing
        self._find = find
        self._video = video
        self._opened = opened
        self._debug = debug

    def __call__(self, item: Item) -> Content:
        """Reads one file; raises UserError for what is wrong with all of them."""
        if item.reason:
            return Content(item, item.kind, reason=item.reason)
        try:
            with self._opened(item.path) as path:
                return self._read(item._replace(path=path))._replace(item=item)
        except images.ImageError as error:
            return Content(item, item.kind, reason=error.reason)

    def _read(self, item: Item) -> Content:
        kind = item.kind
        # Suffixes may be wrong.
        if kind == inputs.VIDEO and images.format_of(item.path):
            kind = inputs.IMAGE
        try:
            if kind == inputs.IMAGE:
                try:
                    return self._picture(item)
                except images.ImageError:
                    if not kinds.is_video(item.path):
                        raise
                    kind = inputs.VIDEO
            result = self._video(item.path)
            return Content(item, kind, reason=result.reason, video=result)
        except (images.ImageError, videos.VideoError) as error:
            return Content(item, kind, reason=error.reason)
        except UserError:
            raise
        # One file in thousands must not end the work on the others.
        except Exception as error:
            if self._debug:
                raise
            text = " ".join(f"{type(error).__name__}: {error}".split())[:_LONGEST]
            return Content(item, kind, reason=f"unexpected error, {text}")

    def picture(self, path: str) -> Crops:
        """Reads what is scored of a picture.

        Raises:
          ImageError: the file is no picture, or damaged.
        """
        picture = images.read(path, self._preprocessing.decoding)
        pixels = picture.pixels
        if reason := images.nothing_to_judge(pixels):
            return Crops([], [], reason, picture)
        if self._find is None:
            return Crops([pixels], [None], "", picture)
        cut, reason = self._find(pixels)
        crops, boxes = [face.crop for face in cut], [face.box for face in cut]
        return Crops(crops, boxes, reason, picture)

    def _picture(self, item: Item) -> Content:
        seen = self.picture(item.path)
        if seen.reason:
            return Content(item, inputs.IMAGE, reason=seen.reason)
        views = [self._preprocessing(crop) for crop in seen.crops]
        stacked = np.stack([v if v.ndim == 4 else v[None] for v in views])
        boxes, notes = tuple(seen.boxes), seen.picture.notes
        return Content(item, inputs.IMAGE, stacked, boxes, notes=notes)


def scored(
    contents: Iterable[Content], score: Callable[[np.ndarray], np.ndarray], batch: int
) -> Iterator[tuple[Content, np.ndarray]]:
    """Scores contents of files, in batches across files; keeps the order.

    Args:
      contents: in any number.
      score: [b, v, size, size, 3] uint8 -> [b] float64, see `Detector.logits`.
      batch: the most views, b * v, unless v alone is more. Where there was one of that
        size, the last is filled up to it: another size would be compiled.

    Yields:
      Each with the logits [k] of its faces; [0] where there is nothing to score.
    """
    # Contents that are not yielded yet, in the same order.
    waiting: collections.deque[Content] = collections.deque()
    views: list[np.ndarray] = []
    logits = np.zeros(0)
    filled_up = False

    def score_waiting(*, rest: bool) -> None:
        nonlocal logits, views
        stacked = np.concatenate(views)
        count = max(1, batch // stacked.shape[1])
        end = len(stacked) if rest else len(stacked) // count * count
        parts = [stacked[i : i + count] for i in range(0, end, count)]
        if rest and filled_up:
            scores = [full(part, batch, score) for part in parts]
        else:
            scores = [score(part) for part in parts]
        logits = np.concatenate([logits, *scores])
        views = [stacked[end:]]

    def next_scored() -> tuple[Content, np.ndarray]:
        nonlocal logits
        first = waiting.popleft()
        own, logits = np.split(logits, [len(first.boxes)])
        return first, own

    for content in contents:
        waiting.append(content)
        if content.views is not None:
            views.append(content.views)
            if sum(part.shape[0] * part.shape[1] for part in views) >= batch:
                score_waiting(rest=False)
                filled_up = True
        while waiting and len(waiting[0].boxes) <= len(logits):
            yield next_scored()
    if views:
        score_waiting(rest=True)
    while waiting:
        yield next_scored()


def full(
    views: np.ndarray, batch: int, score: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """Scores views [b, v, size, size, 3] in a batch that is filled up, see `scored`."""
    count = max(1, batch // views.shape[1])
    missing = max(count - len(views), 0)
    black = np.zeros((missing, *views.shape[1:]), np.uint8)
    return score(np.concatenate([views, black]))[: len(views)]
