"""Turns inputs into rows of results: what `fdftnet predict` and `serve` have in common.

A file is read in any thread, the network scores the views of several files in a batch,
and the logits become rows.
"""

import contextlib
import functools
import os
import threading
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

import fdftnet_jax
from fdftnet_jax import parallel
from fdftnet_jax.data import images
from fdftnet_jax.faces.choice import FaceRules
from fdftnet_jax.prediction import faces, inputs, outputs, results, stream, video
from fdftnet_jax.prediction.results import Row

# Batches of files that may be decoded before the network needs them.
_AHEAD = 2
SCHEMA_VERSION = 2


def face_rules(choice: str, detector: Any) -> FaceRules | None:
    """Chooses the rules by which faces are cut out; None scores pictures as they are.

    Args:
      choice: 'crop', 'whole', or 'auto': as the detector was trained.
      detector: a `Detector`.

    Raises:
      UserError: the detector's card has no rules that can be followed.
    """
    card_rules = detector.card["faces"]
    if choice == "crop" or (choice == "auto" and card_rules is not None):
        return faces.rules_of(card_rules)
    return None


def header(detector: Any, judge: results.Judge, *, crop: bool) -> dict[str, Any]:
    """Describes what the results depend on, for JSON."""
    card = detector.card
    lower = {"lower": judge.lower} if judge.lower < judge.threshold else {}
    return {
        "schema_version": SCHEMA_VERSION,
        "fdftnet_jax": fdftnet_jax.__version__,
        "detector": {
            "name": card["name"],
            "sha256": detector.digest,
            "toy": card["toy"],
        },
        "threshold": {"of": judge.of, "value": judge.threshold, **lower},
        "faces": "crop" if crop else "whole",
    }


class Scorer:
    """Reads files, and makes rows of what the network says of them."""

    def __init__(
        self,
        detector: Any,
        judge: results.Judge,
        rules: FaceRules | None,
        *,
        plots: str | None = None,
        explain: str | None = None,
        opened: stream.Opened = contextlib.nullcontext,
        debug: bool = False,
    ):
        """Keeps how inputs are scored.

        Args:
          detector: a `Detector`.
          judge: gives the verdicts.
          rules: see `face_rules`.
          plots: folder of the timelines of videos; None for none.
          explain: folder of what the network looks at; None for none.
          opened: see `stream.Reader`.
          debug: whether an unexpected error ends the work, instead of being a reason.
        """
        self._detector = detector
        self._judge = judge
        self._rules = rules
        self._plots = plots
        self._explanations = explain
        self._opened = opened
        self._debug = debug
        # The network has all cores already; and compiles once.
        self._lock = threading.Lock()

    def reader(
        self,
        stop: threading.Event,
        *,
        batch: int = video.BATCH,
        score: Callable[[np.ndarray], np.ndarray] | None = None,
        progress: Callable[[int, int], None] = lambda frame, total: None,
    ) -> stream.Reader:
        """Makes what reads a file in any thread, and scores those that are videos.

        Args:
          stop: once it is set, the reading of a video ends.
          batch: the views of a video that are scored at a time; there are as many
            always, since each number is compiled.
          score: see `logits`, which it stands in for.
          progress: of a video, see `video.score_video`.
        """
        rules = self._rules

        def score_video(path: str) -> video.VideoResult:
            return video.score_video(
                path,
                self._detector,
                rules=rules,
                score=lambda views: stream.full(views, batch, score or self.logits),
                stop=stop,
                progress=progress,
            )

        return stream.Reader(
            self._detector.preprocessing,
            find=None if rules is None else functools.partial(faces.find, rules=rules),
            video=score_video,
            opened=self._opened,
            debug=self._debug,
        )

    def rows(
        self, items: Iterator[inputs.Item], threads: int = 0
    ) -> Generator[list[Row], None, None]:
        """Yields the rows of each input, in order.

        Args:
          items: the inputs.
          threads: that read files; 0 for one for each core.
        """
        # For the videos that are being read.
        stop = threading.Event()
        read = parallel.in_order(
            self.reader(stop),
            items,
            threads=threads or os.cpu_count() or 1,
            ahead=_AHEAD * video.BATCH,
        )
        # Each of the threads looks for faces: OpenCV's own would be in their way.
        before = cv2.getNumThreads()
        cv2.setNumThreads(1)
        try:
            for content, logits in stream.scored(read, self.logits, video.BATCH):
                yield self.rows_of(content, logits)
        finally:
            # The process ends when its threads do.
            stop.set()
            read.close()
            cv2.setNumThreads(before)

    def logits(self, views: np.ndarray) -> np.ndarray:
        """Scores views [b, v, size, size, 3] uint8: [b] float64; in any thread."""
        with self._lock:
            return np.asarray(self._detector.logits(views), np.float64)

    def rows_of(self, content: stream.Content, logits: np.ndarray) -> list[Row]:
        """Makes the rows of an input; draws its figures.

        Args:
          content: of the input.
          logits: [k] of its faces; [0] where there is nothing to score.
        """
        path = content.item.path
        if content.video is not None:
            if self._plots is not None and content.video.tracks:
                self._plot(self._plots, path, content.video)
            return self._judge.video(path, content.kind, content.video)
        if content.reason:
            return [Row(path, content.kind, reason=content.reason)]
        rows = self._judge.picture(
            path, content.kind, content.boxes, logits.tolist(), notes=content.notes
        )
        if self._explanations is not None:
            self._explain(self._explanations, path, rows)
        return rows

    def _plot(self, folder: str, path: str, result: video.VideoResult) -> None:
        from fdftnet_jax.prediction import timeline

        timeline.draw(
            Path(folder, outputs.figure_name(path, ".svg")),
            result,
            self._judge.threshold,
            lower=self._judge.lower,
            probability=self._detector.probability,
            name=os.path.basename(path),
        )

    def _explain(self, folder: str, path: str, rows: list[Row]) -> None:
        from fdftnet_jax.prediction import explain

        # Read once more: kept until they are scored, pictures could fill the memory.
        with contextlib.suppress(images.ImageError, IndexError):
            crops = self.reader(threading.Event()).picture(path).crops
            explain.draw(
                Path(folder, outputs.figure_name(path, ".png")),
                path,
                crops[results.deciding(rows)],
                self._detector,
                rows[0],
                threshold=self._judge.threshold,
                lower=self._judge.lower,
            )
