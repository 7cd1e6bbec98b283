"""The data sets that earlier runs were trained on, by what checkpoints tell."""

from typing import Any

import ml_collections

from fdftnet_jax.data import splits


def data_config(
    trained_on: list[dict[str, Any]], data: dict[str, Any]
) -> ml_collections.ConfigDict:
    """The fields of `config.data` of an earlier run, replaced by `data`.

    A folder that one of the runs was trained on is split as it was then: another split
    would test on images that were trained on. The rules on the paths of one folder need
    not fit another, which gets the default ones.

    Args:
      trained_on: of a checkpoint's description, the latest run first.
      data: fields that take the place of the run's.
    """
    if "dir" not in data:
        return ml_collections.ConfigDict({**trained_on[0]["data"], **data})
    for run in trained_on:
        if run["directory"] == splits.resolve(data["dir"]):
            return ml_collections.ConfigDict({**run["data"], **data})
    rules = {"group_by": "file", "generator_by": "folder"}
    return ml_collections.ConfigDict({**trained_on[0]["data"], **rules, **data})
