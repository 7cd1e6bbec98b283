"""Starts and ends every command, those of `experiments` and `fdftnet` alike.

What ends a command, and its exit code:

    0     the work is done
    1     an exception that nobody expected
    2     a mistake of the user's, or a disk that is full: one line, a UserError
    130   Ctrl-C, and 143 SIGTERM: one line, an Interrupted
    141   whoever read the output has closed it

A command may return codes of its own: 3 of `fdftnet predict`, 4 of `fdftnet adapt`.
Nothing heavy is imported here: the help of a command is instant.
"""

import os
import platform
import signal
import sys
import warnings
from collections.abc import Callable
from typing import Any, NoReturn

from fdftnet_jax import files
from fdftnet_jax.errors import Interrupted, UserError

EXIT_ERROR = 1
EXIT_USER_ERROR = 2
# 128 + SIGPIPE, as shells count.
EXIT_PIPE_CLOSED = 141
_LARGE_PAGES = "glibc.malloc.hugetlb"


def start(*, after_signal: str) -> None:
    """Prepares the process of a command, before its arguments are parsed.

    Opens closed streams, takes large pages, names the cache of compiled programs,
    and makes each warning one line and each signal an `Interrupted`.

    Args:
      after_signal: what the same command does after a signal stopped it, for the user;
        work that knows better raises an `Interrupted` of its own.
    """

    def interrupt(number: int, _: Any) -> NoReturn:
        name = signal.Signals(number).name
        raise Interrupted(number, f"stopped by {name}; the same command {after_signal}")

    open_closed_streams()
    use_large_pages()
    # Compiled once, not at every start; JAX reads these when it is first imported.
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", f"{cache}/fdftnet_jax/xla")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
    warnings.showwarning = _show_warning
    sys.unraisablehook = _show_unraisable
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)


def finish(work: Callable[[], int], *, debug: bool, traceback: bool) -> int:
    """Does the work of a command; says in one line what ended it early.

    Args:
      work: returns the exit code.
      debug: whether the user wants the traceback of any error.
      traceback: whether an exception that nobody expected is raised rather than one
        line. (After hours of work, nobody repeats it with --debug for a traceback.)

    Returns:
      The exit code.
    """
    try:
        code = work()
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        _drop_unwritable_output()
        return EXIT_PIPE_CLOSED
    except Interrupted as error:
        say(str(error))
        return error.exit_code
    except Exception as error:
        if debug:
            raise
        if isinstance(error, OSError):
            _drop_unwritable_output()
            error = files.full_disk(error) or error
        if isinstance(error, UserError):
            say(str(error), "error")
            return EXIT_USER_ERROR
        if traceback:
            raise
        say(
            f"unexpected {type(error).__name__}: {error}; give the same command with "
            "--debug for the traceback, and report it",
            "error",
        )
        return EXIT_ERROR


def fail(message: str) -> NoReturn:
    """Ends the process with one line: for what is wrong with the arguments."""
    say(message, "error")
    sys.exit(EXIT_USER_ERROR)


def say(message: str, kind: str = "") -> None:
    """Prints a message on one line of standard error, after its kind if it has one."""
    text = " ".join(message.split())
    print(f"{kind}: {text}" if kind else text, file=sys.stderr)


def open_closed_streams() -> None:
    """Opens the null device in place of standard streams that are closed.

    Services and `2>&-` start a process so. Python then has None in place of the
    stream; and the next file that is opened would take its number, where libraries
    write their messages to.
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


def use_large_pages() -> None:
    """Starts a command anew with large pages for large arrays, on Linux.

    On a CPU, XLA takes the memory of a step from the system and gives it back, every
    time; in pages of 4 kB that is a quarter of a pre-training step of Xception, and a
    tenth or more of scoring. The C library reads this setting only when a process
    starts. Other programs, which call a command's function, are left alone.
    """
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    name = spec.name if spec else os.path.basename(sys.argv[0])
    ours = name.startswith("experiments.") or name in ("fdftnet", "fdftnet_jax.cli")
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if ours and platform.libc_ver()[0] == "glibc" and _LARGE_PAGES not in tunables:
        tunables = ":".join([*filter(None, [tunables]), f"{_LARGE_PAGES}=1"])
        environment = os.environ | {"GLIBC_TUNABLES": tunables}
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def _drop_unwritable_output() -> None:
    """Discards output that cannot be written; Python would try again at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _show_warning(message, category, filename, lineno, file=None, line=None) -> None:
    say(str(message), "warning")


def _show_unraisable(unraisable: Any) -> None:
    # TensorStore's late answers, after a damaged checkpoint has been reported.
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)
