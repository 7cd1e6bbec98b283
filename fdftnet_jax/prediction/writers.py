"""Where results go: CSV, JSON, or a table for people; each row as soon as it is there.

A file is called `<name>.partial` until it is complete, so that work that was stopped
loses nothing and cannot be taken for finished.
"""

import contextlib
import csv
import fcntl
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TextIO

from fdftnet_jax import files
from fdftnet_jax.errors import UserError
from fdftnet_jax.prediction import results
from fdftnet_jax.prediction.inputs import printable
from fdftnet_jax.prediction.results import Row

STDOUT = "-"
ON_SCREEN = "the table above"


class Writer(Protocol):
    """Takes results."""

    @property
    def place(self) -> str:
        """Where they are, for people."""

    def add(self, rows: Sequence[Row]) -> None:
        """Writes the rows of one input, the one of the whole input first."""

    def close(self, summary: dict[str, Any], *, complete: bool) -> None:
        """Ends the work; `complete` is off where there would have been more."""


class _File:
    """A text file under its partial name, or the standard output."""

    def __init__(self, path: str, flag: str):
        self._path = path
        self.place = path
        if path == STDOUT:
            self.place, self.stream = "standard output", sys.stdout
            return
        # A pipe or a device has no other name.
        special = os.path.exists(path) and not os.path.isfile(path)
        if not special:
            self.place = f"{path}.partial"
        try:
            # Emptied when it is known that nobody else writes it.
            self.stream = open(  # noqa: SIM115
                self.place, "w" if special else "a", encoding="utf-8", newline=""
            )
            if not special:
                fcntl.flock(self.stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self.stream.truncate(0)
        except (OSError, ValueError) as error:
            if hasattr(self, "stream"):
                self.stream.close()
            reason = getattr(error, "strerror", None) or error
            if isinstance(error, BlockingIOError):
                reason = "another process is writing it"
            raise UserError(
                f"cannot write {flag} {printable(path)}: {reason}; give a file in a "
                "folder that is there and can be written to"
            ) from error

    @contextlib.contextmanager
    def writing(self) -> Iterator[TextIO]:
        """Turns a full disk into one line; what is written is out at the end."""
        advice = "free space and give the command again; what is there so far is kept"
        with files.writing("the results", Path(self.place).parent, 10**6, advice):
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
        # While it is locked, no other process can have it under that name.
        if complete and self.place != self._path:
            os.replace(self.place, self._path)
            self.place = self._path
        self.stream.close()


class CsvFile:
    """A line for each row; empty fields for what there is not."""

    def __init__(self, path: str):
        """Begins the file; raises UserError where it cannot be written."""
        self._file = _File(path, "--csv")
        self._writer = csv.writer(self._file.stream, lineterminator="\n")
        with self._file.writing():
            self._writer.writerow(Row._fields)

    @property
    def place(self) -> str:
        """See `Writer`."""
        return self._file.place

    def add(self, rows: Sequence[Row]) -> None:
        """See `Writer`."""
        with self._file.writing():
            for row in rows:
                values = _plain(row).values()
                self._writer.writerow(["" if v is None else _text(v) for v in values])

    def close(self, summary: dict[str, Any], *, complete: bool) -> None:
        """See `Writer`."""
        self._file.close(complete=complete)


class JsonFile:
    """One document: what results rest on, `results` (a record a line), a summary.

    Of work that was stopped it is whole too, and says `"complete": false`.
    """

    def __init__(self, path: str, header: dict[str, Any]):
        """Begins the file; raises UserError where it cannot be written."""
        self._file = _File(path, "--json")
        self._separator = "\n"
        begun = json.dumps(header, indent=2, allow_nan=False).removesuffix("\n}")
        with self._file.writing() as stream:
            stream.write(f'{begun},\n  "results": [')

    @property
    def place(self) -> str:
        """See `Writer`."""
        return self._file.place

    def add(self, rows: Sequence[Row]) -> None:
        """See `Writer`."""
        with self._file.writing() as stream:
            for row in rows:
                stream.write(self._separator + json.dumps(_plain(row), allow_nan=False))
                self._separator = ",\n"

    def close(self, summary: dict[str, Any], *, complete: bool) -> None:
        """See `Writer`."""
        ended = json.dumps({**summary, "complete": complete})
        with self._file.writing() as stream:
            stream.write(f'\n  ],\n  "summary": {ended}\n}}\n')
        self._file.close(complete=complete)


class Table:
    """A line for each input on the standard output, as wide as the terminal."""

    place = ON_SCREEN

    def __init__(self, *, calibrated: bool, say: Callable[[str], None]):
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
        if row.verdict == results.UNDECIDED:
            return f"  ({printable(row.reason)})"
        notes = []
        if row.frames is not None:
            between = ""
            if row.score_low is not None and row.score_high is not None:
                between = f", {row.score_low:.2f} to {row.score_high:.2f}"
            notes.append(f"{row.frames} frames{between}")
        if parts:
            fake = sum(part.verdict == results.FAKE for part in parts)
            notes.append(f"{len(parts)} faces, {fake} fake")
        if row.notes:
            notes.append(printable(row.notes))
        return f"  ({'; '.join(notes)})" if notes else ""


def _plain(row: Row) -> dict[str, Any]:
    """A row as JSON has it, its floats with nine digits."""
    values = row._asdict()
    values["path"] = printable(row.path)
    values["reason"] = printable(row.reason)
    values["notes"] = printable(row.notes)
    return {
        name: float(f"{value:.9g}") if isinstance(value, float) else value
        for name, value in values.items()
    }


def _text(value: Any) -> str:
    return f"{value:.9g}" if isinstance(value, float) else str(value)


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
