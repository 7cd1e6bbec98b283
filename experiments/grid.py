"""A grid of trainings in one folder, with their scores, resumable run by run.

An experiment lists its runs and has them made:

    base = phases.pretraining(config, "squeezenet", "toy", seed=0)
    tuned = phases.finetuning(config, base, "fdftnet")
    outcomes = grid.execute([base, tuned], workdir)
    outcomes[tuned.name].scores["test"]["auc"]

`WORKDIR/<name>/` is a run's workdir like any other; its `outcome.json` says what was
reached. The same command goes on where it stopped: a finished training is not begun
again, a score that is there is not computed again, a run that failed is tried again.
"""

import contextlib
import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections
from absl import flags

from experiments import launch
from fdftnet_jax import files
from fdftnet_jax.errors import UserError

# The flags belong to the experiment that calls, whose --help then lists them.
flags.disclaim_key_flags()

SCHEMA_VERSION = 1
TEST = "test"


@dataclasses.dataclass(frozen=True)
class Run:
    """One training of a grid.

    Attributes:
      name: its folder below the grid's, and its name for the user.
      config: all fields of `configs/base.py`; `execute` sets `init_from` where there
        is `after`.
      after: name of the run, earlier in the list, whose backbone this one starts from.
      scored: what its best checkpoint is scored on: for each title the fields of
        `config.data` that replace the run's own; always the test split.
    """

    name: str
    config: ml_collections.ConfigDict
    after: str = ""
    scored: Mapping[str, Mapping[str, Any]] = dataclasses.field(
        default_factory=lambda: {TEST: {}}
    )


@dataclasses.dataclass
class Outcome:
    """What is known of a run.

    Attributes:
      finished: whether its training is.
      scores: for each title what `evaluation/<dataset>-<split>.json` holds.
      files: for each title the path of that file; `..._scores.csv` lies beside it.
      trained_parameters: how many the training changes, in its last epoch.
      failure: why the run failed, '' where it did not.
      seconds: spent on it so far.
    """

    finished: bool = False
    scores: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    files: dict[str, Path] = dataclasses.field(default_factory=dict)
    trained_parameters: int = 0
    failure: str = ""
    seconds: float = 0.0


Outcomes = dict[str, Outcome]
# From the flags' config and workdir: the runs of a grid, and a function that writes
# the results that are there and returns them as text.
Prepare = Callable[
    [ml_collections.ConfigDict, Path], tuple[Sequence[Run], Callable[[Outcomes], str]]
]


def command(prepare: Prepare, default_config: str, default_workdir: str) -> None:
    """Runs an experiment that is a grid, with --config, --workdir and --dry_run.

    Args:
      prepare: the experiment.
      default_config: as for `launch.run`.
      default_workdir: where `--workdir` is not given.
    """
    workdir = flags.DEFINE_string("workdir", default_workdir, "Folder of the grid.")
    dry_run = flags.DEFINE_bool(
        "dry_run", False, "Only list what is done and what is left."
    )

    def main() -> None:
        runs, write = prepare(flags.FLAGS.config, Path(workdir.value))
        make(runs, workdir.value, write, dry_run=dry_run.value)

    launch.run(main, default_config, fields=default_config.partition(":")[0])


def execute(
    runs: Sequence[Run],
    workdir: str | Path,
    report: Callable[[Outcomes], Any] = lambda outcomes: None,
) -> Outcomes:
    """Makes all runs that are not there yet, in their order.

    A run that raises UserError or runs out of memory is recorded with its reason, and
    so are those that start from it; the others go on.

    Args:
      runs: of different names.
      workdir: of the grid.
      report: is called with the outcomes so far after each run that is made.

    Returns:
      The outcome of every run, by name.

    Raises:
      UserError: a config has a wrong value, or differs from that of the run in its
        folder; nothing was trained.
      Interrupted: by a signal; the same call goes on.
    """
    from fdftnet_jax.training.processes import say

    runs, outcomes = _begin(runs, Path(workdir))
    with _writing(Path(workdir)):
        Path(workdir).mkdir(parents=True, exist_ok=True)
    left = _left(runs, outcomes)
    for index, run in enumerate(left):
        outcome = outcomes[run.name]
        time_left = _time_left(left[index:], runs, outcomes)
        number = len(runs) - len(left) + index + 1
        say(f"\n[{number}/{len(runs)}] {run.name}{time_left}")
        if run.after and not outcomes[run.after].finished:
            outcome.failure = f"it starts from {run.after}, which failed"
            _write(run, outcome, Path(workdir))
        else:
            _make(run, outcome, Path(workdir))
        if outcome.failure:
            say(f"{run.name} failed: {outcome.failure}")
        report(outcomes)
    return outcomes


def make(
    runs: Sequence[Run],
    workdir: str | Path,
    write: Callable[[Outcomes], str],
    *,
    dry_run: bool = False,
) -> None:
    """Makes a grid and prints what `write` returns.

    Args:
      runs: as for `execute`.
      workdir: of the grid.
      write: writes the results that are there and returns them as text; called after
        each run, too.
      dry_run: only list what is done and what is left.

    Raises:
      UserError: as `execute`; or at the end, where runs failed.
      Interrupted: as `execute`.
    """
    if dry_run:
        print(plan(runs, workdir))
        return
    outcomes = execute(runs, workdir, write)
    print(write(outcomes))
    check_complete(outcomes)


def plan(runs: Sequence[Run], workdir: str | Path) -> str:
    """What is done and what is left, a line a run.

    Raises:
      UserError: as `execute`.
    """
    runs, outcomes = _begin(runs, Path(workdir))
    left = _left(runs, outcomes)
    lines = []
    for run in runs:
        outcome = outcomes[run.name]
        epochs = _epochs(Path(workdir) / run.name)
        if run not in left:
            state = "done"
        elif outcome.failure:
            state = f"failed, to be tried again: {outcome.failure}"
        elif outcome.finished:
            state = f"trained; to be scored: {', '.join(_missing(run, outcome))}"
        elif epochs:
            state = f"begun: {epochs} of at most {run.config.epochs} epochs"
        else:
            state = "to do"
        lines.append(f"{run.name}  {state}")
    time_left = _time_left(left, runs, outcomes)
    done = len(runs) - len(left)
    lines.append(f"{len(runs)} runs: {done} done, {len(left)} left{time_left}")
    return "\n".join(lines)


def scores(
    outcomes: Outcomes, runs: Sequence[Run], title: str = TEST
) -> list[dict[str, Any]]:
    """The scores of these runs, without those that have none."""
    found = [outcomes[run.name].scores.get(title) for run in runs]
    return [metrics for metrics in found if metrics is not None]


def failures(outcomes: Outcomes) -> dict[str, str]:
    """Run -> why it failed, for those that did."""
    return {name: found.failure for name, found in outcomes.items() if found.failure}


def check_complete(outcomes: Outcomes) -> None:
    """Raises UserError where runs failed, with their names and the first reason."""
    if failed := failures(outcomes):
        first, reason = next(iter(failed.items()))
        raise UserError(
            f"{len(failed)} of {len(outcomes)} runs failed, first {first}: {reason}; "
            "the table names all; the same command tries them again"
        )


def _begin(runs: Sequence[Run], workdir: Path) -> tuple[list[Run], Outcomes]:
    """The runs as they start, and what is there; before anything is trained."""
    from fdftnet_jax.training import config_values, run_files

    linked, outcomes = [], {}
    for run in runs:
        config = run.config.copy_and_resolve_references()
        if run.after:
            if run.after not in outcomes:
                raise ValueError(f"{run.name} comes before {run.after}.")
            config.init_from = str((workdir / run.after).absolute())
        try:
            config_values.check(config)
        except UserError as error:
            raise UserError(f"{run.name}: {error}") from error
        if run.name in outcomes:
            raise ValueError(f"Two runs are called {run.name}.")
        run = dataclasses.replace(run, config=config)
        outcome = _load(run, workdir)
        directory = workdir / run.name
        if outcome.finished:
            # Nothing is read from there any more, and the grid may have been moved.
            old = json.loads((directory / "config.json").read_text())
            config = config.copy_and_resolve_references()
            config.init_from = old["init_from"]
        if outcome.finished or any(directory.glob("checkpoints/[0-9]*")):
            run_files.check_config(config, directory)
        linked.append(run)
        outcomes[run.name] = outcome
    return linked, outcomes


def _load(run: Run, workdir: Path) -> Outcome:
    """What is known of a run, of its scores those that it is asked for."""
    directory = workdir / run.name
    path = directory / "outcome.json"
    if not path.exists():
        return Outcome()
    saved = json.loads(path.read_text())
    outcome = Outcome(
        finished=saved["finished"],
        trained_parameters=saved["trained_parameters"],
        failure=saved["failure"],
        seconds=saved["seconds"],
    )
    for title, data in run.scored.items():
        found = saved["scores"].get(title)
        if found and found["data"] == data and (directory / found["file"]).exists():
            outcome.files[title] = directory / found["file"]
            outcome.scores[title] = json.loads(outcome.files[title].read_text())
    if outcome.finished and not _missing(run, outcome):
        # It failed in a score that is no longer asked for.
        outcome.failure = ""
    return outcome


def _write(run: Run, outcome: Outcome, workdir: Path) -> None:
    directory = workdir / run.name
    saved = {
        "schema_version": SCHEMA_VERSION,
        "finished": outcome.finished,
        "trained_parameters": outcome.trained_parameters,
        "failure": outcome.failure,
        "seconds": outcome.seconds,
        "scores": {
            title: {
                "data": dict(run.scored[title]),
                "file": path.relative_to(directory).as_posix(),
            }
            for title, path in outcome.files.items()
        },
    }
    text = json.dumps(saved, indent=2) + "\n"
    with _writing(workdir):
        directory.mkdir(parents=True, exist_ok=True)
        files.write_atomic(directory / "outcome.json", text)


def _writing(workdir: Path) -> contextlib.AbstractContextManager[None]:
    """A disk that is full or cannot be written to is one line for the user."""
    advice = "free space or give another --workdir, and give the same command again"
    return files.writing("the outcome of a run", workdir, 10**6, advice)


def _left(runs: Sequence[Run], outcomes: Outcomes) -> list[Run]:
    """The runs whose training or scores are not all there."""
    return [
        run
        for run in runs
        if not outcomes[run.name].finished or _missing(run, outcomes[run.name])
    ]


def _missing(run: Run, outcome: Outcome) -> list[str]:
    """The titles of the scores that a run lacks."""
    return [title for title in run.scored if title not in outcome.scores]


def _make(run: Run, outcome: Outcome, workdir: Path) -> None:
    """Trains and scores what is left of a run, and records it."""
    import jax

    from fdftnet_jax.evaluation import calibration, results, scoring
    from fdftnet_jax.training import checkpoint, loop

    directory = workdir / run.name
    outcome.failure = ""
    began = time.monotonic()
    try:
        if not outcome.finished:
            loop.train_and_evaluate(run.config, str(directory))
            with checkpoint.Checkpoints(directory) as checkpoints:
                meta = checkpoints.load_meta()
            outcome.trained_parameters = meta["trained_parameters"]
            outcome.finished = True
        options = calibration.Options.of(run.config.to_dict())
        calibrated = calibration.for_run(directory, options)
        for title in _missing(run, outcome):
            scores = scoring.score_split(directory, TEST, data=dict(run.scored[title]))
            if results.path(scores, directory) in outcome.files.values():
                raise UserError(
                    f"two data sets that {run.name} is scored on are called "
                    f"{scores.dataset!r}: rename the folder of one of them"
                )
            report = results.report(scores, calibrated)
            path, _ = results.write(report, scores, calibrated, directory)
            outcome.files[title] = path
            outcome.scores[title] = json.loads(path.read_text())
    except UserError as error:
        outcome.failure = str(error)
    # Out of memory, most of all: a smaller backbone may still fit.
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        first = str(error).partition("\n")[0]
        outcome.failure = f"{type(error).__name__}: {first}"
    finally:
        outcome.seconds += time.monotonic() - began
        _write(run, outcome, workdir)
        # What was compiled for this run would stay in memory to the end of the grid.
        jax.clear_caches()


def _epochs(directory: Path) -> int:
    """The number of epochs that a run has in its history."""
    from fdftnet_jax.training import run_files

    if not (directory / "history.jsonl").exists():
        return 0
    return len(run_files.read_history(directory))


def _time_left(left: Sequence[Run], runs: Sequence[Run], outcomes: Outcomes) -> str:
    """How long the runs that are left take, by those that are finished."""
    seconds: dict[tuple[str, str], list[float]] = {}
    for run in runs:
        if outcomes[run.name].finished:
            seconds.setdefault(_kind(run), []).append(outcomes[run.name].seconds)
    if not seconds or not left:
        return ""
    mean = {kind: statistics.mean(found) for kind, found in seconds.items()}
    other = statistics.mean(mean.values())
    total = sum(
        max(0.0, mean.get(_kind(run), other) - outcomes[run.name].seconds)
        for run in left
        if not outcomes[run.name].finished
    )
    amount = f"{total / 3600:.1f} h" if total > 5400 else f"{total / 60:.1f} min"
    return f", about {amount} left"


def _kind(run: Run) -> tuple[str, str]:
    """Runs of one kind take about as long."""
    return run.config.model.kind, run.config.model.backbone
