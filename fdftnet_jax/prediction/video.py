"""Scores a video: its faces are followed through time, and each crop is scored.

Frames are sampled; the faces of the sampled frames are joined to tracks, one for each
person as long as the face is seen; each crop is scored, and a track has the mean of its
crops' logits (as `evaluation.results` pools the images of a group).

**The video's logit is that of the track that looks most fake**, of those with at least
`LEAST_FRAMES` crops; where none has so many, of all of them. One forged face makes a
forged video, however many real ones are beside it; but a track of one or two crops is
often no face, or one that is turned away, and of many short tracks some look fake by
chance. With more people in it, a real video is more likely to be called fake: a
threshold holds for one track.
"""

import dataclasses
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from scipy import optimize

from fdftnet_jax.errors import counted
from fdftnet_jax.faces.choice import FaceRules
from fdftnet_jax.prediction import sampling
from fdftnet_jax.prediction.faces import Box

# Sampled frames in which a face must be seen to decide on its own.
LEAST_FRAMES = 3
# How the note of a video begins that was not read to its end.
IN_PART = "read in part"
NOT_FINITE = "the detector gave no number"
EVERY, MAX_FRAMES, SECONDS = 10, 300, 600.0
# Views that the network scores at a time; a power of two, see `Detector.logits`.
BATCH = 64
# A face is hardly followed over longer steps than this, in seconds.
_LONG_STEP = 1.0
# Boxes of two sampled frames are of one face from this share of their union on. A head
# that turns or nods moves by less than half its box in the 0.4 s between two frames.
_LEAST_OVERLAP = 0.2
# A track ends when its face is missed in so many sampled frames in a row.
GAP = 3


@dataclasses.dataclass(frozen=True)
class Track:
    """One face, in the sampled frames in which it was found.

    Attributes:
      frames: [n] int, the numbers of the frames in the video.
      times: [n] float64, in seconds from its start.
      boxes: [n, 4] int, x, y, width, height of the face in pixels.
      logits: [n] float64, log odds of fake of each crop.
    """

    frames: np.ndarray
    times: np.ndarray
    boxes: np.ndarray
    logits: np.ndarray

    @property
    def logit(self) -> float:
        """The mean of the crops' logits."""
        return float(self.logits.mean())

    @property
    def deviation(self) -> float | None:
        """Standard deviation of the crops' logits; None with one crop."""
        return float(self.logits.std(ddof=1)) if self.logits.size > 1 else None


@dataclasses.dataclass(frozen=True)
class VideoResult:
    """The tracks of a video, which of them decides, and notes about the reading.

    Attributes:
      frames: number of sampled frames, damaged ones among them.
      seconds: time of the last of them.
      tracks: in the order of their first frames.
      deciding: which of them the video's logit is of; None where there is none.
      reason: why there is no score; '' where there is one.
      notes: what to know before trusting the score.
      faces: whether the tracks are of faces; otherwise there is one, of whole frames.
    """

    frames: int
    seconds: float
    tracks: tuple[Track, ...]
    deciding: int | None
    reason: str
    notes: tuple[str, ...]
    faces: bool = True

    @property
    def logit(self) -> float | None:
        """The logit of the deciding track."""
        return None if self.deciding is None else self.tracks[self.deciding].logit

    def counts(self, track: int) -> bool:
        """Whether a track is long enough to make the video fake (see the module)."""
        return track in _candidates(self.tracks)


def score_video(
    path: str,
    detector: Any,
    *,
    rules: FaceRules | None,
    score: Callable[[np.ndarray], np.ndarray] | None = None,
    every: int = EVERY,
    max_frames: int = MAX_FRAMES,
    seconds: float = SECONDS,
    stop: threading.Event | None = None,
    reader: sampling.Reader = sampling.read,
    progress: Callable[[int, int], None] = lambda frame, total: None,
) -> VideoResult:
    """Scores a video; one that cannot be read has no score, and a reason.

    A process of its own reads it. Of the frames, only a batch of views is in memory.

    Args:
      path: the file.
      detector: a `Detector`, for its preprocessing.
      rules: how faces are cut out (see `faces.rules_of`); None scores whole frames,
        which are one track.
      score: v views each of b faces, [b, v, size, size, 3] uint8 -> their logits [b],
        log odds of fake; by default `detector.logits`. There are at most 64 views,
        unless v alone is more.
      every: looks at every n-th frame.
      max_frames: at most so many of them, spread evenly; 0 for all.
      seconds: for reading, without the time of scoring. A video that takes longer is
        scored as far as it was read.
      stop: once it is set, reading ends, within a moment; the video is scored as far
        as it was read.
      reader: stands in for the process.
      progress: is told the number of frames that lie behind the reader, and that of all
        frames, roughly, 0 where it is not known.

    Raises:
      UserError: the face detector's packages are missing.
    """
    task = sampling.Task(path, every, max_frames, rules, detector.preprocessing)
    collector = _Collector(score or detector.logits, followed=rules is not None)
    rejected: Counter[str] = Counter()
    stopped = ""
    times: list[float] = []
    shown: set[str] = set()
    for sample in reader(task, seconds, stop):
        if isinstance(sample, sampling.Stopped):
            stopped = sample.reason
            continue
        times.append(sample.seconds)
        progress(sample.number + 1, sample.total)
        if sample.views is None:
            rejected[re.split(r" \(|: ", sample.reason)[0]] += 1
        elif sample.note:
            shown.add(sample.note)
        collector.add(sample)
    tracks = collector.finish()
    if not all(np.isfinite(track.logits).all() for track in tracks):
        stopped, tracks = NOT_FINITE, ()
    candidates = _candidates(tracks)
    return VideoResult(
        frames=len(times),
        seconds=max(times, default=0.0),
        tracks=tracks,
        deciding=max(candidates, key=lambda i: tracks[i].logit, default=None),
        reason="" if tracks else _why_none(stopped, len(times), rejected),
        notes=(
            *_notes(tracks, stopped, times, rejected, rules is not None),
            *sorted(shown),
        ),
        faces=rules is not None,
    )


def describe_frames(count: int, deviation: float | None) -> str:
    """Describes the frames of a mean logit: '24 frames, deviation 0.71'.

    Args:
      count: how many there are.
      deviation: standard deviation of their logits; None with one frame.
    """
    frames = counted(count, "frame")
    return frames if deviation is None else f"{frames}, deviation {deviation:.2f}"


def _candidates(tracks: Sequence[Track]) -> list[int]:
    """The numbers of the tracks that may decide."""
    long = [i for i, track in enumerate(tracks) if track.logits.size >= LEAST_FRAMES]
    return long or list(range(len(tracks)))


def _notes(
    tracks: Sequence[Track],
    stopped: str,
    times: Sequence[float],
    rejected: Counter[str],
    faces: bool,
) -> Iterator[str]:
    """What to know before trusting the score; nothing where there is none."""
    if not tracks:
        return
    frames, damaged = len(times), rejected[sampling.DAMAGED]
    without = rejected.total() - damaged
    if stopped:
        yield f"{IN_PART}: {stopped}"
    if damaged:
        yield f"damaged: {damaged} of {counted(frames, 'sampled frame')}"
    if without > frames / 2:
        what = "no face" if faces else "nothing to judge"
        yield f"{what} in {without} of {counted(frames, 'sampled frame')}"
    most = max(track.logits.size for track in tracks)
    if most < LEAST_FRAMES:
        yield (
            f"no face is seen in {LEAST_FRAMES} sampled frames"
            if faces
            else f"only {counted(most, 'frame')} could be scored"
        )
    step = float(np.median(np.diff(times))) if frames > 1 else 0.0
    if faces and step > _LONG_STEP:
        yield f"sampled frames are {step:.1f} s apart: a track may be of several people"


def _why_none(stopped: str, frames: int, rejected: Counter[str]) -> str:
    reasons = [f"{count} x {reason}" for reason, count in rejected.most_common(3)]
    sampled = f"{counted(frames, 'frame')} sampled"
    without = f"{sampled}: {', '.join(reasons)}" if reasons else ""
    return "; ".join(part for part in (without, stopped) if part) or "no frames"


class _Collector:
    """Collects samples as tracks; scores views a batch at a time."""

    def __init__(self, score: Callable[[np.ndarray], np.ndarray], *, followed: bool):
        self._score = score
        self._follower = Follower() if followed else None
        # Track -> frame, seconds, box, logit of each crop.
        self._rows: list[list[tuple[int, float, Box, float]]] = []
        self._waiting: list[tuple[int, int, float, Box, np.ndarray]] = []
        self._views = 0

    def add(self, sample: sampling.Sample) -> None:
        """Takes the next sample, also one without a face."""
        if self._follower is None:
            numbers = [0] * len(sample.boxes)
        else:
            numbers = self._follower.follow(sample.boxes)
        if sample.views is None:
            return
        for number, box, views in zip(numbers, sample.boxes, sample.views, strict=True):
            if self._views + len(views) > BATCH:
                self._flush()
            row = number, sample.number, sample.seconds, box, views
            self._waiting.append(row)
            self._views += len(views)

    def _flush(self) -> None:
        if not self._waiting:
            return
        logits = np.asarray(self._score(np.stack([row[-1] for row in self._waiting])))
        for (number, frame, seconds, box, _), logit in zip(
            self._waiting, logits, strict=True
        ):
            while len(self._rows) <= number:
                self._rows.append([])
            self._rows[number].append((frame, seconds, box, float(logit)))
        self._waiting, self._views = [], 0

    def finish(self) -> tuple[Track, ...]:
        """Scores what waits; returns all tracks, in the order of their numbers."""
        self._flush()
        tracks = []
        for rows in self._rows:
            frames, times, boxes, logits = zip(*rows, strict=True)
            tracks.append(
                Track(
                    np.array(frames),
                    np.array(times, np.float64),
                    np.array(boxes).reshape(-1, 4),
                    np.array(logits, np.float64),
                )
            )
        return tuple(tracks)


class Follower:
    """Gives each face of a video the number of its track, frame by frame.

    The boxes of a frame are matched to the last boxes of the tracks, so that the sum of
    their overlaps (intersection over union) is largest. What is left over begins a
    track. Faces are told apart by their places alone: where the picture is cut, or much
    time passes between two sampled frames, one track may be of two people.
    """

    def __init__(self) -> None:
        self._number = 0
        self._frame = 0
        # Track -> its last box, and the sampled frame that this is of.
        self._last: dict[int, tuple[Box, int]] = {}

    def follow(self, boxes: list[Box]) -> list[int]:
        """Finds the tracks of the faces of the next sampled frame, numbered from 0.

        Args:
          boxes: of its faces, may be none.
        """
        self._frame += 1
        self._last = {
            track: (box, frame)
            for track, (box, frame) in self._last.items()
            if self._frame - frame <= GAP
        }
        names = list(self._last)
        shares = overlap(boxes, [box for box, _ in self._last.values()])
        # Pairs that are too far apart count nothing, and are left.
        shares[shares < _LEAST_OVERLAP] = 0
        of_box: dict[int, int] = {}
        for row, column in zip(
            *optimize.linear_sum_assignment(shares, maximize=True), strict=True
        ):
            if shares[row, column]:
                of_box[int(row)] = names[column]
        for i, box in enumerate(boxes):
            if i not in of_box:
                of_box[i] = self._number
                self._number += 1
            self._last[of_box[i]] = box, self._frame
        return [of_box[i] for i in range(len(boxes))]


def overlap(boxes: list[Box], others: list[Box]) -> np.ndarray:
    """Intersection over union of each box with each other one: [boxes, others]."""
    a = np.array(boxes, np.float64).reshape(-1, 1, 4)
    b = np.array(others, np.float64).reshape(1, -1, 4)
    ends = np.minimum(a[..., :2] + a[..., 2:], b[..., :2] + b[..., 2:])
    sides = np.maximum(ends - np.maximum(a[..., :2], b[..., :2]), 0)
    common = np.prod(sides, axis=-1)
    union = np.prod(a[..., 2:], axis=-1) + np.prod(b[..., 2:], axis=-1) - common
    return common / union
