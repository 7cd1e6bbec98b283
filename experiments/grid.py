"""A grid of trainings in one folder, with their scores, resumable run by run.

An experiment lists its runs and has them made:

    base = phases.pretraining(config, "squeezenet", "toy", seed=0)
    tuned = phases.finetuning(config, base, "fdftnet")
    outcomes = grid.execute([base, tuned], workdir)
    outcomes[tuned.name].scores["test"]["figures"]["auc"]["value"]

`WORKDIR/<name>/` is a run's workdir like any other; its `outcome.json` says what was
reached. The same command goes on where it stopped: a finished training is not begun
again, a score that is there is not computed again, a run that failed is tried again.
"""

import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections
from absl import flags

from experiments import launch
from experiments.outcomes import (
    TEST,
    GridRun,
    Outcome,
    Outcomes,
    load,
    missing,
)
from experiments.outcomes import write as write_outcome
from fdftnet_jax import files
from fdftnet_jax.errors import UserError

# The flags belong to the experiment that calls, whose --help then lists them.
flags.disclaim_key_flags()

# From the flags' config and workdir: the runs of a grid, and a function that writes
# the results that are there and returns them as text.
Prepare = Callable[
    [ml_collections.ConfigDict, Path],
    tuple[Sequence[GridRun], Callable[[Outcomes], str]],
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
    replace = flags.DEFINE_bool(
        "replace", False, "Write to a --workdir that holds other files, over theirs."
    )

    def main() -> None:
        check_workdir(workdir.value, flags.FLAGS.config, replace=replace.value)
        runs, write = prepare(flags.FLAGS.config, Path(workdir.value))
        make(runs, workdir.value, write, dry_run=dry_run.value)

    launch.run(main, default_config, fields=default_config.partition(":")[0])


def check_workdir(
    workdir: str | Path, config: ml_collections.ConfigDict, *, replace: bool
) -> None:
    """Raises UserError where a grid's folder holds other files, or is a data folder.

    Args:
      workdir: of the grid.
      config: whose fields `dir` and `replay_dir`, at any depth, are folders of data.
      replace: whether the user allows the other files.
    """
    runs = ("**/outcome.json", "**/config.json")
    files.check_folder(workdir, "--workdir", runs, replace=replace)
    files.check_no_input(workdir, "--workdir", _data_folders(config))


def _data_folders(config: Mapping[str, Any]) -> Iterator[str]:
    for name, value in config.items():
        if isinstance(value, Mapping | ml_collections.ConfigDict):
            yield from _data_folders(value)
        elif name in ("dir", "replay_dir") and value:
            yield value


def execute(
    runs: Sequence[GridRun],
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
    with files.writing("the outcomes of runs", workdir):
        Path(workdir).mkdir(parents=True, exist_ok=True)
    left = _left(runs, outcomes)
    for index, run in enumerate(left):
        outcome = outcomes[run.name]
        time_left = _time_left(left[index:], runs, outcomes)
        number = len(runs) - len(left) + index + 1
        say(f"\n[{number}/{len(runs)}] {run.name}{time_left}")
        if run.after and not outcomes[run.after].finished:
            outcome.failure = f"it starts from {run.after}, which failed"
            write_outcome(run, outcome, Path(workdir))
        else:
            _make(run, outcome, Path(workdir))
        if outcome.failure:
            say(f"{run.name} failed: {outcome.failure}")
        report(outcomes)
    return outcomes


def make(
    runs: Sequence[GridRun],
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


def plan(runs: Sequence[GridRun], workdir: str | Path) -> str:
    """Lists what is done and what is left, a line a run.

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
            state = f"trained; to be scored: {', '.join(missing(run, outcome))}"
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
    outcomes: Outcomes, runs: Sequence[GridRun], title: str = TEST
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


def _begin(runs: Sequence[GridRun], workdir: Path) -> tuple[list[GridRun], Outcomes]:
    """The runs as they start, and what is there; before anything is trained."""
    from fdftnet_jax.run import Run
    from fdftnet_jax.training import config_values

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
        outcome = load(run, workdir)
        directory = workdir / run.name
        if outcome.finished:
            # Nothing is read from there any more, and the grid may have been moved.
            config = config.copy_and_resolve_references()
            config.init_from = Run(directory).config["init_from"]
        if outcome.finished or any(directory.glob("checkpoints/[0-9]*")):
            Run(directory).check_config(config)
        linked.append(run)
        outcomes[run.name] = outcome
    return linked, outcomes


def _left(runs: Sequence[GridRun], outcomes: Outcomes) -> list[GridRun]:
    """The runs whose training or scores are not all there."""
    return [
        run
        for run in runs
        if not outcomes[run.name].finished or missing(run, outcomes[run.name])
    ]


def _make(run: GridRun, outcome: Outcome, workdir: Path) -> None:
    """Trains and scores what is left of a run, and records it."""
    import jax

    from fdftnet_jax.evaluation import calibration, results, scoring
    from fdftnet_jax.run import Run
    from fdftnet_jax.training import loop

    directory = workdir / run.name
    outcome.failure = ""
    began = time.monotonic()
    try:
        if not outcome.finished:
            loop.train_and_evaluate(run.config, str(directory))
        with Run(directory) as trained:
            if not outcome.finished:
                outcome.trained_parameters = trained.best.trained_parameters
                outcome.finished = True
            options = calibration.Options.of(run.config.to_dict())
            calibrated = calibration.for_run(trained, options)
            for title in missing(run, outcome):
                scores = scoring.score_split(
                    trained, TEST, data=dict(run.scored[title])
                )
                target = trained.evaluation_path(
                    scores.dataset, scores.directory, scores.split, own=scores.own
                )
                if target in outcome.files.values():
                    raise UserError(
                        f"two data sets that {run.name} is scored on are called "
                        f"{scores.dataset!r}: rename the folder of one of them"
                    )
                report = results.report(scores, calibrated)
                path, _ = results.write(report, scores, calibrated, trained)
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
        write_outcome(run, outcome, workdir)
        # What was compiled for this run would stay in memory to the end of the grid.
        jax.clear_caches()


def _epochs(directory: Path) -> int:
    """The number of epochs that a run has in its history."""
    from fdftnet_jax.run import Run

    return len(Run(directory).history())


def _time_left(
    left: Sequence[GridRun], runs: Sequence[GridRun], outcomes: Outcomes
) -> str:
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


def _kind(run: GridRun) -> tuple[str, str]:
    """Kind of a run: runs of one kind take about as long."""
    return run.config.model.kind, run.config.model.backbone
