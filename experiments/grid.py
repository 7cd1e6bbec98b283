"""A grid of trainings in one folder, with their scores, resumable run by run.

An experiment lists its runs and has them made:

    base = grid.Run("seed0/base", pretrain_config, {"test": {}})
    tuned = grid.Run("seed0/fdftnet", finetune_config, {"test": {}}, after=base.name)
    outcomes = grid.execute([base, tuned], workdir)
    outcomes["seed0/fdftnet"].scores["test"]["auc"]

`WORKDIR/<name>/` is a run's workdir like any other; its `outcome.json` says what was
reached. The same command goes on where it stopped: a finished training is not begun
again, a score that is there is not computed again, and a run that failed is tried again.
"""

import dataclasses
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections

from configs import finetune, pretrain
from fdftnet_jax import files
from fdftnet_jax.errors import UserError

SCHEMA_VERSION = 1
_PHASES = {"pretrain": pretrain, "finetune": finetune}


@dataclasses.dataclass(frozen=True)
class Run:
    """One training of a grid.

    Attributes:
      name: its folder below the grid's, and its name for the user.
      config: all fields of `configs/base.py`; `init_from` is set where there is `after`.
      scored: what its best checkpoint is scored on: for each title the fields of
        `config.data` that replace the run's own, {} for none; always the test split.
      after: name of the run, earlier in the list, whose backbone this one starts from.
    """

    name: str
    config: ml_collections.ConfigDict
    scored: Mapping[str, Mapping[str, Any]]
    after: str = ""


@dataclasses.dataclass
class Outcome:
    """What is known of a run.

    Attributes:
      scores: for each title what `evaluation/<dataset>-<split>.json` holds.
      files: for each title the path of that file; `..._scores.csv` lies beside it.
      finished: whether the training is.
      failure: why the run failed, '' where it did not.
      seconds: spent on it so far.
    """

    scores: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    files: dict[str, Path] = dataclasses.field(default_factory=dict)
    finished: bool = False
    failure: str = ""
    seconds: float = 0.0


Outcomes = dict[str, Outcome]


def phase_config(
    phase: str,
    backbone: str,
    dataset: str,
    recipe: str,
    seed: int,
    *changes: ml_collections.ConfigDict | Mapping[str, Any],
) -> ml_collections.ConfigDict:
    """The config of one run.

    Args:
      phase: 'pretrain' or 'finetune', the config file to start from.
      backbone: its `model.backbone`.
      dataset: its `data.name`.
      recipe: 'default' or 'paper'.
      seed: its `seed`.
      *changes: fields that replace those of the file, later ones the earlier; None
        keeps a field. Nested, or flat with dots ('data.dir').

    Raises:
      UserError: there is no such data set or recipe.
    """
    raise NotImplementedError


def execute(
    runs: Sequence[Run],
    workdir: str | Path,
    report: Callable[[Outcomes], Any] = lambda outcomes: None,
) -> Outcomes:
    """Makes all runs that are not there yet, in their order.

    A run that raises UserError is recorded with its reason, and so are those that start
    from it; the others go on.

    Args:
      runs: of different names, each after the one that it starts from.
      workdir: of the grid.
      report: is called with what there is after each run, for a table so far.

    Returns:
      The outcome of every run, by name.

    Raises:
      UserError: a config has a wrong value, or differs from that of the run in its
        folder; nothing was trained.
      Interrupted: by a signal; the same call goes on.
    """
    raise NotImplementedError


def load(run: Run, workdir: str | Path) -> Outcome:
    """What is known of a run so far, without the scores that it is not asked for."""
    raise NotImplementedError


def plan(runs: Sequence[Run], workdir: str | Path) -> str:
    """What is done and what is left, a line a run, for `--dry_run`."""
    raise NotImplementedError


def check_complete(outcomes: Outcomes) -> None:
    """Raises UserError, which names the runs that failed and why, where any did."""
    raise NotImplementedError


def names(text: str, what: str) -> list[str]:
    """Reads a comma list of a flag.

    Raises:
      UserError: it is empty or names something twice; `what` is the flag's name.
    """
    raise NotImplementedError
