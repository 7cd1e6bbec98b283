"""Flags and config files of the experiments (see `fdftnet_jax.launch` for the rest)."""

import difflib
import importlib
import os
import re
import sys
import warnings
from collections.abc import Callable
from typing import Any

import ml_collections
from absl import app, flags, logging
from ml_collections import config_flags

from fdftnet_jax import launch

_TYPES = {int: "a whole number", float: "a number", bool: "true or false"}
# The flags belong to the experiment that calls, whose --help then lists them.
flags.disclaim_key_flags()


def run(
    main: Callable[[], Any],
    default_config: str = "",
    fields: str = "fdftnet_jax/training/defaults.py",
) -> None:
    """Parses the flags, runs `main` and ends the process (see `launch.finish`).

    Args:
      main: the experiment; it reads `flags.FLAGS`.
      default_config: config file and argument where `--config` is not given; '' for an
        experiment without that flag.
      fields: the file that says what the config's fields mean.
    """
    launch.start(after_signal="begins again, or goes on from what was saved before")
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
    # What goes wrong is said once, at the end; libraries log it too.
    logging.set_verbosity(logging.FATAL)
    app.run(
        lambda argv: _run(main, argv),
        flags_parser=lambda argv: _parse(argv, default_config, fields),
    )


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
        processes.say(
            f"next: python -m experiments.evaluate --workdir={workdir.value} "
            "--split=test"
        )

    run(main, default_config)


def _run(main: Callable[[], Any], argv: list[str]) -> int:
    if len(argv) > 1:
        launch.fail(
            f"unexpected argument {argv[1]!r}: options are given as --name=value"
        )

    def work() -> int:
        main()
        return 0

    return launch.finish(work, debug=flags.FLAGS.debug, traceback=True)


def _parse(argv: list[str], default_config: str, fields: str) -> list[str]:
    for argument in argv:
        file = re.match(r"--?config=([^:]*)", argument)
        if file and not os.path.isfile(file[1]):
            launch.fail(f"no config file {file[1]!r}; run from the repository root")
    try:
        return flags.FLAGS(argv)
    # config_flags raises whatever its lookups and the config file itself raise.
    except Exception as error:
        if any(re.fullmatch(r"--?debug(=true)?", argument) for argument in argv):
            raise
        launch.fail(_explain(error, default_config, fields))


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
