"""The work of `fdftnet predict`, from its options to its exit code."""

import collections
import contextlib
import functools
import io
import os
import sys
import threading
import time
from collections.abc import Collection, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

import fdftnet_jax
from fdftnet_jax import files
from fdftnet_jax.data import images
from fdftnet_jax.detector import file as detector_file
from fdftnet_jax.errors import Interrupted, UserError, counted
from fdftnet_jax.files import printable
from fdftnet_jax.prediction import (
    faces,
    inputs,
    names,
    results,
    stream,
    video,
    writers,
)
from fdftnet_jax.prediction.command import Options
from fdftnet_jax.prediction.results import Row

# Exit code where no input has a verdict.
NOTHING_DECIDED = 3
# Views that the network scores at a time; a power of two, see `Detector.logits`.
BATCH = 64
# Batches of files that may be decoded before the network needs them.
_AHEAD = 2
# Inputs without a verdict that the summary names.
_NAMED = 10
SCHEMA_VERSION = 1


def predict(options: Options) -> int:
    """Scores what the options name, and writes and says what was found.

    Args:
      options: of the command.

    Returns:
      0, or `NOTHING_DECIDED` where no input has a verdict.

    Raises:
      UserError: the detector, an option or a place to write to is not as expected;
        nothing was scored then, unless a disk is full.
      Interrupted: at Ctrl-C; what was scored is written.
    """
    for output in (sys.stdout, sys.stderr):
        if isinstance(output, io.TextIOWrapper):
            # No name may end the work, whatever the terminal's characters are.
            output.reconfigure(errors="backslashreplace")
    if options.workers < 0:
        raise UserError(
            f"expected --workers to be 1 or more, found {options.workers}; leave it "
            "out for one for each core"
        )
    listed = _read_list(options)
    _check_outputs(options, listed)
    own = {_folder(path, flag) for path, flag in _folders(options)}
    detector = fdftnet_jax.load(options.detector, program=options.program)
    judge = results.Judge(detector, options.threshold)
    crop = options.faces == "crop" or (
        options.faces == "auto" and detector.card["faces"] is not None
    )
    rules = faces.rules_of(detector.card["faces"]) if crop else None
    header = _header(detector, judge, crop=crop)
    say_on_stderr = functools.partial(print, file=sys.stderr)
    for line in _opening(header):
        say_on_stderr(line)

    def items(skipped: inputs.Skipped | None = None) -> Iterator[inputs.Item]:
        return inputs.expand(options.paths, listed, own=own, skipped=skipped)

    # The names are read once more, for the length of the bar.
    total = sum(1 for _ in items()) if sys.stderr.isatty() else None
    skipped = inputs.Skipped()
    tally = Tally()
    # `disable=None` shows the bar on a terminal only.
    with tqdm(total=total, unit=" files", disable=None, leave=False) as bar:
        say = functools.partial(_say, bar)
        writer: writers.Writer
        if options.csv is not None:
            writer = writers.CsvFile(options.csv, replace=options.replace)
        elif options.json is not None:
            writer = writers.JsonFile(options.json, header, replace=options.replace)
        else:
            writer = writers.Table(calibrated=judge.of == "probability", say=say)
        work = _Work(options, detector, judge, rules)
        try:
            with contextlib.closing(work(items(skipped))) as found:
                for rows in found:
                    writer.add(rows)
                    tally.add(rows)
                    bar.update()
        except KeyboardInterrupt as error:
            writer.close(tally.summary(skipped), complete=False)
            number = error.signal if isinstance(error, Interrupted) else 2
            anew = " with --replace" * bool(_folders(options) and not options.replace)
            raise Interrupted(
                number,
                f"stopped after {counted(tally.inputs, 'input')}, whose results are in "
                f"{writer.place}; the same command{anew} begins again",
            ) from None
        except Exception:
            with contextlib.suppress(Exception):
                writer.close(tally.summary(skipped), complete=False)
            raise
    writer.close(tally.summary(skipped), complete=True)
    for line in tally.lines(skipped, writer.place):
        say_on_stderr(line)
    return 0 if tally.decided else NOTHING_DECIDED


class _Work:
    """Turns items into rows."""

    def __init__(self, options: Options, detector: Any, judge: results.Judge, rules):
        self._options = options
        self._detector = detector
        self._judge = judge
        self._rules = rules
        self._looker = stream.Looker(
            detector.preprocessing,
            find=None if rules is None else functools.partial(faces.find, rules=rules),
            video=self._video,
            debug=options.debug,
        )
        # The network has all cores already; and compiles once.
        self._lock = threading.Lock()
        # For the videos that are being read.
        self._stop = threading.Event()

    def __call__(
        self, items: Iterator[inputs.Item]
    ) -> Generator[list[Row], None, None]:
        """Yields the rows of each input, in order."""
        threads = self._options.workers or os.cpu_count() or 1
        seen = stream.in_order(
            self._looker, items, threads=threads, ahead=_AHEAD * BATCH
        )
        # Each of the threads looks for faces: OpenCV's own would be in their way.
        before = cv2.getNumThreads()
        cv2.setNumThreads(1)
        try:
            for one, logits in stream.scored(seen, self._logits, BATCH):
                yield self._rows(one, logits)
        finally:
            # The process ends when its threads do.
            self._stop.set()
            seen.close()
            cv2.setNumThreads(before)

    def _logits(self, views: np.ndarray) -> np.ndarray:
        with self._lock:
            return np.asarray(self._detector.logits(views), np.float64)

    def _video(self, path: str) -> video.VideoResult:
        return video.score_video(
            path,
            self._detector,
            rules=self._rules,
            score=lambda views: stream.full(views, BATCH, self._logits),
            stop=self._stop,
        )

    def _rows(self, seen: stream.Seen, logits: np.ndarray) -> list[Row]:
        path = seen.item.path
        if seen.video is not None:
            if self._options.plots is not None and seen.video.tracks:
                self._plot(self._options.plots, path, seen.video)
            return self._judge.video(path, seen.kind, seen.video)
        if seen.reason:
            return [Row(path, seen.kind, reason=seen.reason)]
        rows = self._judge.picture(path, seen.kind, seen.boxes, logits.tolist())
        if self._options.explain is not None:
            self._explain(self._options.explain, path, rows)
        return rows

    def _plot(self, folder: str, path: str, found: video.VideoResult) -> None:
        from fdftnet_jax.prediction import timeline

        with _drawing(folder):
            timeline.draw(
                Path(folder, names.file_name(path, ".svg")),
                found,
                self._judge.threshold,
                probability=self._detector.probability,
                name=os.path.basename(path),
            )

    def _explain(self, folder: str, path: str, rows: list[Row]) -> None:
        from fdftnet_jax.prediction import explain

        # Read once more: kept until they are scored, pictures could fill the memory.
        with contextlib.suppress(images.ImageError, IndexError), _drawing(folder):
            pictures, *_ = self._looker.pictures(path)
            explain.write(
                folder,
                path,
                pictures[results.deciding(rows)],
                self._detector,
                rows[0],
                threshold=self._judge.threshold,
            )


class Tally:
    """Counts verdicts, and remembers some of the inputs without one.

    Attributes:
      inputs: all of them.
    """

    def __init__(self) -> None:
        self.inputs = 0
        self._verdicts: collections.Counter[str] = collections.Counter()
        self._named: list[Row] = []
        self._began = time.monotonic()

    @property
    def decided(self) -> int:
        """Inputs with a verdict."""
        return self._verdicts[results.REAL] + self._verdicts[results.FAKE]

    def add(self, rows: Sequence[Row]) -> None:
        """Takes the rows of an input."""
        row = rows[0]
        self.inputs += 1
        self._verdicts[row.verdict] += 1
        if row.verdict == results.UNDECIDED and len(self._named) < _NAMED:
            self._named.append(row)

    def summary(self, skipped: inputs.Skipped) -> dict[str, Any]:
        """For JSON."""
        verdicts = (results.REAL, results.FAKE, results.UNDECIDED)
        return {
            "inputs": self.inputs,
            **{verdict: self._verdicts[verdict] for verdict in verdicts},
            "skipped": vars(skipped),
        }

    def lines(self, skipped: inputs.Skipped, place: str) -> Iterator[str]:
        """For people; the inputs without a verdict come last, with their reasons."""
        seconds = time.monotonic() - self._began
        verdicts = (results.REAL, results.FAKE, results.UNDECIDED)
        counts = ", ".join(f"{self._verdicts[v]} {v}" for v in verdicts)
        rate = f"{seconds:.1f} s, {self.inputs / seconds:.3g}/s"
        yield f"{counted(self.inputs, 'input')}: {counts}; {rate}"
        left_out = [
            counted(skipped.other, "file") + " of other kinds",
            counted(skipped.hidden, "hidden file"),
            counted(skipped.visited, "link") + " to a folder that was visited",
            counted(skipped.own, "folder") + " that this command writes to",
        ]
        if told := [text for text in left_out if not text.startswith("0 ")]:
            yield f"left out: {', '.join(told)}"
        if place != writers.ON_SCREEN:
            yield f"results: {printable(place)}"
        undecided = self._verdicts[results.UNDECIDED]
        if undecided:
            yield "undecided:"
        for row in self._named:
            yield f"  {printable(row.path)}: {printable(row.reason)}"
        if more := undecided - len(self._named):
            yield f"  and {more} more, with their reasons, in {printable(place)}"


def _drawing(folder: str) -> contextlib.AbstractContextManager[None]:
    advice = "free space there, or give another folder"
    return files.writing("a figure", folder, 10**5, advice)


def _read_list(options: Options) -> list[str]:
    """The paths that '-' stands for."""
    if inputs.STDIN in options.paths:
        return inputs.read_list(
            sys.stdin.buffer, null=options.null, recursive=options.recursive
        )
    for given, flag in ((options.null, "--null"), (options.recursive, "--recursive")):
        if given:
            raise UserError(
                f"{flag} is about a list on standard input, found no - among the "
                "paths; leave it out (folders that are named are read whole)"
            )
    return []


def _check_outputs(options: Options, listed: Collection[str]) -> None:
    """Raises UserError where an output exists that may not be replaced."""

    def given() -> Iterator[str | os.PathLike[str]]:
        yield detector_file.locate(options.detector)
        if inputs.STDIN in options.paths:
            yield "/dev/stdin"
        yield from (item.path for item in inputs.expand(options.paths, listed))

    for path, flag in ((options.csv, "--csv"), (options.json, "--json")):
        if path is not None and path != writers.STDOUT:
            replace = options.replace
            files.check_output(path, flag, replace=replace, inputs=given())
            files.check_no_input(writers.partial(path), flag, given())
    for path, flag in _folders(options):
        if not os.path.isdir(path):
            continue
        files.check_no_input(path, flag, [*options.paths, *listed])
        found = [name for name in os.listdir(path) if not name.startswith(".")]
        others = [name for name in sorted(found) if not names.is_figure(name)]
        if others:
            raise UserError(
                f"{flag} {printable(path)} holds files that this command did not make, "
                f"such as {printable(others[0])}; give another folder"
            )
        if found and not options.replace:
            raise UserError(
                f"{flag} {printable(path)} holds figures of an earlier command; give "
                "another folder, or --replace to replace them"
            )


def _folders(options: Options) -> list[tuple[str, str]]:
    given = ((options.plots, "--plots"), (options.explain, "--explain"))
    return [(path, flag) for path, flag in given if path is not None]


def _folder(path: str, flag: str) -> files.Identity:
    """Makes a folder to write to; raises UserError where that fails."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK | os.X_OK):
            raise PermissionError(None, "no permission to write")
        return files.identity(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"cannot write to {flag} {printable(path)}: {reason}; give another folder"
        ) from error


def _header(detector: Any, judge: results.Judge, *, crop: bool) -> dict[str, Any]:
    """What the results depend on, for JSON."""
    card = detector.card
    return {
        "schema_version": SCHEMA_VERSION,
        "fdftnet_jax": fdftnet_jax.__version__,
        "detector": {
            "name": card["name"],
            "sha256": detector.digest,
            "toy": card["toy"],
        },
        "threshold": {"of": judge.of, "value": judge.threshold},
        "faces": "crop" if crop else "whole",
    }


def _opening(header: dict[str, Any]) -> Iterator[str]:
    of = header["threshold"]["of"]
    what = "calibrated P(fake)" if of == "probability" else "score (not calibrated)"
    looks = "each face" if header["faces"] == "crop" else "the whole picture"
    name = printable(str(header["detector"]["name"]))
    yield (
        f"{name}: scores {looks}; fake from {what} {header['threshold']['value']:.3g}"
    )
    if header["detector"]["toy"]:
        yield "a toy of computed pictures: its verdicts on photographs say nothing"


def _say(bar: tqdm, line: str) -> None:
    """Prints a line above a progress bar."""
    if bar.disable:
        print(line, flush=True)
    else:
        bar.write(line)
