"""Cuts the faces out of one video and writes them."""

import dataclasses
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from fdftnet_jax import files
from fdftnet_jax.data import images, kinds
from fdftnet_jax.errors import UserError
from fdftnet_jax.faces import choice, videos
from fdftnet_jax.faces.detection import FaceDetector

# Folder, in the output, of crops that are not complete yet.
INCOMPLETE = ".incomplete"
# File, in a video's folder, of its record.
RECORD = ".prepared.json"
# Reason for which a frame has no crop, besides those of `videos` and `choice`.
ANOTHER = "smaller than the usual face"
# Where one face a frame is taken: below this share of the median of the video's faces,
# it is taken for that of somebody in the background.
_USUAL_SHARE = 1 / 2


@dataclasses.dataclass(frozen=True)
class Rules(choice.FaceRules):
    """What determines the crops of a video; see `configs/prepare_faces.py`."""

    every: int = 10
    max_frames: int = 0


class Task(NamedTuple):
    """A video and where its crops go."""

    video: str  # Posix path below the input.
    path: str  # Where the file is.
    folder: str  # Where the crops go.


class Record(NamedTuple):
    """The crops of a video that was read to its end, and why frames have none."""

    # Of the file: bytes and nanoseconds.
    stamp: list[int]
    # frame, face, seconds, x, y, width, height, crop_x, crop_y, crop_side, confidence.
    crops: list[list]
    # frame, reason, detail. A frame is in here or has crops; never both.
    rejected: list[list]
    bytes: int


def record_of(task: Task) -> Record | None:
    """Reads the record of a video; None where it is not done, or has changed."""
    try:
        text = (Path(task.folder) / RECORD).read_text()
    except FileNotFoundError:
        if os.path.exists(task.folder):
            raise UserError(
                f"expected no {task.folder}, or one that this command has made, found "
                "another; move it elsewhere, or give another --output"
            ) from None
        return None
    record = Record(**json.loads(text))
    return record if record.stamp == stamp_of(task.path) else None


def stamp_of(path: str) -> list[int]:
    """What changes with a file's content: its size and time; [-1, -1] of no file."""
    try:
        status = os.stat(path)
    except OSError:
        return [-1, -1]
    return [status.st_size, status.st_mtime_ns]


class Preparer:
    """Prepares one video after the other, in a process of its own."""

    def __init__(self, detector: type[FaceDetector], rules: Rules, output: str):
        # There is a process for each core.
        cv2.setNumThreads(1)
        self._detect = detector()
        self._rules = rules
        self._temporary = Path(output, INCOMPLETE, str(os.getpid()))

    def __call__(self, task: Task) -> Record | str:
        """Returns the record of a video, or why it cannot be read."""
        # Of the file as it is now: one that changes meanwhile is read again.
        stamp = stamp_of(task.path)
        shutil.rmtree(self._temporary, ignore_errors=True)
        self._temporary.mkdir(parents=True)
        try:
            record = self._cut(task, stamp)
        except videos.VideoError as error:
            return error.reason
        text = json.dumps(record._asdict()) + "\n"
        files.write_atomic(self._temporary / RECORD, text)
        shutil.rmtree(task.folder, ignore_errors=True)
        Path(task.folder).parent.mkdir(parents=True, exist_ok=True)
        self._temporary.rename(task.folder)
        return record

    def _cut(self, task: Task, stamp: list[int]) -> Record:
        record = Record(stamp, [], [], 0)
        written = 0
        rules = self._rules
        for frame in _frames(task.path, rules):
            if frame.pixels is None:
                record.rejected.append([frame.number, frame.problem, ""])
                continue
            chosen = choice.find(frame.pixels, self._detect, rules)
            if not chosen.faces:
                record.rejected.append([frame.number, chosen.reason, chosen.detail])
            for index, face in enumerate(chosen.faces):
                square = chosen.squares[index]
                png = images.encode_png(square.cut(frame.pixels))
                name = crop_name(frame.number, index)
                (self._temporary / name).write_bytes(png)
                written += len(png)
                *box, confidence = face
                seconds = round(frame.seconds, 6)
                row = [frame.number, index, seconds, *box, *square, confidence]
                record.crops.append(row)
        record = record._replace(bytes=written)
        return self._without_others(record) if rules.faces == "largest" else record

    def _without_others(self, record: Record) -> Record:
        """Leaves out, and deletes, the crops of faces much smaller than the usual."""
        sides = [
            max(width, height) for *_, width, height in (r[:7] for r in record.crops)
        ]
        usual = float(np.median(sides)) if sides else 0.0
        crops, rejected = [], list(record.rejected)
        for side, row in zip(sides, record.crops, strict=True):
            if side >= _USUAL_SHARE * usual:
                crops.append(row)
            else:
                (self._temporary / crop_name(*row[:2])).unlink()
                rejected.append([row[0], ANOTHER, f"{side} of {usual:g} pixels"])
        return record._replace(crops=crops, rejected=sorted(rejected))


def _frames(path: str, rules: Rules) -> Iterator[videos.Frame]:
    """The frames of a video that are looked at; a picture is one.

    Raises:
      VideoError: the file cannot be read.
    """
    if kinds.kind_of(path) == kinds.IMAGE:
        try:
            yield videos.Frame(0, 0.0, images.decode(path))
        except images.ImageError as error:
            raise videos.VideoError(path, error.reason) from error
        return
    yield from videos.read(path, rules.every, rules.max_frames)


def crop_name(frame: int, face: int) -> str:
    """The file name of a crop."""
    return f"{frame:06d}_{face}.png"
