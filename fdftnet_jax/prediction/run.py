"""Does the work of `fdftnet predict`, from its options to its exit code."""

import argparse
import collections
import contextlib
import dataclasses
import functools
import io
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

import fdftnet_jax
from fdftnet_jax.detector import file as detector_file
from fdftnet_jax.errors import Interrupted, UserError, counted
from fdftnet_jax.files import printable
from fdftnet_jax.prediction import inputs, outputs, results, scorer, writers
from fdftnet_jax.prediction.results import TOO_CLOSE, Row
from fdftnet_jax.verdicts import FAKE, REAL, UNDECIDED

# Exit code where no input could be judged.
NOTHING_JUDGED = 3
# Inputs that could not be judged that the summary names.
_NAMED = 10


@dataclasses.dataclass(frozen=True)
class Options:
    """The options of the command; see its help."""

    detector: str
    paths: list[str]
    csv: str | None = None
    json: str | None = None
    faces: str = "auto"
    threshold: float | None = None
    workers: int = 0
    plots: str | None = None
    explain: str | None = None
    replace: bool = False
    null: bool = False
    recursive: bool = False
    program: bool = False
    debug: bool = False
    parquet: str | None = None
    shard_size: int = 1000
    path_column: str = "path"
    ray: bool = False
    ray_actors: int = 0
    ray_gpus: float | None = None

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> "Options":
        """Takes the parsed arguments of the command."""
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(**{name: getattr(arguments, name) for name in names})

    @property
    def folders(self) -> dict[str, str]:
        """Flag -> folder of figures that the command writes."""
        folders = {"--plots": self.plots, "--explain": self.explain}
        return {flag: path for flag, path in folders.items() if path is not None}


def predict(options: Options) -> int:
    """Scores what the options name, and writes and prints the results.

    Args:
      options: of the command.

    Returns:
      0, or `NOTHING_JUDGED` where no input has a score. (One that is too close to call
      has been judged.)

    Raises:
      UserError: the detector, an option or a place to write to is not as expected;
        nothing was scored then, unless a disk is full.
      Interrupted: at Ctrl-C; the results up to then are written.
    """
    _print_any_name()
    if options.workers < 0:
        raise UserError(
            f"expected --workers to be 1 or more, found {options.workers}; leave it "
            "out for one for each core"
        )
    listed = read_list(options)
    _check_outputs(options, listed)
    own = outputs.make_folders(options.folders)
    detector = fdftnet_jax.load(options.detector, program=options.program)
    judge = results.Judge(detector, options.threshold)
    rules = scorer.face_rules(options.faces, detector)
    header = scorer.header(detector, judge, crop=rules is not None)
    _say_on_stderr(_opening(header, detector.card["calibration"]))

    def items(skipped: inputs.Skipped | None = None) -> Iterator[inputs.Item]:
        return inputs.expand(options.paths, listed, own=own, skipped=skipped)

    # The names are read once more, for the length of the bar.
    total = sum(1 for _ in items()) if sys.stderr.isatty() else None
    tally = Tally()
    # `disable=None` shows the bar on a terminal only.
    with tqdm(total=total, unit=" files", disable=None, leave=False) as bar:
        writer = _writer(options, header, say=functools.partial(_say, bar))
        work = scorer.Scorer(
            detector,
            judge,
            rules,
            plots=options.plots,
            explain=options.explain,
            debug=options.debug,
        )
        rows_of_each = work.rows(items(tally.skipped), options.workers)
        try:
            with contextlib.closing(rows_of_each) as scored:
                for rows in scored:
                    writer.add(rows)
                    tally.add(rows)
                    bar.update()
        except KeyboardInterrupt as error:
            writer.close(tally.summary(), complete=False)
            raise _stopped(error, options, tally, writer.place) from None
        except Exception:
            with contextlib.suppress(Exception):
                writer.close(tally.summary(), complete=False)
            raise
    writer.close(tally.summary(), complete=True)
    _say_on_stderr(tally.lines(writer.place))
    return 0 if tally.judged else NOTHING_JUDGED


def _print_any_name() -> None:
    """Makes the streams print any name, whatever the terminal's characters are."""
    for output in (sys.stdout, sys.stderr):
        if isinstance(output, io.TextIOWrapper):
            output.reconfigure(errors="backslashreplace")


def read_list(options: Options) -> list[str]:
    """Reads the paths that '-' stands for; UserError if the list is not as expected."""
    if inputs.STDIN in options.paths:
        return inputs.read_list(
            sys.stdin.buffer, null=options.null, recursive=options.recursive
        )
    for is_set, flag in ((options.null, "--null"), (options.recursive, "--recursive")):
        if is_set:
            raise UserError(
                f"{flag} is about a list on standard input, found no - among the "
                "paths; leave it out (folders that are named are read whole)"
            )
    return []


def _check_outputs(options: Options, listed: list[str]) -> None:
    """Raises UserError where an output exists that may not be replaced."""

    def files_read() -> Iterator[Path | str]:
        yield detector_file.locate(options.detector)
        if inputs.STDIN in options.paths:
            yield "/dev/stdin"
        yield from (item.path for item in inputs.expand(options.paths, listed))

    for path, flag in ((options.csv, "--csv"), (options.json, "--json")):
        if path is not None:
            outputs.check_file(path, flag, replace=options.replace, inputs=files_read)
    for flag, path in options.folders.items():
        named = [*options.paths, *listed]
        outputs.check_folder(path, flag, replace=options.replace, inputs=named)


def _opening(
    header: dict[str, Any], calibration: dict[str, Any] | None
) -> Iterator[str]:
    """Lines about the detector, printed before the results."""
    threshold = header["threshold"]
    calibrated = threshold["of"] == "probability"
    what = "calibrated P(fake)" if calibrated else "score (not calibrated)"
    looks = "each face" if header["faces"] == "crop" else "the whole picture"
    name = printable(str(header["detector"]["name"]))
    line = f"{name}: scores {looks}; fake from {what} {threshold['value']:.3g}"
    if "lower" in threshold:
        line += f", real below {threshold['lower']:.3g}, {TOO_CLOSE} between"
    yield line
    if header["detector"]["toy"]:
        yield "a toy of computed pictures: its verdicts on photographs say nothing"
    for note in calibration["notes"] if calibration else ():
        yield f"calibration: {note}"


def _writer(
    options: Options, header: dict[str, Any], *, say: writers.Say
) -> writers.Writer:
    """The writer of the results that the options ask for."""
    if options.csv is not None:
        return writers.CsvFile(options.csv, replace=options.replace)
    if options.json is not None:
        return writers.JsonFile(options.json, header, replace=options.replace)
    calibrated = header["threshold"]["of"] == "probability"
    return writers.Table(calibrated=calibrated, say=say)


def _stopped(
    error: KeyboardInterrupt, options: Options, tally: "Tally", place: str
) -> Interrupted:
    number = error.signal if isinstance(error, Interrupted) else signal.SIGINT
    # The folders of figures are not empty any more.
    anew = " with --replace" * bool(options.folders and not options.replace)
    return Interrupted(
        number,
        f"stopped after {counted(tally.inputs, 'input')}, whose results are in "
        f"{place}; the same command{anew} begins again",
    )


class Tally:
    """Counts verdicts, and remembers some of the inputs that could not be judged.

    Attributes:
      inputs: how many there were.
      too_close: how many of them were judged, and are too close to call.
      skipped: what was left out.
    """

    def __init__(self) -> None:
        self.inputs = 0
        self.too_close = 0
        self.skipped = inputs.Skipped()
        self._verdicts: collections.Counter[str] = collections.Counter()
        self._not_judged: list[Row] = []
        self._start = time.monotonic()

    @property
    def judged(self) -> int:
        """Number of inputs with a score."""
        return self._verdicts[REAL] + self._verdicts[FAKE] + self.too_close

    def add(self, rows: Sequence[Row]) -> None:
        """Takes the rows of an input."""
        row = rows[0]
        self.inputs += 1
        self._verdicts[row.verdict] += 1
        if row.reason == TOO_CLOSE:
            self.too_close += 1
        elif row.verdict == UNDECIDED and len(self._not_judged) < _NAMED:
            self._not_judged.append(row)

    def summary(self) -> dict[str, Any]:
        """The counts, for JSON; `too_close` are of those that are undecided."""
        return {
            "inputs": self.inputs,
            **{v: self._verdicts[v] for v in (REAL, FAKE, UNDECIDED)},
            "too_close": self.too_close,
            "skipped": vars(self.skipped),
        }

    def lines(self, place: str) -> Iterator[str]:
        """The counts as lines of text; last the inputs not judged, and why."""
        seconds = time.monotonic() - self._start
        verdicts = (REAL, FAKE, UNDECIDED)
        counts = ", ".join(f"{self._verdicts[v]} {v}" for v in verdicts)
        if self.too_close:
            counts += f" ({self.too_close} {TOO_CLOSE})"
        rate = f"{seconds:.1f} s, {self.inputs / seconds:.3g}/s"
        yield f"{counted(self.inputs, 'input')}: {counts}; {rate}"
        left_out = [
            counted(self.skipped.other, "file") + " of other kinds",
            counted(self.skipped.hidden, "hidden file"),
            counted(self.skipped.visited, "link") + " to a folder that was visited",
            counted(self.skipped.own, "folder") + " that this command writes to",
        ]
        if any_left_out := [text for text in left_out if not text.startswith("0 ")]:
            yield f"left out: {', '.join(any_left_out)}"
        if place != writers.ON_SCREEN:
            yield f"results: {printable(place)}"
        not_judged = self.inputs - self.judged
        if not_judged:
            yield "could not be judged:"
        for row in self._not_judged:
            yield f"  {printable(row.path)}: {printable(row.reason)}"
        if more := not_judged - len(self._not_judged):
            yield f"  and {more} more, with their reasons, in {printable(place)}"


def _say_on_stderr(lines: Iterator[str]) -> None:
    for line in lines:
        print(line, file=sys.stderr)


def _say(bar: tqdm, line: str) -> None:
    """Prints a line above a progress bar."""
    if bar.disable:
        print(line, flush=True)
    else:
        bar.write(line)
