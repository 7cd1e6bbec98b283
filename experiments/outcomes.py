"""A run of a grid, and what is known of it: its `outcome.json`."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_collections

from fdftnet_jax import files

SCHEMA_VERSION = 1
TEST = "test"


@dataclasses.dataclass(frozen=True)
class GridRun:
    """One training of a grid.

    Attributes:
      name: its folder below the grid's, and its name for the user.
      config: all fields of `training/defaults.py`; `grid.execute` sets `init_from`
        where there is `after`.
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
    """Outcome of a run: its scores, or why it failed.

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


def load(run: GridRun, workdir: Path) -> Outcome:
    """Reads what is known of a run, with the scores that it is asked for."""
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
    if outcome.finished and not missing(run, outcome):
        # It failed in a score that is no longer asked for.
        outcome.failure = ""
    return outcome


def write(run: GridRun, outcome: Outcome, workdir: Path) -> None:
    """Writes the outcome of a run, with the names of the files of its scores."""
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
    with files.writing("the outcome of a run", directory):
        directory.mkdir(parents=True, exist_ok=True)
        files.write_atomic(directory / "outcome.json", text)


def missing(run: GridRun, outcome: Outcome) -> list[str]:
    """The titles of the scores that a run lacks."""
    return [title for title in run.scored if title not in outcome.scores]
