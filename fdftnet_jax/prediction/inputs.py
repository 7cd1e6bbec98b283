"""From the arguments of a command to the files it looks at, in order.

An argument is a file, a folder, a pattern of the shell, or '-' for a list on standard
input. A folder stands for the images and videos in it and below it, in the order of the
bytes of their names; a file that is named itself is tried whatever its suffix. What
cannot be looked at is an item with a reason, so that nothing is lost silently.
"""

import dataclasses
import glob
import os
import stat
from collections.abc import Collection, Iterable, Iterator
from typing import BinaryIO, NamedTuple

from fdftnet_jax.data import images, videos

IMAGE, VIDEO, FOLDER = "image", "video", "folder"
STDIN = "-"
# What identifies a folder, whatever its path.
Identity = tuple[int, int]


class Item(NamedTuple):
    """A file to be looked at, or what was found in its place."""

    path: str  # Bytes that are no UTF-8 are surrogates, as Python has them.
    kind: str  # IMAGE or VIDEO by its suffix; FOLDER or '' with a reason.
    reason: str = ""  # Why there is nothing to look at; '' for a file.


@dataclasses.dataclass
class Skipped:
    """What was left out of folders, in numbers.

    Attributes:
      other: files that are, by their suffix, neither images nor videos.
      hidden: files and folders whose names start with a dot.
      visited: links to folders that were visited already.
      own: folders that the command itself writes to.
    """

    other: int = 0
    hidden: int = 0
    visited: int = 0
    own: int = 0


def expand(
    arguments: Iterable[str],
    listed: Iterable[str] = (),
    *,
    own: Collection[Identity] = (),
    skipped: Skipped | None = None,
) -> Iterator[Item]:
    """Yields what the arguments stand for, at least one item for each.

    The same files give the same items in the same order. Of an argument, each folder is
    visited once, by the first path that leads to it: links may go round in circles.

    Args:
      arguments: paths, patterns such as 'a/**/*.jpg', and '-'.
      listed: the paths that '-' stands for, see `read_list`; they are no patterns.
      own: folders below others that are left out (see `identity`).
      skipped: counts what is left out.
    """
    skipped = Skipped() if skipped is None else skipped
    for argument in arguments:
        if argument == STDIN:
            found = False
            for path in listed:
                found = True
                yield from _path(path, own, skipped)
            if not found:
                yield Item(STDIN, "", "no paths on standard input")
        elif glob.escape(argument) == argument or os.path.lexists(argument):
            yield from _path(argument, own, skipped)
        else:
            # (An iterator of it would hold as many names, in no order.)
            paths = sorted(glob.glob(argument, recursive=True), key=os.fsencode)
            if not paths:
                yield Item(argument, "", "the pattern matches nothing")
            for path in paths:
                yield from _path(path, own, skipped)


def read_list(stream: BinaryIO) -> list[str]:
    """The paths on a stream: one a line, or between NULs as `find -print0` has them."""
    data = stream.read()
    separator = b"\0" if b"\0" in data else b"\n"
    return [os.fsdecode(path) for path in data.split(separator) if path]


def identity(path: str | os.PathLike[str]) -> Identity:
    """What identifies the folder at a path; raises OSError where there is none."""
    status = os.stat(path)
    return status.st_dev, status.st_ino


def printable(path: str) -> str:
    r"""A path on one line, in characters that every terminal and parser takes.

    Bytes that are no UTF-8 and characters that cannot be printed, such as line breaks,
    are written as \xNN and the like; so that no two paths look the same, a backslash
    is \\.
    """
    text = os.fsencode(path.replace("\\", "\\\\")).decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in text
    )


def _path(path: str, own: Collection[Identity], skipped: Skipped) -> Iterator[Item]:
    """A path that the user named."""
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        yield Item(path, "", error.strerror or str(error))
    except ValueError as error:
        yield Item(path, "", str(error))
    else:
        if not stat.S_ISDIR(mode):
            yield Item(path, _kind(path) or IMAGE)
            return
        found = False
        for item in _below(path, own, skipped):
            found = True
            yield item
        if not found:
            yield Item(path, FOLDER, "no images or videos in it")


def _kind(path: str) -> str:
    """IMAGE or VIDEO by a path's suffix, '' for neither."""
    suffix = os.path.splitext(path)[1].lower()
    if suffix in videos.SUFFIXES:
        return VIDEO
    return IMAGE if suffix in images.SUFFIXES else ""


def _below(root: str, own: Collection[Identity], skipped: Skipped) -> Iterator[Item]:
    visited: set[Identity] = set()
    # The next one is the last: folders may lie deeper than Python's stack.
    waiting = [(root, True)]
    while waiting:
        path, is_folder = waiting.pop()
        if not is_folder:
            if kind := _kind(path):
                yield Item(path, kind)
            else:
                skipped.other += 1
            continue
        try:
            number = identity(path)
            if number in visited:
                skipped.visited += 1
                continue
            if number in own and path != root:
                skipped.own += 1
                continue
            visited.add(number)
            with os.scandir(path) as scanned:
                entries = sorted(scanned, key=lambda entry: os.fsencode(entry.name))
        except OSError as error:
            yield Item(path, FOLDER, error.strerror or str(error))
            continue
        for entry in reversed(entries):
            if entry.name.startswith("."):
                skipped.hidden += 1
            else:
                link = entry.is_symlink()
                folder = os.path.isdir(entry) if link else entry.is_dir()
                waiting.append((entry.path, folder))
