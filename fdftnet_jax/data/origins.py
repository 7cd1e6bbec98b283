"""Where the images of a data set come from: a folder, or the embedded toy.

An origin knows the examples of each split and makes their images; `forgery_faces`
prepares them. A folder is listed (`splits`), inspected (`inspection`), and rid of files
that cannot be used and of pictures that leak (`leaks`); what is found is written beside
the prepared data.
"""

import csv
import dataclasses
import hashlib
import io
import json
import os
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from fdftnet_jax import files
from fdftnet_jax.data import caches, images, inspection, leaks, splits, toy
from fdftnet_jax.data.splits import CLASSES, SPLITS, Example
from fdftnet_jax.errors import UserError

# Toy images of different splits come from different ranges of this length.
_TOY_RANGE = 2**24


def entry(cache: Path, name: str) -> Path:
    """The folder of a data set in the cache: prepared records and reports."""
    return cache / "forgery_faces" / name


@dataclasses.dataclass(eq=False, kw_only=True)
class FacesConfig(tfds.core.BuilderConfig):
    """What both kinds of data set have; attributes follow from the subclass's fields.

    Attributes:
      name: carries a hash of all that determines the records.
      title: short name for people.
      examples: the examples of each split that has any.
      expected: the splits that were asked for.
      size: bytes of all images before compression.
      to_get_split: how to get a split that is not there.
    """

    to_get_split: ClassVar[str] = "give the split a fraction above 0"
    name: str = ""
    title: str = dataclasses.field(init=False)
    examples: dict[str, list[Example]] = dataclasses.field(init=False)
    expected: list[str] = dataclasses.field(init=False)
    size: int = dataclasses.field(init=False)

    def image(self, split: str, index: int) -> np.ndarray:
        """Returns the image of `examples[split][index]`, [h, w, 3] uint8."""
        raise NotImplementedError

    def fingerprint(self, splits: Sequence[str]) -> str:
        """A hash of all that is in these splits, and of nothing else."""
        raise NotImplementedError

    def digests(self, splits: Sequence[str]) -> dict[str, str]:
        """Path -> digest of the pixels, of the files of these splits."""
        del splits
        return {}


@dataclasses.dataclass(eq=False, kw_only=True)
class FolderConfig(FacesConfig):
    """A folder of images; constructing the config lists and inspects the folder.

    Attributes:
      dir: the folder, laid out as `splits.list_files` says; made absolute.
      group_by: see `splits.group_of`.
      generator_by: see `splits.generator_of`.
      fractions: see `splits.split_of`.
      duplicates: 'error' for a picture in both classes or in two splits, or 'drop' to
        keep one of them (see `leaks.duplicates`).
      across_splits: whether splits may not share a picture.
      max_rejected: the largest share of the image files that may be unusable.
      cache: where findings and reports are kept.

    Raises:
      UserError: at construction, if the folder, a rule or too many files do not fit,
        or if pictures leak.
    """

    to_get_split: ClassVar[str] = (
        "make a folder for it with real/ and fake/ in it, or give the split a fraction "
        "above 0"
    )
    # What to do about pictures, and about near-twins, of different splits.
    _to_part: ClassVar[str] = "remove them, group them with config.data.group_by,"
    _to_join: ClassVar[str] = (
        "keep them together by a config.data.group_by that gives both the same group"
    )
    dir: str
    group_by: str = "file"
    generator_by: str = "folder"
    fractions: Mapping[str, float]
    duplicates: str = "error"
    across_splits: bool = True
    max_rejected: float = 0.05
    cache: Path

    def __post_init__(self) -> None:
        if not self.dir:
            raise UserError(
                "expected the path of a folder of images, found an empty one; give it "
                "with --config.data.dir=PATH"
            )
        if self.duplicates not in ("error", "drop"):
            raise UserError(
                "expected config.data.duplicates to be 'error' or 'drop', found "
                f"{self.duplicates!r}; choose one of them"
            )
        self.dir = splits.resolve(self.dir)
        self._findings: dict[str, inspection.Finding] = {}
        self._find()
        self._report_rejected()
        self._report_duplicates()
        placed = leaks.placed(self.examples, self._findings)
        if self.across_splits:
            self._report_near_twins(placed)
        self._report_shortcuts(placed)
        self.size = sum(3 * i.finding.width * i.finding.height for i in placed)

    def _find(self) -> None:
        """Lists and inspects the files; sets what is known of them."""
        self.title = _printable(os.path.basename(self.dir))
        self.description = f"Images of {_printable(self.dir)}"
        listed = splits.list_files(self.dir)
        self._inspect(listed)
        used = [file for file in listed if not self._findings[file.path].reason]
        self._examples(
            splits.assign(
                used,
                group_by=self.group_by,
                generator_by=self.generator_by,
                fractions=self.fractions,
            )
        )
        if listed[0].split:
            given = {file.split for file in listed}
            self.expected = [split for split in SPLITS if split in given]
        else:
            self.expected = [s for s in SPLITS if self.fractions.get(s, 0) > 0]

    def _inspect(self, listed: Sequence[splits.File], part: str = "") -> None:
        found = inspection.inspect(self.dir, listed, self.cache, part)
        paths = (file.path for file in listed)
        self._findings.update(zip(paths, found, strict=True))

    def image(self, split: str, index: int) -> np.ndarray:
        """Decodes a file; raises UserError if it is not what it was when inspected."""
        path = self.examples[split][index].path
        pixels = images.decode(os.path.join(self.dir, path))
        if inspection.digest(pixels) != self._findings[path].digest:
            raise UserError(
                f"expected {os.path.join(self.dir, path)} to stay as it is while it is "
                "read, found another picture; start again"
            )
        return pixels

    def fingerprint(self, splits: Sequence[str]) -> str:
        """A hash of the paths, labels, groups, generators and pixels of these splits.

        It depends neither on other splits nor on where the folder is.
        """
        return _hash(
            sorted(
                (split, *example, self._findings[example.path].digest)
                for split in set(splits)
                for example in self.examples.get(split, [])
            )
        )

    def digests(self, splits: Sequence[str]) -> dict[str, str]:
        """Path -> digest of the pixels, of these splits."""
        return {
            example.path: self._findings[example.path].digest
            for split in splits
            for example in self.examples.get(split, [])
        }

    def _examples(self, examples: dict[str, list[Example]]) -> None:
        self.examples = {split: some for split, some in examples.items() if some}
        plain = re.sub(r"[^A-Za-z0-9_.]", "_", self.title)[:40]
        self.name = f"{self._kind()}-{plain}-{self.fingerprint(SPLITS)}"

    def _kind(self) -> str:
        """What the names of cache entries begin with."""
        return "folder"

    def _report_rejected(self) -> None:
        rejected = {p: f.reason for p, f in self._findings.items() if f.reason}
        report = self._write("rejected.csv", ("path", "reason"), rejected.items())
        # Files of other kinds are listed, but nobody meant them to be images.
        other = sum(reason == inspection.NO_IMAGE for reason in rejected.values())
        number, total = len(rejected) - other, len(self._findings) - other
        if number > self.max_rejected * total:
            raise UserError(
                f"expected at most {self.max_rejected:.0%} of the image files in "
                f"{self.dir} to be unusable, found {number} of {total}, listed in "
                f"{report}; repair or remove them, or raise config.data.max_rejected"
            )
        if number:
            warn(
                f"left out {number} of {total} image files in {self.dir}, which cannot "
                f"be used; the reasons are in {report}"
            )

    def _report_duplicates(self) -> None:
        found = leaks.duplicates(
            leaks.placed(self.examples, self._findings),
            across_splits=self.across_splits,
        )
        if not found:
            return
        if self.duplicates == "drop":
            gone = {
                image.example.path
                for leak in found
                for image in leak.images[len(leak.kept) :]
            }
            self._examples(
                {
                    split: [example for example in some if example.path not in gone]
                    for split, some in self.examples.items()
                }
            )
        report = self._write(
            "duplicates.csv",
            ("picture", "path", "split", "class", "kept"),
            (
                (
                    number,
                    image.example.path,
                    image.split,
                    CLASSES[image.example.label],
                    "yes" if image.example.path in leak.kept else "no",
                )
                for number, leak in enumerate(found)
                for image in leak.images
            ),
        )
        if self.duplicates == "drop":
            warn(
                f"left out {len(gone)} of the images of {self.dir}, whose picture is "
                f"in the other class or another split too; they are in {report}"
            )
            return
        first = found[0].images[0]
        second = found[0].images[len(found[0].kept)]
        raise UserError(
            "expected no picture in both classes or in two splits, found "
            f"{len(found)} in {self.dir}, such as {_where(first)} and "
            f"{_where(second)}, all listed in {report}; "
            f"{self._to_part} or keep one of each with --config.data.duplicates=drop"
        )

    def _report_near_twins(self, placed: list[leaks.Placed]) -> None:
        found = leaks.near_twins(placed)
        report = self._write(
            "near_twins.csv",
            ("path", "split", "other_path", "other_split", "distance"),
            (
                (a.example.path, a.split, b.example.path, b.split, distance)
                for a, b, distance in found
            ),
        )
        if found:
            more = " or more" if len(found) == leaks.MOST_TWINS else ""
            warn(
                f"images of {self.dir} that look alike are in different splits "
                f"({len(found)}{more} by pairs, listed in {report}), which flatters "
                f"what is measured on the later split; {self._to_join}"
            )

    def _report_shortcuts(self, placed: list[leaks.Placed]) -> None:
        found = leaks.shortcuts(placed)
        self._write(
            "shortcuts.csv",
            ("property", "auroc", "images", "most_real", "most_fake"),
            ((s.name, f"{s.auroc:.4f}", s.images, s.real, s.fake) for s in found),
        )
        for shortcut in found:
            if shortcut.suspicious:
                warn(
                    f"{shortcut.name} alone separates real from fake in {self.dir}: "
                    f"AUROC {shortcut.auroc:.2f} (real mostly {shortcut.real}, fake "
                    f"mostly {shortcut.fake}): a detector may learn this instead of "
                    "the forgery; re-encode or resize the sources alike"
                )

    def _write(self, name: str, header: Sequence[str], rows: Iterable) -> Path:
        """Writes a report unless it is there already, or empty; returns its path."""
        path = entry(self.cache, self.name) / name
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(header)
        number = 0
        for row in rows:
            writer.writerow([_printable(str(value)) for value in row])
            number += 1
        with caches.writing("a report", self.cache, len(text.getvalue())):
            if not number:
                path.unlink(missing_ok=True)
            elif not path.exists() or path.read_text() != text.getvalue():
                path.parent.mkdir(parents=True, exist_ok=True)
                files.write_atomic(path, text.getvalue())
        return path


def _where(image: leaks.Placed) -> str:
    return f"{image.example.path} ({image.split})"


def _printable(name: str) -> str:
    """Replaces bytes of a name that are not UTF-8 by their numbers."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def warn(message: str) -> None:
    """Says what is wrong with a data set that can be used all the same."""
    warnings.warn(message, stacklevel=2)


@dataclasses.dataclass(eq=False, kw_only=True)
class ToyConfig(FacesConfig):
    """The embedded toy.

    Attributes:
      family: 'upsampled', 'blended', or 'both', which alternates them.
      seed: seed of the pictures.
      per_class: images of each class in each split.

    Raises:
      UserError: at construction, if a value is unknown.
    """

    family: str = "both"
    seed: int = 0
    per_class: Mapping[str, int]

    def __post_init__(self) -> None:
        choices = ("both", *toy.FAMILIES)
        if self.family not in choices:
            raise UserError(
                f"expected the toy family to be one of {', '.join(choices)}, found "
                f"{self.family!r}; choose one of them"
            )
        numbers = self.per_class.values()
        unknown = set(self.per_class) - set(SPLITS)
        if unknown or min(numbers, default=0) < 0 or not any(numbers):
            raise UserError(
                f"expected toy examples for {', '.join(SPLITS)} of 0 or more, found "
                f"{dict(self.per_class)}; correct them"
            )
        self.examples = {s: self._split(s, n) for s, n in self.per_class.items() if n}
        self.expected = list(self.examples)
        self.size = sum(map(len, self.examples.values())) * 3 * toy.SIZE**2
        self.title = f"toy-{self.family}"
        self.name = f"{self.title}-{self.fingerprint(SPLITS)}"
        self.description = f"Toy forgeries, {self.family}, seed {self.seed}"

    def _split(self, split: str, number: int) -> list[Example]:
        """Lists `number` real images, then as many fake ones."""
        families = toy.FAMILIES if self.family == "both" else (self.family,)
        real = [f"{split}/real/{i:06d}" for i in range(number)]
        examples = [Example(path, 0, path, "") for path in real]
        for i in range(number):
            family = families[i % len(families)]
            path = f"{split}/fake/{family}/{i:06d}"
            examples.append(Example(path, 1, path, family))
        return examples

    def image(self, split: str, index: int) -> np.ndarray:
        """Makes a picture."""
        example = self.examples[split][index]
        position = index % self.per_class[split]
        number = SPLITS.index(split) * _TOY_RANGE + position
        if example.label == 0:
            return toy.real_image(self.seed, number)
        return toy.fake_image(example.generator, self.seed, number)

    def fingerprint(self, splits: Sequence[str]) -> str:
        """A hash of the toy's parameters and of the numbers of these splits."""
        numbers = sorted((s, len(self.examples.get(s, []))) for s in set(splits))
        return _hash([toy.VERSION, self.family, self.seed, numbers])


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
