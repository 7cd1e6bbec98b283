"""Checks of a config's values, with errors that name the flag."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import ml_collections

from fdftnet_jax.errors import UserError

# Field, by dotted name -> its type, its lowest and its highest value.
Ranges = Mapping[str, tuple[type, float, float]]


def check(
    config: ml_collections.ConfigDict,
    ranges: Ranges,
    choices: Mapping[str, Iterable[Any]],
) -> None:
    """Raises UserError for a value that is missing or not allowed.

    Args:
      config: with all fields of `ranges` and `choices`.
      ranges: of numbers; a whole number is a number, a truth value and NaN are none.
      choices: field -> the values that it may have.
    """
    for name, (kind, low, high) in ranges.items():
        value = _value(config, name)
        number = isinstance(value, int if kind is int else int | float)
        number = number and not isinstance(value, bool) and math.isfinite(value)
        if not number or not low <= value <= high:
            what = "a whole number" if kind is int else "a number"
            to = "or more" if high == math.inf else f"to {high}"
            raise _wrong(name, value, f"{what}, {low} {to}")
    for name, allowed in choices.items():
        if (value := _value(config, name)) not in allowed:
            raise _wrong(name, value, " or ".join(repr(choice) for choice in allowed))


def _value(config: ml_collections.ConfigDict, name: str) -> Any:
    value: Any = config
    for part in name.split("."):
        if part not in value:
            raise UserError(
                f"the config has no {name}: start from the config file in configs/ "
                "whose get_config() has every field"
            )
        value = value[part]
    return value


def _wrong(name: str, value: Any, expected: str) -> UserError:
    return UserError(
        f"{name} is {value!r}: expected {expected}; give it with --config.{name}=VALUE"
    )
