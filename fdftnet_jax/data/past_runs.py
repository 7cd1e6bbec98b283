"""The data sets that earlier runs were trained on, by what checkpoints tell."""

import json
from pathlib import Path
from typing import Any

import ml_collections

from fdftnet_jax.data import splits
from fdftnet_jax.paper_sets import sets

# What `experiments.prepare_faces` leaves beside its crops, and what of it makes a crop.
PREPARATION = "preparation.json"
FACE_RULES = (
    *("detector", "detector_version", "faces"),
    *("margin", "min_size", "min_confidence"),
)


def data_config(
    trained_on: list[dict[str, Any]], data: dict[str, Any]
) -> ml_collections.ConfigDict:
    """The fields of `config.data` of an earlier run, replaced by `data`.

    A folder that one of the runs was trained on is split as it was then: another split
    would test on images that were trained on. The rules on the paths of one folder need
    not fit another, which gets the default ones. Where `data` names a folder alone, the
    kind of data is that run's, or 'folder'.

    Args:
      trained_on: of a checkpoint's description, the latest run first.
      data: fields that take the place of the run's.
    """
    latest = trained_on[0]
    directory = splits.resolve(data["dir"]) if "dir" in data else latest["directory"]
    for run in trained_on:
        name = run["data"]["name"]
        if run["directory"] == directory and sets.share_images(
            data.get("name", name), name
        ):
            return _replaced(run["data"], data)
    rules = {"name": "folder", "group_by": "file", "generator_by": "folder"}
    return _replaced({**latest["data"], **rules}, data)


def _replaced(old: dict[str, Any], new: dict[str, Any]) -> ml_collections.ConfigDict:
    """Fields replaced, those of a sub-section one by one."""
    merged = dict(old)
    for name, value in new.items():
        both = isinstance(value, dict) and isinstance(old.get(name), dict)
        merged[name] = {**old[name], **value} if both else value
    return ml_collections.ConfigDict(merged)


def face_rules(directory: str) -> dict[str, Any] | None:
    """The rules that the face crops of a folder were cut by; None where nobody knows.

    Args:
      directory: of the images: an output of `experiments.prepare_faces`, or one above
        several that were prepared alike; '' for the toy.
    """
    if not directory:
        return None
    paths = [Path(directory) / PREPARATION]
    if not paths[0].exists():
        paths = sorted(Path(directory).glob(f"*/{PREPARATION}"))
    found = []
    for path in paths:
        try:
            record = json.loads(path.read_text())
            found.append({name: record[name] for name in FACE_RULES})
        # Somebody else's file of that name.
        except (OSError, ValueError, KeyError, TypeError):
            return None
    return found[0] if found and all(rules == found[0] for rules in found) else None
