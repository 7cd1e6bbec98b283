"""Face crops of the pictures and videos that a user gives, where a detector needs them.

The crops of a file are in a folder of their own, so that the frames of one video are
one group (`BY_SOURCE`).
"""

import dataclasses
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections

from fdftnet_jax.data import kinds, splits
from fdftnet_jax.faces import choice, preparation
from fdftnet_jax.faces.crops import Rules
from fdftnet_jax.prediction import faces as prediction_faces
from fdftnet_jax.training.processes import say

# Groups by the folder of a crop, which has the name of the picture or video.
BY_SOURCE = r"([^/]+)/[^/]*$"
# Frames of a video that are looked at, at most.
_FRAMES = 32


@dataclasses.dataclass(frozen=True)
class Crops:
    """How folders become folders of face crops.

    Attributes:
      rules: by which faces are cut out; None where they are crops already.
      record: the file that says by which rules they are, None where they are not.
    """

    rules: choice.FaceRules | None = None
    record: Path | None = None

    def make(self, given: Path, output: Path) -> None:
        """Makes the crops of a folder with real/ and fake/; goes on where it was.

        Args:
          given: the folder.
          output: where crops go, at the same places; the same folder where they are
            crops already.

        Raises:
          UserError: see `preparation.prepare`.
        """
        if self.rules is None:
            shutil.copyfile(str(self.record), output / choice.PREPARATION)
            return
        values = dataclasses.asdict(self.rules)
        values |= {"every": Rules.every, "max_frames": _FRAMES, "workers": 0}
        config = ml_collections.ConfigDict({**values, "source_by": "stem"})
        found = preparation.prepare(config, given, output, pictures=True)
        told = f"cut {found.crops:,} faces out of {found.videos:,} pictures and videos"
        if without := ", ".join(f"{n:,} {why}" for why, n in found.rejected.items()):
            told += f"; without a face: {without}, listed in {output / 'rejected.csv'}"
        say(told)


def crops_for(
    way: str, of_start: Mapping[str, Any] | None, paths: Sequence[str]
) -> Crops | None:
    """How faces are cut out; None where pictures are taken whole.

    Args:
      way: 'crop', 'whole', or 'auto': as the detector to start from works; without
        one, 'crop' where there are videos or crops.
      of_start: the rules of the detector to start from (`choice.RECORDED`).
      paths: the folders that the user gives.

    Raises:
      UserError: the rules name a face detector that is not known here.
    """
    if way == "whole":
        return None
    if found := _recorded(paths):
        recorded, record = found
        if of_start is None or dict(of_start) == recorded:
            return Crops(record=record)
    if way == "auto" and not (of_start or _has_video(paths)):
        return None
    rules = prediction_faces.rules_of(of_start)
    of_training = (of_start or {}).get("faces", Rules.faces)
    return Crops(dataclasses.replace(rules, faces=of_training))


def _recorded(paths: Sequence[str]) -> tuple[dict[str, Any], Path] | None:
    """The rules of folders of crops and the file that says so; None if any is none."""
    found = []
    for path in paths:
        # The record lies above the folders of the classes.
        places = [Path(path), Path(path).resolve().parent]
        records = [at / choice.PREPARATION for at in places]
        present = [record for record in records if record.is_file()]
        rules = choice.recorded_rules(str(present[0].parent)) if present else None
        if rules is None:
            return None
        found.append((rules, present[0]))
    alike = all(json.dumps(rules) == json.dumps(found[0][0]) for rules, _ in found)
    return found[0] if alike else None


def _has_video(paths: Sequence[str]) -> bool:
    return any(
        kinds.kind_of(str(Path(path) / name)) == kinds.VIDEO
        for path in paths
        for name in splits.walk(Path(path))
    )
