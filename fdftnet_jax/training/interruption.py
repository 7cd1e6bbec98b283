"""Ctrl-C and SIGTERM wait for a moment at which nothing is lost."""

import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import NoReturn, TypeVar

from fdftnet_jax.errors import Interrupted

Item = TypeVar("Item")
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequestedError(Exception):
    """A signal asked the run to stop."""


class Interruption:
    """Context in which a first signal is noted and a second one quits.

    (Python gives signals to the main thread; elsewhere the context does nothing.)

    Attributes:
      signal: what `check` raised for, None for nothing.
    """

    def __init__(self, agree: Callable[[int], int] = int) -> None:
        """Nothing was received yet.

        Args:
          agree: from the number of the signal that this process received, 0 for none,
            to the one for which all processes stop (see `processes.Agreement`).
        """
        self.signal: signal.Signals | None = None
        self._agree = agree
        self._received = 0
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():
            self._previous = {n: signal.signal(n, self._note) for n in _SIGNALS}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, _) -> None:
        if self._received:
            raise Interrupted(
                number,
                "stopped at once: what was not saved yet is lost; the same command "
                "goes on from the last checkpoint",
            )
        self._received = number
        print(
            f"{signal.Signals(number).name}: saving first; once more quits without",
            file=sys.stderr,
        )

    def check(self) -> None:
        """Raises StopRequestedError once a signal was received, here or elsewhere."""
        if number := self._agree(self._received):
            self.signal = signal.Signals(number)
            raise StopRequestedError

    def checked(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yields `items`, with a `check` before each."""
        for item in items:
            self.check()
            yield item

    def stop(self, step: int) -> NoReturn:
        """Raises Interrupted, now that everything up to `step` is saved."""
        assert self.signal is not None
        raise Interrupted(
            self.signal,
            f"stopped by {self.signal.name} after step {step}, which is saved: the "
            "same command goes on from there",
        )
