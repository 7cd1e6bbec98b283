"""Exceptions that end a command with one line, and counts in words."""

import signal


class UserError(Exception):
    """A mistake in an input, flag, folder or checkpoint.

    The message is one line: what was expected, what was found, and what to do next.
    Commands print it and exit with code 2 (see `launch`).
    """


class Interrupted(KeyboardInterrupt):
    """A signal that ended the work; the message says what was kept and how to resume.

    Commands print it and exit with `exit_code`.

    Attributes:
      signal: SIGINT (Ctrl-C) or SIGTERM.
    """

    def __init__(self, number: int, message: str):
        """Takes the signal's number and the line for the user."""
        super().__init__(message)
        self.signal = signal.Signals(number)

    @property
    def exit_code(self) -> int:
        """128 + the signal's number, as shells count: 130 or 143."""
        return 128 + self.signal


def counted(count: int, noun: str) -> str:
    """A count and its noun: '1 file', '2,000 files'."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
