"""The command `fdftnet`: export a detector, show it, predict with it."""

import argparse
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from typing import NoReturn

import fdftnet_jax
from fdftnet_jax import launch
from fdftnet_jax.detector import command as detector_command
from fdftnet_jax.errors import Interrupted, UserError
from fdftnet_jax.prediction import command as prediction_command

EXIT_ERROR = 1
EXIT_USER_ERROR = 2
# 128 + SIGPIPE, as shells count.
EXIT_PIPE_CLOSED = 141


class _Parser(argparse.ArgumentParser):
    """Says in one line what is wrong with the arguments."""

    def error(self, message: str) -> NoReturn:
        _say("error", f"{message}; see {self.prog} --help")
        sys.exit(EXIT_USER_ERROR)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; a user's mistake is one line and code 2.

    Ctrl-C and SIGTERM end it with one line and the codes 130 and 143.

    Args:
      argv: the arguments; None takes those of the process.

    Returns:
      The exit code.
    """
    launch.open_closed_streams()
    arguments = _parser().parse_args(argv)
    # Compiled once, not at every start; JAX reads these when it is first imported.
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", f"{cache}/fdftnet_jax/xla")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
    warnings.showwarning = _show_warning
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    try:
        code = arguments.run(arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # Who read the output has enough. (Python would fail on what is left.)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_PIPE_CLOSED
    except (Interrupted, Exception) as error:
        if arguments.debug:
            raise
        return _told(error)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="fdftnet",
        description="Tells real faces from forged ones, with a detector that "
        "experiments.pretrain or experiments.finetune has trained.",
        epilog="fdftnet COMMAND --help says more. Try: fdftnet predict toy FILE",
    )
    parser.add_argument(
        "--version", action="version", version=f"%(prog)s {fdftnet_jax.__version__}"
    )
    subparsers = parser.add_subparsers(
        title="commands", metavar="COMMAND", required=True, parser_class=_Parser
    )
    prediction_command.add_predict(subparsers)
    detector_command.add_export(subparsers)
    detector_command.add_show(subparsers)
    for command in subparsers.choices.values():
        command.add_argument(
            "--debug", action="store_true", help="show the traceback of an error"
        )
    return parser


def _told(error: BaseException) -> int:
    """Says in one line what went wrong; returns the exit code."""
    if isinstance(error, Interrupted):
        _say("", str(error))
        return error.exit_code
    if isinstance(error, UserError):
        _say("error", str(error))
        return EXIT_USER_ERROR
    _say(
        "error",
        f"unexpected {type(error).__name__}: {error}; give the same command with "
        "--debug for the traceback, and report it",
    )
    return EXIT_ERROR


def _interrupt(number: int, _) -> NoReturn:
    name = signal.Signals(number).name
    raise Interrupted(number, f"stopped by {name}; the same command begins again")


def _show_warning(message, category, filename, lineno, file=None, line=None) -> None:
    _say("warning", str(message))


def _say(kind: str, message: str) -> None:
    text = " ".join(message.split())
    print(f"{kind}: {text}" if kind else text, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
