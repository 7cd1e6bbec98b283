"""Cuts the faces out of videos, to a folder of crops that the data sets read.

Each video below a folder becomes a folder at the same place below another:
`a/b/003.mp4` becomes `a/b/003/<frame>_<face>.png`. (So does a picture, a video of one
frame, where that is asked.) Such a folder takes its name when
it is complete, with a record of what is in it (`.prepared.json`), so that a killed run
goes on with the videos that are not done.
"""

import contextlib
import csv
import dataclasses
import functools
import io
import json
import math
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import cv2
import ml_collections
from tqdm import tqdm

from fdftnet_jax import checks, files
from fdftnet_jax.data import kinds, splits
from fdftnet_jax.errors import Interrupted, UserError, counted
from fdftnet_jax.faces import choice, videos, workers
from fdftnet_jax.faces.crops import (
    INCOMPLETE,
    RECORD,
    Preparer,
    Record,
    Rules,
    Task,
    crop_name,
    record_of,
)
from fdftnet_jax.faces.detection import DETECTORS, FaceDetector

MANIFEST = (
    *("video", "frame", "face", "seconds", "x", "y", "width", "height"),
    *("crop_x", "crop_y", "crop_side", "confidence", "crop", "source"),
)
REJECTED = ("video", "frame", "reason", "detail")
# Shown where there are no videos.
_USUAL = (".mp4", ".mov", ".avi", ".mkv", ".webm")


class Summary(NamedTuple):
    """Counts of what a run of `prepare` did, and of what there is now."""

    videos: int  # Of the input.
    new: int  # Of them, prepared now.
    changed: int  # Of those, for another time, because the file has changed.
    unreadable: int
    left_aside: dict[str, int]  # Files of the input that are no videos, by suffix.
    crops: int
    rejected: dict[str, int]  # Frames by reason, the most frequent first.
    seconds: float


def prepare(
    config: ml_collections.ConfigDict,
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    detectors: dict[str, type[FaceDetector]] = DETECTORS,
    *,
    pictures: bool = False,
    replace: bool = False,
) -> Summary:
    """Cuts the faces out of a video, or all videos of a folder; resumes earlier work.

    Writes the folders of crops and, beside them, `manifest.csv` (a row for each crop),
    `rejected.csv` (a row for each frame that was looked at and gave no crop, and for
    each video that cannot be read) and `preparation.json`. Files do not depend on the
    number of processes.

    Args:
      config: of `configs/prepare_faces.py`.
      source: the folder, or the video. Hidden files are ignored, links are followed.
      output: where crops go.
      detectors: what `config.detector` may be.
      pictures: whether pictures count as videos of one frame.
      replace: whether crops that were prepared otherwise may be replaced.

    Raises:
      UserError: if a value or a path does not fit, if the output holds other files or
        crops that were prepared otherwise, if it cannot be written, or if there is no
        crop at all.
      Interrupted: at a signal; videos that were done stay.
    """
    start = time.monotonic()
    choices = {"detector": detectors, "faces": ("largest", "all")}
    checks.check(config, _RANGES, choices)
    detector = detectors[config.detector]
    rules = _rules(config, detector)
    output = Path(splits.resolve(output))
    sought = (kinds.VIDEO, kinds.IMAGE)[: 1 + pictures]
    tasks, left_aside = _tasks(splits.resolve(source), output, sought)
    for task in tasks:
        _source_of(task.video, config.source_by)
    files.check_no_input(output, "--output", [source])
    _check_no_others(output)
    with _writing(output):
        output.mkdir(parents=True, exist_ok=True)
        with _owned(output):
            _keep_or_compare(_preparation(detector, rules), output, replace=replace)
            records = {task: record for task in tasks if (record := record_of(task))}
            new = [task for task in tasks if task not in records]
            changed = sum(os.path.exists(task.folder) for task in new)
            make = functools.partial(Preparer, detector, rules, str(output))
            failures = _prepare_new(make, new, config.workers, records)
            rejected = _write_tables(tasks, records, failures, config.source_by, output)
    crops = sum(len(record.crops) for record in records.values())
    if not crops:
        raise UserError(
            f"expected faces in {len(tasks)} videos of {source}, found none "
            f"({', '.join(f'{n} x {reason}' for reason, n in rejected.items())}), "
            f"listed in {output / 'rejected.csv'}; repair the videos, or lower "
            "config.min_size or config.min_confidence"
        )
    return Summary(
        videos=len(tasks),
        new=len(new) - len(failures),
        changed=changed,
        unreadable=len(failures),
        left_aside=left_aside,
        crops=crops,
        rejected=rejected,
        seconds=time.monotonic() - start,
    )


_RANGES: checks.Ranges = {
    "every": (int, 1, math.inf),
    "max_frames": (int, 0, math.inf),
    "margin": (float, 0, 10),
    "min_size": (int, 1, math.inf),
    "min_confidence": (float, 0, math.inf),
    "workers": (int, 0, math.inf),
}


def _rules(config: ml_collections.ConfigDict, detector: type[FaceDetector]) -> Rules:
    return Rules(
        detector=detector.name,
        every=config.every,
        max_frames=config.max_frames,
        faces=config.faces,
        margin=float(config.margin),
        min_size=config.min_size,
        min_confidence=float(config.min_confidence or detector.min_confidence),
    )


def _preparation(detector: type[FaceDetector], rules: Rules) -> dict[str, Any]:
    """What determines the crops, as `preparation.json` keeps it."""
    return {
        "schema_version": 1,
        "detector_version": detector.version(),
        "opencv": cv2.__version__,
        "pyav": videos.version(),
        **dataclasses.asdict(rules),
    }


def _tasks(
    source: str, output: Path, sought: Sequence[str]
) -> tuple[list[Task], dict[str, int]]:
    """Lists the videos of a folder, sorted by path, or the one that `source` is.

    Returns:
      The videos, and how many other files there are, by suffix.
    """
    root = Path(source)
    if not root.exists():
        raise UserError(
            f"expected a video or a folder of videos at {source!r}, found nothing; "
            "give its path with --input=PATH"
        )
    if root.is_file():
        root, listed = root.parent, [root.name]
    else:
        try:
            listed = sorted(splits.walk(root))
        except OSError as error:
            raise UserError(
                f"expected a readable folder at {error.filename or root}, found "
                f"{error.strerror or error}; change its permissions, or move it "
                "elsewhere"
            ) from error
    paths = [p for p in listed if kinds.kind_of(str(root / p)) in sought]
    others = sorted(set(listed) - set(paths))
    left_aside = Counter(PurePosixPath(p).suffix.lower() for p in others)
    if not paths:
        raise UserError(
            f"expected videos (such as {' '.join(_USUAL)}) in {source}, found "
            f"{counted(left_aside.total(), 'file')} of other kinds; give another "
            "--input"
        )
    folders: dict[PurePosixPath, str] = {}
    for path in paths:
        folder = PurePosixPath(path).with_suffix("")
        folders.setdefault(folder, path)
        for other in (folder, *folder.parents):
            if folders.get(other, path) != path:
                raise UserError(
                    f"expected each video of {source} to have a folder of its own, "
                    f"found {folders[other]} and {path}, whose crops would go to "
                    f"{other}/ and {folder}/; rename one of them"
                )
    tasks = [
        Task(path, str(root / path), str(output / PurePosixPath(path).with_suffix("")))
        for path in paths
    ]
    return tasks, dict(left_aside.most_common())


def _source_of(video: str, source_by: str) -> str:
    """Names what a video shows: its stem, or what a regex finds in its path."""
    if source_by == "stem":
        return PurePosixPath(video).stem
    return splits.search("source_by", source_by, video)


@contextlib.contextmanager
def _owned(output: Path) -> Iterator[None]:
    """Locks the output against other runs; removes what is incomplete."""
    try:
        with files.lock(output / ".lock", blocking=False):
            incomplete = output / INCOMPLETE
            try:
                shutil.rmtree(incomplete, ignore_errors=True)
                yield
            finally:
                shutil.rmtree(incomplete, ignore_errors=True)
    except BlockingIOError as holder:
        raise UserError(
            f"process {holder} is preparing faces in {output}: wait for it, or give "
            "another --output"
        ) from holder


@contextlib.contextmanager
def _writing(output: Path) -> Iterator[None]:
    """Turns everything that can go wrong with writing into one line."""
    advice = (
        "free space there and give the same command again, which goes on with the "
        "videos that are not done, or give another --output"
    )
    try:
        with files.writing("face crops", output, advice=advice):
            yield
    except OSError as error:
        raise UserError(
            f"expected to write face crops to {output}, found: {error}; give another "
            "--output"
        ) from error


def _check_no_others(output: Path) -> None:
    """Raises UserError where the output holds files that are no prepared crops."""
    if (output / choice.PREPARATION).exists() or not output.is_dir():
        return
    others = sorted(p.name for p in output.iterdir() if not p.name.startswith("."))
    if others:
        raise UserError(
            f"--output {output} holds files that this command did not make, such as "
            f"{files.printable(others[0])}; give another folder"
        )


def _keep_or_compare(
    preparation: dict[str, Any], output: Path, *, replace: bool
) -> None:
    """Writes how crops are prepared, or raises UserError where it was otherwise."""
    path = output / choice.PREPARATION
    text = json.dumps(preparation, indent=2) + "\n"
    old = json.loads(path.read_text()) if path.exists() else preparation
    changes = [
        f"{key}: {old.get(key)!r} -> {preparation.get(key)!r}"
        for key in sorted(old.keys() | preparation.keys())
        if old.get(key) != preparation.get(key)
    ]
    if changes and not replace:
        raise UserError(
            f"{output} holds crops that were prepared otherwise "
            f"({'; '.join(changes)}): give the old values to go on with them, "
            "--replace to prepare all anew, or another --output"
        )
    if changes:
        # First the crops by the old values: a killed command begins here again.
        for record in list(output.rglob(RECORD)):
            shutil.rmtree(record.parent)
    if changes or not path.exists():
        files.write_atomic(path, text)


def _prepare_new(
    make: Callable[[], Callable[[Task], Record | str]],
    tasks: Sequence[Task],
    processes: int,
    records: dict[Task, Record],
) -> dict[str, str]:
    """Prepares videos in processes of their own.

    Args:
      make: makes what prepares one video (see `Preparer`).
      tasks: the videos.
      processes: their number; 0 for one for each core.
      records: of the videos that are done, to which those of others are added.

    Returns:
      Video -> why it cannot be read.
    """
    failures = {}
    results = workers.deal(make, tasks, processes or os.cpu_count() or 1)
    before = len(records)
    # `disable=None` shows the bar on a terminal only.
    bar = tqdm(desc="face crops", total=len(tasks), unit=" videos", disable=None)
    try:
        with contextlib.closing(results), bar:
            for task, result in results:
                if isinstance(result, workers.Lost):
                    result = f"reading it ended with {result.signal}"
                if isinstance(result, Record):
                    records[task] = result
                else:
                    failures[task.video] = result
                    # What is there is of the file as it was before.
                    shutil.rmtree(task.folder, ignore_errors=True)
                bar.update()
    except Interrupted as error:
        raise Interrupted(
            error.signal,
            f"stopped by {error.signal.name}: {len(records)} of "
            f"{before + len(tasks) - len(failures)} videos are done; the same command "
            "goes on with the others",
        ) from None
    return failures


def _write_tables(
    tasks: Sequence[Task],
    records: dict[Task, Record],
    failures: dict[str, str],
    source_by: str,
    output: Path,
) -> dict[str, int]:
    """Writes `manifest.csv` and `rejected.csv`; counts the reasons of the latter."""
    crops, rejected, reasons = [], [], Counter[str]()
    for task in tasks:
        if task not in records:
            reason = f"unreadable {kinds.kind_of(task.path) or kinds.VIDEO}"
            rejected.append([task.video, "", reason, failures[task.video]])
            continue
        folder = PurePosixPath(task.video).with_suffix("")
        source = _source_of(task.video, source_by)
        for row in records[task].crops:
            path = folder / crop_name(*row[:2])
            crops.append([task.video, *row, path, source])
        rejected += [[task.video, *row] for row in records[task].rejected]
    reasons.update(row[2] for row in rejected)
    for name, header, rows in (
        ("manifest.csv", MANIFEST, crops),
        ("rejected.csv", REJECTED, rejected),
    ):
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(header)
        writer.writerows([files.as_utf8(str(value)) for value in row] for row in rows)
        files.write_atomic(output / name, text.getvalue())
    return dict(reasons.most_common())
