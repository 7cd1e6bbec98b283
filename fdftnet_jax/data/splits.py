"""Which image goes where: classes, groups, generators and splits of a folder.

Splits are drawn by group (a person, a video), never by image, and never by class: the
real and the fake images of a group always land in the same split.
"""

import contextlib
import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from fdftnet_jax.data.images import SUFFIXES
from fdftnet_jax.errors import UserError

SPLITS = ("train", "validation", "test", "finetune")
# The label of a class is its position.
CLASSES = ("real", "fake")
# The folder, beside those of the classes, of pictures that a detector got wrong: it has
# real/ and fake/ too, and all of it is trained on.
CORRECTIONS = "corrections"
# Names that folders of splits and classes have, in any case.
_SPLIT_NAMES = {
    **{split: split for split in SPLITS},
    **{"training": "train", "val": "validation", "valid": "validation"},
    **{"testing": "test", "fine-tune": "finetune", "fine_tune": "finetune"},
}
# Digits of a digest that name a group of one picture.
_GROUP = 16
_CLASS_NAMES = {"real": "real", "fake": "fake", "0_real": "real", "1_fake": "fake"}


def held_out(text: str) -> tuple[str, ...]:
    """Reads `config.data.held_out`: generators whose fakes are not trained on.

    Args:
      text: their names, with commas between them.
    """
    return tuple(name for part in text.split(",") if (name := part.strip()))


class File(NamedTuple):
    """A file found by `list_files`."""

    path: str  # Posix path relative to the folder.
    # The split whose folder it lies in; '' in a folder without splits. (Corrections
    # are of 'train'.)
    split: str
    label: int  # 0 real, 1 fake.
    inner: str  # Posix path below the class folder.

    @property
    def suffix(self) -> str:
        """The suffix in lower case, a key of `images.SUFFIXES` for an image."""
        return PurePosixPath(self.path).suffix.lower()

    @property
    def is_correction(self) -> bool:
        """Whether it lies in the folder of corrections."""
        return is_correction(self.path)


class Example(NamedTuple):
    """An image without its pixels: path, label, group and generator."""

    path: str  # Posix path relative to the folder.
    label: int  # 0 real, 1 fake.
    group: str  # What must not be split apart.
    generator: str  # What made a fake; '' for real images.


def is_correction(path: str) -> bool:
    """Whether a file lies in the folder of corrections.

    Args:
      path: posix path relative to the folder of the data.
    """
    return path.startswith(f"{CORRECTIONS}/")


def resolve(directory: str | os.PathLike) -> str:
    """The one absolute path of a folder, whatever links and `~` it was named by."""
    return os.path.realpath(os.path.expanduser(directory))


def list_files(directory: str | os.PathLike) -> list[File]:
    """Lists the files in the classes of a folder, sorted by path.

    The folder holds `{real,fake}/**` or `{train,validation,test,finetune}/{real,fake}/
    **`; of these names, other usual forms are understood, such as `Real`, `0_real`,
    `val`, `valid` and `training`. `corrections/{real,fake}/**` beside either is of the
    split 'train'. Hidden files and folders are ignored; links are followed.

    Raises:
      UserError: if there is no such folder, if its layout is neither of the two, if a
        folder in it cannot be read or links to one above it, or if a class of a folder
        without splits has no image. (A split may lack a class, or both, as long as it
        is not used.)
    """
    root = Path(directory)
    with readable(root):
        return _list_files(root)


@contextlib.contextmanager
def readable(root: Path) -> Iterator[None]:
    """Turns a folder that cannot be read, in or at `root`, into a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"expected a readable folder at {error.filename or root}, found "
            f"{error.strerror or error}; change its permissions, or move it elsewhere"
        ) from error


def _list_files(root: Path) -> list[File]:
    if not root.is_dir():
        found = "a file" if root.exists() else "nothing"
        raise UserError(
            f"expected a folder of images at {os.fspath(root)!r}, found {found}; "
            "give the path of a folder that holds real/ and fake/"
        )
    present = _folders(root)
    given, classes = _named(root, present, _SPLIT_NAMES), _classes(root, present)
    if given and classes:
        raise UserError(
            f"expected {root} to hold either real/ and fake/ or splits, found both "
            f"({', '.join(present)}); move one of them elsewhere"
        )
    if not given and not classes:
        raise UserError(
            f"expected {root} to hold real/ and fake/ (or {'/, '.join(SPLITS)}/ with "
            f"real/ and fake/ in each), found {_enumerate(present)}; sort the images "
            "into these folders"
        )
    files: list[File] = []
    folders = [*(given.items() or [("", "")])]
    if CORRECTIONS in present:
        folders.append(("train", CORRECTIONS))
    for split, folder in folders:
        names = _classes(root / folder, _folders(root / folder))
        for label, name in enumerate(CLASSES):
            own: list[File] = []
            below = root / folder / names.get(name, name)
            if name in names:
                prefix = PurePosixPath(folder, names[name])
                above = _identity(root), _identity(root / folder)
                inner = walk(below, above)
                own = [File(str(prefix / path), split, label, path) for path in inner]
            if not split and not any(file.suffix in SUFFIXES for file in own):
                raise UserError(
                    f"expected images in {below}, found "
                    f"{_count(own) if name in names else 'no such folder'}; put the "
                    f"{name} images there"
                )
            files += own
    if not files:
        raise UserError(
            f"expected images in {root}, found {_enumerate(list(given.values()))} "
            "without any; put the images into real/ and fake/ in each"
        )
    return sorted(files)


def ignored(directory: str | os.PathLike) -> dict[str, int]:
    """Counts the images of a folder that `list_files` passes over, by where they lie.

    Args:
      directory: one that `list_files` accepts.

    Returns:
      Posix path below the folder ('.' for itself) -> number of images in it; of
      folders of other names, also of those below.
    """
    root = Path(directory)
    present = _folders(root)
    given = _named(root, present, _SPLIT_NAMES)
    corrections = [CORRECTIONS] if CORRECTIONS in present else []
    found: dict[str, int] = {}
    for folder in ["", *given.values(), *corrections]:
        below = _folders(root / folder)
        names = _classes(root / folder, below)
        outer = [] if folder else [*given.values(), *corrections]
        known = {*names.values(), *outer}
        with os.scandir(root / folder) as entries:
            loose = [entry.name for entry in entries if entry.is_file()]
        found[str(PurePosixPath(folder))] = _images(loose)
        for other in sorted(set(below) - known):
            walked = os.walk(root / folder / other)
            found[str(PurePosixPath(folder, other))] = sum(
                _images(names) for _, _, names in walked
            )
    return {folder: number for folder, number in found.items() if number}


def _folders(root: Path) -> list[str]:
    """The names of the folders in a folder, without hidden ones, in order."""
    names = (entry.name for entry in root.iterdir() if entry.is_dir())
    return sorted(name for name in names if not name.startswith("."))


def _classes(root: Path, present: Sequence[str]) -> dict[str, str]:
    """Class -> the name of its folder."""
    return _named(root, present, _CLASS_NAMES)


def class_folders(directory: str | os.PathLike[str]) -> dict[str, Path]:
    """The folders of the classes that lie directly in a folder, by class.

    Raises:
      UserError: the folder cannot be read, or has two for one class.
    """
    root = Path(directory)
    if not root.is_dir():
        raise UserError(f"expected a folder with real/ and fake/, found no {root}")
    with readable(root):
        names = _classes(root, _folders(root))
    return {name: root / folder for name, folder in names.items()}


def _named(
    root: Path, present: Sequence[str], usual: Mapping[str, str]
) -> dict[str, str]:
    """What folders are for -> their names; raises UserError where two are for one."""
    found: dict[str, str] = {}
    for name in present:
        meant = usual.get(name.lower())
        if meant in found:
            raise UserError(
                f"expected one folder of {meant} images in {root}, found "
                f"{found[meant]}/ and {name}/; put the images of both into one"
            )
        if meant is not None:
            found[meant] = name
    return {meant: found[meant] for meant in usual.values() if meant in found}


def _images(names: Iterable[str]) -> int:
    """How many of these files are images, by their suffixes."""
    return sum(PurePosixPath(name).suffix.lower() in SUFFIXES for name in names)


def _count(files: list[File]) -> str:
    if not files:
        return "none"
    suffixes = sorted({file.suffix or "no suffix" for file in files})
    shown = ", ".join(suffixes[:5]) + (", ..." if len(suffixes) > 5 else "")
    return f"{len(files)} files of other kinds ({shown})"


def _identity(folder: str | os.PathLike) -> tuple[int, int]:
    """Device and inode of a folder, the same for every link to it."""
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def walk(directory: Path, above: tuple[tuple[int, int], ...] = ()) -> list[str]:
    """Lists the files below a folder, as posix paths relative to it.

    Hidden files and folders are ignored; links are followed.

    Args:
      directory: the folder.
      above: the folders that it lies in, by `_identity`: a link to one of them would
        be followed for ever.

    Raises:
      UserError: if a folder links to one above it.
    """
    paths: list[str] = []

    def visit(folder: str, above: tuple[tuple[int, int], ...]) -> None:
        identity = _identity(directory / folder)
        if identity in above:
            raise UserError(
                f"expected folders that end somewhere, found {directory / folder}, "
                "which links to a folder that it lies in; remove that link"
            )
        with os.scandir(directory / folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                path = f"{folder}{entry.name}"
                if _leads_to_folder(entry):
                    visit(f"{path}/", (*above, identity))
                else:
                    paths.append(path)

    visit("", above)
    return paths


def _leads_to_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder or a link to one; False for a link to nowhere."""
    # `is_dir` needs no system call, and raises for a link that leads to itself.
    return os.path.isdir(entry) if entry.is_symlink() else entry.is_dir()


def _enumerate(names: list[str]) -> str:
    shown = [f"{name}/" for name in names[:5]]
    more = [f"{len(names) - 5} more"] if len(names) > 5 else []
    return ", ".join(shown + more) or "no folder"


def group_of(inner: str, group_by: str, digest: str = "") -> str:
    """Names the group of an image: what must not be split apart.

    Args:
      inner: posix path below the class folder, so that the class is no part of it.
      group_by: 'file' (the path without suffix), 'picture' (its pixels, so that a
        picture is in the same split wherever it lies and whatever it is called),
        'folder' (the folder of the file), or a regex searched in the path, whose first
        group (or whole match) is the name.
      digest: of the pixels, see `leaks.digest`.

    Raises:
      UserError: if the rule does not fit the path.
    """
    path = PurePosixPath(inner)
    if group_by == "file":
        return str(path.with_suffix(""))
    if group_by == "picture":
        return digest[:_GROUP]
    if group_by == "folder":
        if len(path.parts) == 1:
            raise UserError(
                "expected group_by=folder to find every image in a folder below its "
                f"class folder, found {inner!r} directly in it; move it into the "
                "folder of its group or choose another group_by"
            )
        return str(path.parent)
    return search("group_by", group_by, inner)


def generator_of(inner: str, generator_by: str, label: int) -> str:
    """Names the generator of a fake image; '' for a real one.

    Args:
      inner: posix path below the class folder.
      generator_by: 'folder' (the first folder below `fake/`, 'unknown' for an image
        directly in it), or a regex as in `group_of`.
      label: 0 real, 1 fake.

    Raises:
      UserError: if the rule does not fit the path.
    """
    if label == 0:
        return ""
    if generator_by == "folder":
        parts = PurePosixPath(inner).parts
        return parts[0] if len(parts) > 1 else "unknown"
    return search("generator_by", generator_by, inner)


def search(field: str, pattern: str, inner: str) -> str:
    """Returns the first group of a regex found in a path, or else the whole match.

    Raises:
      UserError: if it is no regex, or finds nothing; the message names `field`.
    """
    try:
        match = re.search(pattern, inner)
    except re.error as error:
        raise UserError(
            f"expected {field} to be a name that it knows or a regular expression, "
            f"found {pattern!r} ({error}); correct the expression"
        ) from error
    name = match and (match.group(1) if match.re.groups else match.group())
    if not name:
        raise UserError(
            f"expected {field}={pattern!r} to name something in every path, found no "
            f"match in {inner!r}; widen the expression or move the file"
        )
    return name


def check_fractions(fractions: Mapping[str, float]) -> None:
    """Raises UserError unless these are shares of `SPLITS` that sum to 1."""
    valid = set(fractions) <= set(SPLITS) and all(f >= 0 for f in fractions.values())
    if not valid or abs(sum(fractions.values()) - 1) > 1e-6:
        raise UserError(
            f"expected fractions of {', '.join(SPLITS)} that are not negative and sum "
            f"to 1, found {dict(fractions)}; correct them"
        )


def split_of(group: str, fractions: Mapping[str, float]) -> str:
    """Draws the split of a group by a hash of its name alone.

    The draw is the same on every machine and does not depend on what else is in the
    folder: new images never move old ones to another split.

    Args:
      group: name of the group.
      fractions: share of the groups in each of `SPLITS`; 0 makes no such split.
    """
    digest = hashlib.sha256(group.encode()).digest()
    position = int.from_bytes(digest[:8], "big") / 2**64
    made = [split for split in SPLITS if fractions.get(split, 0) > 0]
    for split in made:
        position -= fractions[split]
        if position < 0:
            return split
    return made[-1]  # The fractions sum to a hair less than 1.


def assign(
    files: Sequence[File],
    *,
    group_by: str,
    generator_by: str,
    fractions: Mapping[str, float],
    digests: Mapping[str, str],
) -> dict[str, list[Example]]:
    """Sorts the files of a folder into splits.

    Args:
      files: of `list_files`, all with names of the file system's encoding.
      group_by: see `group_of`.
      generator_by: see `generator_of`.
      fractions: see `split_of`; unused for a folder that is already split.
      digests: by path, of the pixels, for groups by them.

    Returns:
      The examples of every split that got any, in the order of `SPLITS`.

    Raises:
      UserError: if a rule does not fit a path, or the fractions are no shares.
    """
    check_fractions(fractions)
    splits: dict[str, list[Example]] = {split: [] for split in SPLITS}
    for file in files:
        path, given, label, inner = file
        # What rules say of other paths need not fit these.
        by, made_by = group_by, generator_by
        if file.is_correction:
            by, made_by = "picture", "folder"
        group = group_of(inner, by, digests.get(path, ""))
        generator = generator_of(inner, made_by, label)
        split = given or split_of(group, fractions)
        splits[split].append(Example(path, label, group, generator))
    return {split: examples for split, examples in splits.items() if examples}
