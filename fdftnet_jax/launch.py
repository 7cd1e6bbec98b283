"""How every command starts."""

import os
import sys


def open_closed_streams() -> None:
    """Lets a process go on whose standard streams were closed when it started.

    Services and `2>&-` start a process so. Python then has None in place of the
    stream; and the next file that is opened would take its number, where libraries
    write their messages to. The null device takes its place instead.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # The lowest number that is free is this one.
            os.open(os.devnull, os.O_RDWR)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
