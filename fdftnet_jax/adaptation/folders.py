"""The folders that a user names, checked and laid out as one data set.

The pictures stay where they are: the data set is made of links.
"""

import csv
import hashlib
import io
import os
import urllib.parse
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from fdftnet_jax import files
from fdftnet_jax.data import images, kinds, splits
from fdftnet_jax.errors import UserError, counted

# With fewer of a class, a split of 15 % may have none.
_FEWEST = 40
# What spreadsheets put between the cells of a CSV file.
_DELIMITERS = ",;\t"
# Class -> files that are of it.
Corrections = Mapping[str, Sequence[str]]


def check(real: str, fake: str, *, videos: bool) -> None:
    """Raises UserError for two folders that no detector can be made of.

    Args:
      real: of real pictures.
      fake: of forged ones.
      videos: whether faces may be cut out of videos, which give many pictures each.
    """
    for flag, path in (("--real", real), ("--fake", fake)):
        if not os.path.isdir(path):
            raise UserError(f"expected a folder of pictures at {flag}, found no {path}")
        names = splits.walk(Path(path))
        suffixes = [Path(name).suffix.lower() for name in names]
        number = sum(suffix in images.SUFFIXES for suffix in suffixes)
        if videos and any(suffix in kinds.VIDEO_SUFFIXES for suffix in suffixes):
            continue
        if number < _FEWEST:
            raise UserError(
                f"{path} has {counted(number, 'picture')}: expected {_FEWEST} or more, "
                "to train on some and test on others; add pictures"
            )
    if os.path.realpath(real) == os.path.realpath(fake):
        raise UserError(
            f"--real and --fake are the same folder, {real}: give the real pictures "
            "and the forged ones apart"
        )


def both(folder: str) -> dict[str, Path]:
    """The folders of both classes in one folder; raises UserError without them."""
    found = splits.class_folders(folder)
    if set(found) != set(splits.CLASSES):
        raise UserError(
            f"expected {folder} to hold real/ and fake/, found "
            f"{', '.join(found) or 'neither'}; give the folder that holds both"
        )
    return found


def called(folder: str) -> str:
    """A short name of a folder: its own, or of what it lies in if it is named fake."""
    path = Path(os.path.realpath(folder))
    is_class = path.name.lower() in ("real", "fake", "0_real", "1_fake")
    return files.printable((path.parent if is_class else path).name) or "new"


def lay_out(
    directory: Path, classes: Mapping[str, str], corrections: Corrections | None = None
) -> None:
    """Links the folders of the new forgery, and corrections beside them.

    Args:
      directory: of the data set.
      classes: of real and of fake pictures.
      corrections: see `read_corrections`.

    Raises:
      UserError: something else lies there.
    """
    for name, folder in classes.items():
        _link(directory / name, folder)
    _lay_out_corrections(directory, corrections)


def lay_out_old(
    directory: Path, folders: Sequence[str], corrections: Corrections | None = None
) -> None:
    """Links the folders of old forgeries, `real/NAME` and `fake/NAME` for each.

    Args:
      directory: of the data set.
      folders: that hold both classes; of one name, later ones have a number behind it.
      corrections: see `read_corrections`.

    Raises:
      UserError: something else lies there, or a folder lacks a class.
    """
    names: list[str] = []
    for folder in folders:
        name = called(folder)
        number = sum(other.split("~")[0] == name for other in names)
        names.append(f"{name}~{number + 1}" if number else name)
        for label, path in both(folder).items():
            _link(directory / label / names[-1], str(path))
    _lay_out_corrections(directory, corrections)


def _lay_out_corrections(directory: Path, corrections: Corrections | None) -> None:
    wanted = set()
    for name, paths in (corrections or {}).items():
        for path in paths:
            whole = os.path.realpath(path)
            digest = hashlib.sha256(os.fsencode(whole)).hexdigest()[:12]
            link = directory / splits.CORRECTIONS / name
            link /= f"{digest}{Path(whole).suffix}"
            _link(link, whole)
            wanted.add(link)
    for link in (directory / splits.CORRECTIONS).glob("*/*"):
        if link not in wanted:
            raise _another(link, "one of the corrections")


def _link(path: Path, target: str) -> None:
    """Makes a link; raises UserError where another one or a file is there."""
    target = os.path.realpath(target)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not os.path.lexists(path):
        path.symlink_to(target, target_is_directory=os.path.isdir(target))
    elif os.path.realpath(path) != target:
        raise _another(path, target)


def _another(path: Path, target: str) -> UserError:
    return UserError(
        f"{path} is there and leads elsewhere than to {target}: this workdir is of "
        "another adaptation; give another --workdir"
    )


def read_corrections(path: str) -> Corrections:
    """Reads which pictures a person says are real, and which fake.

    Args:
      path: a folder with real/ or fake/ or both, with copies of pictures; or a CSV
        file that `fdftnet predict` has written, with one more column, `label`: real or
        fake where a person knows it, else empty.

    Returns:
      Class -> files.

    Raises:
      UserError: there is none, or a file or a label cannot be used.
    """
    found = _of_folder(path) if os.path.isdir(path) else _of_table(path)
    if not any(found.values()):
        raise UserError(
            f"{path} has no corrections: fill in real or fake in its column 'label', "
            "or give a folder with pictures in real/ and fake/"
        )
    return found


def warn_if_one_sided(corrections: Corrections) -> None:
    """Warns of corrections of one class, whose looks become the sign of that class."""
    given = [name for name, paths in corrections.items() if paths]
    if len(given) == 1:
        [name] = given
        [other] = set(splits.CLASSES) - set(given)
        warnings.warn(
            f"all corrections are {name}: what they have in common besides, such as "
            f"their colours or size, may become the sign of {name}; label {other} "
            "pictures of the same kind, too, as many, also those that the detector "
            "got right",
            stacklevel=2,
        )


def _of_folder(folder: str) -> Corrections:
    found: dict[str, list[str]] = {}
    usable = {*images.SUFFIXES, *kinds.VIDEO_SUFFIXES}
    for name, path in splits.class_folders(folder).items():
        inside = [path / each for each in splits.walk(path)]
        found[name] = [str(p) for p in inside if p.suffix.lower() in usable]
    return found


def _of_table(path: str) -> Corrections:
    labels: dict[str, str] = {}
    for number, row in enumerate(_rows(path), start=2):
        label = (row["label"] or "").strip().lower()
        if not label:
            continue
        where = f"line {number} of {path}"
        if label not in splits.CLASSES:
            raise UserError(
                f"expected the label in {where} to be real, fake or empty, found "
                f"{row['label']!r}; correct it"
            )
        picture = _opened(row["path"])
        if row.get("kind") == "video":
            raise UserError(
                f"{where} labels a video, {picture}: expected pictures; give a folder "
                "with the video in real/ or fake/"
            )
        if not os.path.isfile(picture):
            raise UserError(
                f"{where} names {picture}, which is not there; give the command in "
                "the folder in which `fdftnet predict` was given"
            )
        if labels.setdefault(picture, label) != label:
            raise UserError(f"{path} calls {picture} both real and fake; correct it")
    return {
        name: [file for file, label in labels.items() if label == name]
        for name in splits.CLASSES
    }


def _rows(path: str) -> Iterable[dict[str, str]]:
    try:
        # (Spreadsheets put a mark of three bytes at the beginning.)
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"expected a CSV file or a folder of corrections at {path}, which cannot "
            f"be read ({error}); give what `fdftnet predict --csv` wrote"
        ) from error
    first = text.partition("\n")[0]
    delimiter = max(_DELIMITERS, key=first.count)
    rows = csv.DictReader(io.StringIO(text), delimiter=delimiter)
    missing = {"path", "label"} - set(rows.fieldnames or ())
    if missing:
        raise UserError(
            f"{path} has no column {' and none '.join(sorted(missing))}: take a CSV "
            "file of `fdftnet predict --csv`, and add the column 'label' with real, "
            "fake or nothing in each line"
        )
    return rows


def _opened(path: str) -> str:
    """Undoes `writers.path_text`."""
    if not path.startswith("file:"):
        return path
    address = path.removeprefix("file://")
    return os.fsdecode(urllib.parse.unquote_to_bytes(address))
