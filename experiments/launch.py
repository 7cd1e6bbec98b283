"""How every experiment starts: flags, one-line errors, exit codes."""

import difflib
import importlib
import os
import platform
import re
import signal
import sys
import warnings
from collections.abc import Callable
from typing import Any, NoReturn

import ml_collections
from absl import app, flags, logging
from ml_collections import config_flags

from fdftnet_jax.errors import Interrupted, UserError
from fdftnet_jax.launch import open_closed_streams

EXIT_USER_ERROR = 2
_LARGE_PAGES = "glibc.malloc.hugetlb"
_TYPES = {int: "a whole number", float: "a number", bool: "true or false"}
# The flags belong to the experiment that calls, whose --help then lists them.
flags.disclaim_key_flags()


def run(
    main: Callable[[], Any],
    default_config: str = "",
    fields: str = "configs/base.py",
) -> None:
    """Parses the flags and runs `main`; a user's mistake is one line and code 2.

    Ctrl-C and SIGTERM end it with one line and the codes 130 and 143.

    Args:
      main: the experiment; it reads `flags.FLAGS`.
      default_config: config file and argument where `--config` is not given; '' for an
        experiment without that flag.
      fields: the file that says what the config's fields mean.
    """
    open_closed_streams()
    _use_large_pages()
    flags.DEFINE_bool("debug", False, "Show the traceback of an error.")
    if default_config:
        # The flag looks up each `--config.field` as soon as it has a config, so the
        # default is an argument like any other, parsed where errors are caught.
        config_flags.DEFINE_config_file(
            "config",
            None,
            f"Config file and its argument (default {default_config}).",
            lock_config=True,
        )
        if not any(re.match(r"--?config(=|$)", argument) for argument in sys.argv):
            sys.argv.insert(1, f"--config={default_config}")
    # Compiled once, not at every start; JAX reads these when it is first imported.
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", f"{cache}/fdftnet_jax/xla")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
    warnings.showwarning = _show_warning
    sys.unraisablehook = _show_unraisable
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    # What goes wrong is told here, once; libraries log it too.
    logging.set_verbosity(logging.FATAL)
    app.run(
        lambda argv: _guarded(main, argv),
        flags_parser=lambda argv: _parse(argv, default_config, fields),
    )


def _use_large_pages() -> None:
    """Starts the command anew with large pages for large arrays, on Linux.

    On a CPU, XLA takes the memory of a step from the system and gives it back, every
    time; in pages of 4 kB that is a quarter of a pre-training step of Xception. The C
    library reads this setting only when a process starts.
    """
    main = getattr(sys.modules["__main__"], "__spec__", None)
    command = main is not None and main.name.startswith("experiments.")
    given = os.environ.get("GLIBC_TUNABLES", "")
    if command and platform.libc_ver()[0] == "glibc" and _LARGE_PAGES not in given:
        tunables = [*filter(None, [given]), f"{_LARGE_PAGES}=1"]
        environment = os.environ | {"GLIBC_TUNABLES": ":".join(tunables)}
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def run_training(default_config: str) -> None:
    """Runs the training that `--config` describes in `--workdir`.

    Args:
      default_config: the config file and argument where `--config` is not given.
    """
    workdir = flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
    distributed = flags.DEFINE_bool(
        "distributed",
        False,
        "Train as one of several processes that the cluster's scheduler started.",
    )
    coordinator = flags.DEFINE_string(
        "coordinator",
        None,
        "The same without a scheduler: HOST:PORT of process 0, a free port.",
    )
    number = flags.DEFINE_integer("num_processes", None, "With it: how many there are.")
    index = flags.DEFINE_integer("process_id", None, "With it: which this is, from 0.")

    def main() -> None:
        # JAX starts only when the flags are known to be right.
        from fdftnet_jax.evaluation import calibration
        from fdftnet_jax.run import Run
        from fdftnet_jax.training import loop, processes

        which = (coordinator.value, number.value, index.value)
        if distributed.value or any(value is not None for value in which):
            processes.join(*which)
            if not processes.is_primary():
                # All processes meet with the same.
                warnings.showwarning = lambda *_, **__: None
        config = flags.FLAGS.config
        loop.train_and_evaluate(config, workdir.value)
        options = calibration.Options.of(config.to_dict())
        with Run(workdir.value) as trained:
            calibration.for_run(trained, options)

    run(main, default_config)


def _guarded(main: Callable[[], Any], argv: list[str]) -> None:
    if len(argv) > 1:
        _fail(f"unexpected argument {argv[1]!r}: options are given as --name=value")
    try:
        main()
    except UserError as error:
        if flags.FLAGS.debug:
            raise
        _fail(str(error))
    except Interrupted as error:
        _fail(str(error), error.exit_code)


def _interrupt(number: int, _) -> NoReturn:
    raise Interrupted(
        number,
        f"stopped by {signal.Signals(number).name}; the same command begins again, or "
        "goes on from what was saved before",
    )


def _parse(argv: list[str], default_config: str, fields: str) -> list[str]:
    for argument in argv:
        file = re.match(r"--?config=([^:]*)", argument)
        if file and not os.path.isfile(file[1]):
            _fail(f"no config file {file[1]!r}; run from the repository root")
    try:
        return flags.FLAGS(argv)
    # config_flags raises whatever its lookups and the config file itself raise.
    except Exception as error:
        if any(re.fullmatch(r"--?debug(=true)?", argument) for argument in argv):
            raise
        _fail(_explain(error, default_config, fields))


def _explain(error: Exception, default_config: str, fields: str) -> str:
    """One line for what was wrong with the command line."""
    known = _config_values(default_config)
    for argument in sys.argv[1:]:
        match = re.match(r"--?config\.([\w.]+)", argument)
        if match and known and match[1] not in known:
            near = difflib.get_close_matches(match[1], known, 1, 0.5)
            hint = f"see {fields}"
            if near:
                hint = f"did you mean --config.{near[0]}?"
            return f"no config key {match[1]!r}; {hint}"
    wrong = re.search(r"[Ff]lag --config\.([\w.]+)=(.*?): ", str(error))
    if wrong and type(known.get(wrong[1])) in _TYPES:
        expected = _TYPES[type(known[wrong[1]])]
        return f"{wrong[1]} is {wrong[2]!r}: expected {expected}; see {fields}"
    # What a config file raised stands at the end of the traceback that absl quotes.
    text = str(error).strip().rsplit("\n", 1)[-1].strip()
    if required := re.search(r"Flag --(\w+) must have a value", text):
        return f"--{required[1]} is missing: give --{required[1]}=VALUE; see --help"
    return f"{text.removeprefix('ValueError: ')}; see --help"


def _config_values(default_config: str) -> dict[str, Any]:
    """Key -> default of a config file; empty where it cannot be imported."""
    module = default_config.partition(":")[0].removesuffix(".py").replace("/", ".")
    try:
        config = importlib.import_module(module).get_config()
    except (ImportError, ValueError):
        return {}

    def flat(config: ml_collections.ConfigDict, prefix: str) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for name, value in config.items():
            values[prefix + name] = value
            if isinstance(value, ml_collections.ConfigDict):
                values |= flat(value, f"{prefix}{name}.")
        return values

    return flat(config, "")


def _fail(message: str, code: int = EXIT_USER_ERROR) -> NoReturn:
    kind = "error: " if code == EXIT_USER_ERROR else ""
    print(kind + " ".join(message.split()), file=sys.stderr)
    sys.exit(code)


def _show_warning(message, category, filename, lineno, file=None, line=None) -> None:
    print(f"warning: {message}", file=sys.stderr)


def _show_unraisable(unraisable: Any) -> None:
    # TensorStore's late answers, after a damaged checkpoint has been told of.
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)
