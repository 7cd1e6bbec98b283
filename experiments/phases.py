"""The trainings of a grid: what configs/grid.py and its like make of both phases."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_collections

from configs import base, finetune, pretrain
from experiments.grid import GridRun
from fdftnet_jax.errors import UserError

_PHASES = {"pretrain": pretrain, "finetune": finetune}
# Phase -> the recipes of its config file, beside the default.
_RECIPES = {"pretrain": ("paper",), "finetune": ("paper", "imagenet")}


def names(text: str, flag: str) -> list[str]:
    """Reads the comma list of a flag.

    Raises:
      UserError: it has nothing, an empty part, or something twice.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(parts) or len(set(parts)) < len(parts):
        raise UserError(
            f"{flag} is {text!r}: expected different names with commas between them; "
            f"give it with --config.{flag}=A,B"
        )
    return parts


def seeds(config: ml_collections.ConfigDict) -> range:
    """The seeds of a grid.

    Raises:
      UserError: there is none.
    """
    if config.seeds < 1:
        raise UserError(
            f"seeds is {config.seeds}: expected a whole number, 1 or more; give it "
            "with --config.seeds=VALUE"
        )
    return range(config.seeds)


def phase_config(
    config: ml_collections.ConfigDict,
    phase: str,
    backbone: str,
    dataset: str,
    seed: int,
    changes: Mapping[str, Any] | None = None,
) -> ml_collections.ConfigDict:
    """The config of a run: its config file's, with what replaces values of that.

    From weak to strong: the file with `config.recipe`, the settings of the data set in
    `config.data`, `config.both`, `config.pretrain` or `config.finetune`, and `changes`.

    Args:
      config: of the grid, all fields of `configs/grid.py`.
      phase: 'pretrain' or 'finetune'.
      backbone: a name, or MODULE:ATTRIBUTE.
      dataset: a name of data that `training/defaults.py` knows.
      seed: of the run.
      changes: further values by dotted name.

    Raises:
      UserError: there is no such data set or recipe.
    """
    recipes = ("default", *_RECIPES["finetune"])
    if config.recipe not in recipes:
        known = ", ".join(map(repr, recipes))
        raise UserError(
            f"recipe is {config.recipe!r}: expected one of {known}; give it with "
            "--config.recipe=VALUE"
        )
    recipe = f",{config.recipe}" * (config.recipe in _RECIPES[phase])
    try:
        made = _PHASES[phase].get_config(f"{backbone},{dataset}{recipe}")
    except ValueError as error:
        raise UserError(str(error)) from error
    made.lock()
    settings = config.data.get(dataset, {})
    fields = {"dir": "data.dir"}
    if phase == "finetune":
        fields["num_blocks"] = "model.num_blocks"
        fields["cutout_beta"] = "augment.cutout_beta"
    of_data = {field: settings.get(name) for name, field in fields.items()}
    for part in (of_data, config.both, config[phase], changes or {}):
        made.update_from_flattened_dict(dict(given(part)))
    made.seed = seed
    return made


def given(part: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Fields that have a value, by dotted name."""
    for name, value in part.items():
        if isinstance(value, Mapping | ml_collections.ConfigDict):
            yield from given(value, f"{prefix}{name}.")
        elif value is not None:
            yield prefix + name, value


def pretraining(
    config: ml_collections.ConfigDict, backbone: str, dataset: str, seed: int
) -> GridRun:
    """The pre-training of a backbone, `<dataset>/<backbone>/seed<n>/base`."""
    made = phase_config(config, "pretrain", backbone, dataset, seed)
    return GridRun(f"{dataset}/{backbone}/seed{seed}/base", made)


def finetuning(
    config: ml_collections.ConfigDict,
    pretrained: GridRun,
    name: str,
    changes: Mapping[str, Any] | None = None,
) -> GridRun:
    """A fine-tuning on the same data with the same seed, in a folder beside."""
    made = phase_config(
        config,
        "finetune",
        pretrained.config.model.backbone,
        pretrained.config.data.name,
        pretrained.config.seed,
        changes,
    )
    return GridRun(str(Path(pretrained.name).with_name(name)), made, pretrained.name)


def read_value(field: str, text: str) -> Any:
    """Reads a value of a field of `training/defaults.py`.

    Raises:
      UserError: there is no such field, or the text is no such value.
    """
    defaults: Any = base.get_config()
    *sections, name = field.split(".")
    for section in sections:
        defaults = defaults.get(section, {})
    default = defaults.get(name)
    if default is None or isinstance(default, ml_collections.ConfigDict):
        raise UserError(
            f"no config key {field!r}; see fdftnet_jax/training/defaults.py"
        )
    if isinstance(default, bool):
        choices = {"true": True, "false": False}
        if text.lower() in choices:
            return choices[text.lower()]
    else:
        with contextlib.suppress(ValueError):
            return type(default)(text)
    raise UserError(
        f"{field} is {text!r}: expected a value like {default!r}; see "
        "fdftnet_jax/training/defaults.py"
    )
