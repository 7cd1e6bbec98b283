"""What the layouts of the paper's data sets have in common.

`celeba_pggan` and `faceforensics` say where the files lie and give each image its
split and group; `sets` makes a data set of that.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from fdftnet_jax.data import splits
from fdftnet_jax.data.images import SUFFIXES
from fdftnet_jax.data.splits import SPLITS, Example

# The splits that a set comes with; none has `finetune`.
OFFICIAL = ("train", "validation", "test")


class LeftOut(NamedTuple):
    """Images that belong to no split."""

    path: str  # Of a file, or of the folder of a video.
    images: int
    reason: str


class Layout(NamedTuple):
    """Contents of the folder of a set.

    Attributes:
      examples: by split, each sorted by path.
      left_out: sorted by path.
      expected: the splits that there should be.
    """

    examples: dict[str, list[Example]]
    left_out: list[LeftOut]
    expected: list[str]


class Place(NamedTuple):
    """Split and group of a video or an image, or the reason why it has none."""

    split: str
    group: str
    reason: str = ""


def nowhere(reason: str) -> Place:
    """The place of what is left out."""
    return Place("", "", reason)


def within_training(split: str, group: str, fractions: Mapping[str, float]) -> str:
    """The split of a group that is officially in `split`.

    The official training part is dealt to `train` and `finetune`, in the proportion of
    their fractions.
    """
    tuned = fractions.get("finetune", 0)
    if split != "train" or not tuned:
        return split
    share = tuned / (fractions.get("train", 0) + tuned)
    return splits.split_of(group, {"train": 1 - share, "finetune": share})


class Sorter:
    """Collects examples by split, and what is left out."""

    def __init__(self, generator: str):
        self._generator = generator
        self._examples: dict[str, list[Example]] = {split: [] for split in SPLITS}
        self._left_out: list[LeftOut] = []

    def add(self, what: str, label: int, paths: list[str], place: Place) -> None:
        """Adds images of one place; `what` names them where they are left out."""
        if place.reason:
            self._left_out.append(LeftOut(what, len(paths), place.reason))
            return
        generator = self._generator if label else ""
        self._examples[place.split] += [
            Example(path, label, place.group, generator) for path in paths
        ]

    def layout(self, expected: Iterable[str]) -> Layout:
        """Returns what was added."""
        examples = {s: sorted(some) for s, some in self._examples.items() if some}
        return Layout(examples, sorted(self._left_out), list(expected))


def files(root: Path, folder: str) -> list[str]:
    """The files below a folder, relative to the root; none where it is not there."""
    if not (root / folder).is_dir():
        return []
    return [f"{folder}/{path}" for path in splits.walk(root / folder)]


def images_in(root: Path, folder: str) -> list[str]:
    """Files below a folder that are images by their suffix."""
    found = files(root, folder)
    return [path for path in found if PurePosixPath(path).suffix.lower() in SUFFIXES]
