"""Writes results as CSV, JSON or a table for people; each row as soon as it is there.

A file is called `<name>.partial` until it is complete, so that work that was stopped
loses nothing and cannot be taken for finished.

Paths are written as they are, in UTF-8 (see `path_text`).
"""

import contextlib
import csv
import errno
import io
import json
import os
import shutil
import sys
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TextIO

from fdftnet_jax import files
from fdftnet_jax.errors import UserError, counted
from fdftnet_jax.files import printable
from fdftnet_jax.prediction import video
from fdftnet_jax.prediction.results import Row
from fdftnet_jax.verdicts import FAKE

STDOUT = "-"
ON_SCREEN = "the table above"
# (A reason may quote a name that is not UTF-8.)
_TEXT: dict[str, Any] = {
    "encoding": "utf-8",
    "errors": "backslashreplace",
    "newline": "",
}
# (Windows has no such flag.)
_NOT_A_LINK = getattr(os, "O_NOFOLLOW", 0)
# A spreadsheet takes text that begins so for a formula.
_FORMULA = ("=", "+", "-", "@")


Say = Callable[[str], None]


def partial(path: str) -> str:
    """The name of a file of results until it is complete."""
    return f"{path}.partial"


def path_text(path: str) -> str:
    """Writes a path as CSV and JSON have it, so that it opens the file.

    The path stays as it is, except that

    - a path that is not UTF-8 is the `file:` address of the file (RFC 8089): absolute,
      with all bytes outside of ASCII letters, digits and `/._-~` as %NN;
    - a relative path that begins with `=`, `+`, `-` or `@`, which spreadsheets take for
      a formula, or with `file:`, begins with `./` instead.
    """
    try:
        path.encode()
    except UnicodeEncodeError:
        absolute = os.fsencode(os.path.abspath(path))
        return f"file://{urllib.parse.quote_from_bytes(absolute)}"
    return f"./{path}" if path.startswith((*_FORMULA, "file:")) else path


class Writer(Protocol):
    """Writes results."""

    @property
    def place(self) -> str:
        """Where the results are, for people."""

    def add(self, rows: Sequence[Row]) -> None:
        """Writes the rows of one input, the one of the whole input first."""

    def close(self, summary: dict[str, Any], *, complete: bool) -> None:
        """Ends the results; `complete` is off where there would have been more."""


class _File:
    """A text file under its partial name, or the standard output.

    Args:
      path: of the file, or `STDOUT`.
      flag: of the command that names it.
      start: how each file of its kind begins, which tells those of an earlier command.
      replace: whether the file at `path` may be replaced.
    """

    def __init__(self, path: str, flag: str, start: str, *, replace: bool):
        self._path = path
        self._replace = replace
        self.place = path
        if path == STDOUT:
            self.place, self.stream = "standard output", sys.stdout
            if isinstance(sys.stdout, io.TextIOWrapper):
                sys.stdout.reconfigure(encoding="utf-8")
            return
        # A pipe or a device has no other name.
        special = os.path.exists(path) and not os.path.isfile(path)
        if not special:
            self.place = partial(path)
        try:
            if special:
                self.stream = open(path, "w", **_TEXT)  # noqa: SIM115
                return
            # Emptied once it is locked, so that nobody else writes it. (A link could
            # lead to a file of somebody else's.)
            flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | _NOT_A_LINK
            descriptor = os.open(self.place, flags, 0o666)
            self.stream = open(descriptor, "r+", **_TEXT)  # noqa: SIM115
            files.hold(self.stream, blocking=False)
            existing = os.read(descriptor, len(start))
            if not start.encode().startswith(existing) and not replace:
                raise FileExistsError(
                    None, f"{printable(self.place)} exists, which holds something else"
                )
            self.stream.truncate(0)
        except (OSError, ValueError) as error:
            if hasattr(self, "stream"):
                self.stream.close()
            reason = getattr(error, "strerror", None) or error
            if isinstance(error, BlockingIOError):
                reason = "another process is writing it"
            elif getattr(error, "errno", None) == errno.ELOOP:
                reason = f"{printable(self.place)} is a link"
            raise UserError(
                f"cannot write {flag} {printable(path)}: {reason}; give a file in a "
                "folder that is there and can be written to"
            ) from error

    @contextlib.contextmanager
    def writing(self) -> Iterator[TextIO]:
        """Gives the stream, and flushes it at the end; a full disk is a WriteError."""
        advice = "free space and give the command again; what is there so far is kept"
        with files.writing("the results", Path(self.place).parent, advice=advice):
            try:
                yield self.stream
                self.stream.flush()
            except OSError:
                # What cannot be written now cannot be later.
                if self.stream is not sys.stdout:
                    with contextlib.suppress(OSError):
                        self.stream.close()
                raise

    def close(self, *, complete: bool) -> None:
        if self.stream is sys.stdout:
            return
        if os.name == "nt":
            # (Windows renames no open file.)
            self.stream.close()
        # While it is locked, no other process can have it under that name.
        if complete and self.place != self._path:
            try:
                files.publish(self.place, self._path, replace=self._replace)
            except FileExistsError as error:
                raise UserError(
                    f"{printable(self._path)} has appeared meanwhile; "
                    f"the results are complete in {printable(self.place)}: rename it"
                ) from error
            finally:
                self.stream.close()
            self.place = self._path
        self.stream.close()


class CsvFile:
    """Writes a line for each row; empty fields for what there is not."""

    def __init__(self, path: str, *, replace: bool = False):
        """Begins the file; raises UserError where it cannot be written."""
        start = ",".join(Row._fields)
        self._file = _File(path, "--csv", start, replace=replace)
        with self._file.writing() as stream:
            stream.write(f"{start}\n")

    @property
    def place(self) -> str:
        """See `Writer`."""
        return self._file.place

    def add(self, rows: Sequence[Row]) -> None:
        """See `Writer`."""
        with self._file.writing() as stream:
            for row in rows:
                stream.write(_csv(plain(row)))

    def close(self, summary: dict[str, Any], *, complete: bool) -> None:
        """See `Writer`."""
        self._file.close(complete=complete)


class JsonFile:
    """Writes one document: what results rest on, `results` (one a line), a summary.

    The document of work that was stopped is valid too, and says `"complete": false`.
    """

    def __init__(self, path: str, header: dict[str, Any], *, replace: bool = False):
        """Begins the file; raises UserError where it cannot be written."""
        opening = _json(header, indent=2).removesuffix("\n}")
        start = opening[: opening.index(":")]
        self._file = _File(path, "--json", start, replace=replace)
        self._separator = "\n"
        with self._file.writing() as stream:
            stream.write(f'{opening},\n  "results": [')

    @property
    def place(self) -> str:
        """See `Writer`."""
        return self._file.place

    def add(self, rows: Sequence[Row]) -> None:
        """See `Writer`."""
        with self._file.writing() as stream:
            for row in rows:
                stream.write(self._separator + _json(plain(row)))
                self._separator = ",\n"

    def close(self, summary: dict[str, Any], *, complete: bool) -> None:
        """See `Writer`."""
        closing = _json({**summary, "complete": complete})
        with self._file.writing() as stream:
            stream.write(f'\n  ],\n  "summary": {closing}\n}}\n')
        self._file.close(complete=complete)


class Table:
    """Prints a line for each input, as wide as the terminal."""

    place = ON_SCREEN

    def __init__(self, *, calibrated: bool, say: Say):
        """Prints the head.

        Args:
          calibrated: whether there are probabilities.
          say: prints a line.
        """
        self._calibrated = calibrated
        self._say = say
        # Only what a person looks at is cut off.
        self._terminal = sys.stdout.isatty()
        head = f"{'verdict':9}  {'score':>6}"
        head += f"  {'P(fake)':>7}" if calibrated else ""
        say(f"{head}  input")

    def add(self, rows: Sequence[Row]) -> None:
        """See `Writer`."""
        row = rows[0]
        line = f"{row.verdict:9}  {_share(row.score):>6}  "
        if self._calibrated:
            line += f"{_share(row.probability):>7}  "
        path, note = printable(row.path), self._note(rows)
        if self._terminal:
            room = shutil.get_terminal_size().columns - len(line)
            # (A terminal may break a line that fills its last column.)
            path, note = _fit(path, note, room - 1)
        self._say(f"{line}{path}{note}")

    def close(self, summary: dict[str, Any], *, complete: bool) -> None:
        """See `Writer`."""

    def _note(self, rows: Sequence[Row]) -> str:
        row, *parts = rows
        notes = [printable(row.reason)] if row.reason else []
        if row.frames is not None:
            notes.append(video.describe_frames(row.frames, row.deviation))
        if parts:
            fake = sum(part.verdict == FAKE for part in parts)
            notes.append(f"{counted(len(parts), 'face')}, {fake} fake")
        if row.notes:
            notes.append(printable(row.notes))
        return f"  ({'; '.join(notes)})" if notes else ""


def plain(row: Row) -> dict[str, Any]:
    """Writes the values of a row as JSON has them, its floats with nine digits."""
    values = row._asdict() | {"path": path_text(row.path)}
    return {
        name: float(f"{value:.9g}") if isinstance(value, float) else value
        for name, value in values.items()
    }


def _json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)


def _csv(values: dict[str, Any]) -> str:
    """A line of CSV; text that looks like a formula gets an apostrophe."""
    cells = []
    for name, value in values.items():
        if isinstance(value, float):
            value = f"{value:.9g}"
        elif isinstance(value, str) and name != "path" and value.startswith(_FORMULA):
            value = f"'{value}"
        cells.append(value)
    line = io.StringIO()
    # The writer quotes the characters of its line's end: a name may hold either.
    csv.writer(line, lineterminator="\r\n").writerow(cells)
    return line.getvalue().removesuffix("\r\n") + "\n"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _fit(path: str, note: str, room: int) -> tuple[str, str]:
    """Shortens a path in its middle, and a note at its end, to so many characters."""
    least = min(len(path), 24)
    if len(note) > room - least:
        note = f"{note[: max(room - least - 2, 0)]}…)" if room - least > 8 else ""
    room = max(room - len(note), 8)
    if len(path) > room:
        end = (room - 1) * 2 // 3
        path = f"{path[: room - 1 - end]}…{path[-end:]}"
    return path, note
