"""Looks closer at one file: what the network saw of it, and what kind of file it is.

Of a picture there is, for each face, the view that was scored and maps of it; of a
video, the scores of its frames against time. Facts of a file are its format, size and
compression: nothing of what a camera or a telephone writes beside the picture.
"""

import dataclasses
import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from fdftnet_jax.data import images
from fdftnet_jax.errors import UserError
from fdftnet_jax.faces import videos, workers
from fdftnet_jax.prediction import explain, stream, timeline
from fdftnet_jax.prediction.results import Judge, Row
from fdftnet_jax.prediction.video import VideoResult

# Faces of a picture, or people of a video, that are looked at.
MOST_FACES = 12
# Longest side in pixels of the picture that is kept for a report.
_SIDE = 900
# Seconds for reading what a video says of itself.
_PATIENCE = 20.0
# Matplotlib's style belongs to the whole process.
_drawing = threading.Lock()


class Map(NamedTuple):
    """Where in a view a score came from."""

    title: str
    below: str  # What the brightest colour stands for.
    pixels: np.ndarray  # [side, side, 3] uint8, the colours alone.


class Face(NamedTuple):
    """A face as the network saw it."""

    view: np.ndarray  # [size, size, 3] uint8, as it was scored.
    note: str  # Which window it is, where there are several.
    maps: tuple[Map, ...]


@dataclasses.dataclass(frozen=True)
class Case:
    """A file that is looked at closer.

    Attributes:
      rows: its results, see `results`.
      sha256: of the file.
      facts: what kind of file it is, in words: name -> value.
      faces: of a picture, in the order of their rows; at most `MOST_FACES`.
      note: what maps there are not, and why.
      picture: [h, w, 3] uint8, reduced, and by how much: 1 for not at all; None of a
        video and of what is no picture.
      timeline: of a video, the text of an SVG; '' without frames that were scored.
      moments: of a video, (number, seconds) of the most fake frame of each person, at
        most `MOST_FACES`.
    """

    rows: list[Row]
    sha256: str
    facts: dict[str, str]
    faces: tuple[Face, ...] = ()
    note: str = ""
    picture: tuple[np.ndarray, float] | None = None
    timeline: str = ""
    moments: tuple[tuple[int, float], ...] = ()


def of_picture(
    path: str,
    rows: list[Row],
    reader: stream.Reader,
    detector: Any,
    logits: Callable[[np.ndarray], np.ndarray],
) -> Case:
    """Looks closer at a picture that has been judged.

    Args:
      path: of the file.
      rows: its results.
      reader: that it was read with.
      detector: a `Detector`.
      logits: [b, size, size, 3] uint8 -> [b], log odds of fake.
    """
    digest, facts = sha256(path), {"bytes": f"{os.path.getsize(path):,}"}
    try:
        seen = reader.picture(path)
    except images.ImageError:
        # The row says why.
        return Case(rows, digest, facts)
    faces, note = [], ""
    for crop in seen.crops[:MOST_FACES]:
        view, which = explain.scored_view(crop, detector.preprocessing, logits)
        maps, note = _maps(detector, view)
        faces.append(Face(view, which, maps))
    if (more := len(seen.crops) - MOST_FACES) > 0:
        note = "; ".join([*filter(None, [note]), f"{more} more faces are not shown"])
    facts = _facts_of_picture(seen.picture) | facts
    return Case(rows, digest, facts, tuple(faces), note, _reduced(seen.picture.pixels))


def of_video(
    path: str,
    rows: list[Row],
    result: VideoResult,
    judge: Judge,
    detector: Any,
    stop: threading.Event,
) -> Case:
    """Looks closer at a video that has been judged.

    Args:
      path: of the file.
      rows: its results.
      result: what they were made of.
      judge: that made them.
      detector: a `Detector`.
      stop: once it is set, the reading ends.
    """
    digest, facts = sha256(path), {"bytes": f"{os.path.getsize(path):,}"}
    facts = _facts_of_video(path, stop) | facts
    if not result.tracks:
        return Case(rows, digest, facts)
    drawn = Path(f"{path}.svg")
    with _drawing:
        timeline.draw(
            *(drawn, result, judge.threshold),
            lower=judge.lower,
            probability=detector.probability,
            name="each frame, by its time",
            first=1,
        )
    moments = tuple(
        (number, float(track.times[track.logits.argmax()]))
        for number, track in enumerate(result.tracks[:MOST_FACES])
    )
    svg = drawn.read_text()
    drawn.unlink()
    return Case(rows, digest, facts, timeline=svg, moments=moments)


def sha256(path: str) -> str:
    """Digest of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _maps(detector: Any, view: np.ndarray) -> tuple[tuple[Map, ...], str]:
    """Maps of a view, those of single stages left out; why there are none."""
    try:
        rows, note = explain.panels(detector, view)
    except UserError:
        return (), "the detector's file has a program alone: no maps"
    shown = (panel for panel in rows[0] if panel.heat is not None)
    maps = (Map(p.title, p.below, explain.coloured(p)) for p in shown)
    return tuple(maps), note


def _reduced(pixels: np.ndarray) -> tuple[np.ndarray, float]:
    height, width, _ = pixels.shape
    scale = min(1.0, _SIDE / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    return small, scale


def _facts_of_picture(picture: images.Picture) -> dict[str, str]:
    height, width, _ = picture.pixels.shape
    facts = {"format": picture.format, "size": f"{width:,} x {height:,} pixels"}
    if picture.quality is not None:
        colours = f", colours {picture.subsampling}" if picture.subsampling else ""
        facts["compression"] = f"JPEG, quality about {picture.quality}{colours}"
    return facts


def _facts_of_video(path: str, stop: threading.Event) -> dict[str, str]:
    # In a process of its own: a broken video can take down what reads it.
    found = next(workers.stream(_headers, path, _PATIENCE, stop), None)
    if not isinstance(found, videos.Header):
        return {}
    facts = {
        "format": found.container,
        "size": f"{found.width:,} x {found.height:,} pixels",
        "compression": found.codec,
        "length": f"about {found.frames:,} frames, {found.rate:.4g} a second",
    }
    if found.seconds:
        facts["length"] = f"{found.seconds:.1f} s, {facts['length']}"
    return facts


def _headers(path: str) -> Iterator[videos.Header | None]:
    try:
        yield videos.header(path)
    except videos.VideoError:
        yield None
