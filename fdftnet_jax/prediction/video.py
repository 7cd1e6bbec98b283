"""What a detector says of a video: its faces followed through time, and scored.

Frames are sampled; the faces of the sampled frames are joined to tracks, one for each
person as long as he is seen; each crop is scored, and a track has the mean of its
crops' logits (as `evaluation.results` pools the images of a group).

**The video's logit is that of the track that looks most fake**, of those with at least
`LEAST_FRAMES` crops; where none has so many, of all of them. One forged face makes a
forged video, however many real ones are beside it; but a track of one or two crops is
often no face, or one that is turned away, and of many short tracks some look fake by
chance. With more people in it, a real video is more likely to be called fake: a
threshold holds for one track.
"""

import dataclasses
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fdftnet_jax.errors import counted
from fdftnet_jax.faces.choice import FaceRules
from fdftnet_jax.prediction import sampling, spread
from fdftnet_jax.prediction.faces import Box
from fdftnet_jax.prediction.tracks import Follower

# Sampled frames in which a face must be seen to decide on its own, where some are.
LEAST_FRAMES = 3
NOT_FINITE = "the detector gave no number"
EVERY, MAX_FRAMES, SECONDS = 10, 300, 600.0
# Views are scored so many at a time.
_BATCH = 64
# A face is hardly followed over longer steps than this, in seconds.
_LONG_STEP = 1.0


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

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval of `logit`, None with too few crops (see `spread.interval`).

        It is of the choice of the moment in this video: of what the detector gets wrong
        about the whole of it, it says nothing.
        """
        return spread.interval(self.logits)


@dataclasses.dataclass(frozen=True)
class VideoResult:
    """What is known of a video.

    Attributes:
      frames: how many sampled frames were looked at, damaged ones among them.
      seconds: time of the last of them.
      tracks: in the order of their first frames.
      deciding: which of them the video's logit is of; None where there is none.
      rejected: why sampled frames have no crop, and how many.
      complete: whether the video was read to its end and no frame was damaged.
      reason: why there is no score; '' where there is one.
      notes: what a reader should know before he trusts the score.
      faces: whether the tracks are of faces; otherwise there is one, of whole frames.
    """

    frames: int
    seconds: float
    tracks: tuple[Track, ...]
    deciding: int | None
    rejected: dict[str, int]
    complete: bool
    reason: str
    notes: tuple[str, ...]
    faces: bool = True

    @property
    def logit(self) -> float | None:
        """Of the deciding track."""
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

    Raises:
      UserError: the face detector's packages are missing.
    """
    task = sampling.Task(path, every, max_frames, rules, detector.preprocessing)
    tracks = _Tracks(score or detector.logits, followed=rules is not None)
    rejected: Counter[str] = Counter()
    stopped = ""
    times: list[float] = []
    for found in reader(task, seconds, stop):
        if isinstance(found, sampling.Stopped):
            stopped = found.reason
            continue
        times.append(found.seconds)
        if found.views is None:
            rejected[found.reason.partition(" (")[0]] += 1
        tracks.add(found)
    scored = tracks.finish()
    finite = all(np.isfinite(track.logits).all() for track in scored)
    if not finite:
        stopped, scored = NOT_FINITE, ()
    candidates = _candidates(scored)
    deciding = max(candidates, key=lambda i: scored[i].logit, default=None)
    frames, damaged = len(times), rejected[sampling.DAMAGED]
    without = rejected.total() - damaged
    step = float(np.median(np.diff(times))) if frames > 1 else 0.0
    notes = [f"read in part: {stopped}"] * bool(stopped)
    if damaged:
        notes.append(f"damaged: {damaged} of {counted(frames, 'sampled frame')}")
    if without > frames / 2:
        notes.append(f"no face in {without} of {counted(frames, 'sampled frame')}")
    most = max((track.logits.size for track in scored), default=LEAST_FRAMES)
    if most < LEAST_FRAMES and rules is None:
        notes.append(f"only {counted(most, 'frame')} could be scored")
    elif most < LEAST_FRAMES:
        notes.append(f"no face is seen in {LEAST_FRAMES} sampled frames")
    if rules is not None and step > _LONG_STEP:
        notes.append(
            f"sampled frames are {step:.1f} s apart: a track may be of several people"
        )
    return VideoResult(
        frames=frames,
        seconds=max(times, default=0.0),
        tracks=scored,
        deciding=deciding,
        rejected=dict(rejected.most_common()),
        complete=not stopped and not damaged,
        reason="" if scored else _why_none(stopped, frames, rejected),
        notes=tuple(notes) if scored else (),
        faces=rules is not None,
    )


def _candidates(tracks: Sequence[Track]) -> list[int]:
    """The tracks that may decide."""
    long = [i for i, track in enumerate(tracks) if track.logits.size >= LEAST_FRAMES]
    return long or list(range(len(tracks)))


def _why_none(stopped: str, frames: int, rejected: Counter[str]) -> str:
    reasons = [f"{number} x {reason}" for reason, number in rejected.most_common(3)]
    sampled = f"{counted(frames, 'frame')} sampled"
    found = f"{sampled}: {', '.join(reasons)}" if reasons else ""
    return "; ".join(part for part in (found, stopped) if part) or "no frames"


class _Tracks:
    """Collects samples; scores views a batch at a time."""

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
            if self._views + len(views) > _BATCH:
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
        """All tracks, in the order of their numbers."""
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
