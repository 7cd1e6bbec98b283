"""Lists the files that the arguments of a command stand for, in order.

An argument is a file, a folder, a pattern of the shell, or '-' for a list on standard
input. A folder stands for the images and videos in it and below it, in the order of the
bytes of their names; a file that is named itself is tried whatever its suffix. What
cannot be looked at is an item with a reason, so that nothing is lost silently.
"""

import codecs
import dataclasses
import glob
import os
import stat
from collections.abc import Collection, Iterable, Iterator
from typing import BinaryIO, NamedTuple

from fdftnet_jax.data import kinds
from fdftnet_jax.errors import UserError
from fdftnet_jax.files import Identity, identity, printable

IMAGE, VIDEO, FOLDER = kinds.IMAGE, kinds.VIDEO, "folder"
STDIN = "-"
_BYTE_ORDER_MARKS = {codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


class Item(NamedTuple):
    """A file to be scored, or a path where there is none, and why."""

    path: str  # Bytes that are no UTF-8 are surrogates, as Python has them.
    kind: str  # IMAGE or VIDEO, see `kinds`; FOLDER or '' with a reason.
    reason: str = ""  # Why there is nothing to score; '' for a file.


@dataclasses.dataclass
class Skipped:
    """Counts of what was left out of folders.

    Attributes:
      other: files that are neither images nor videos (see `kinds`).
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
      own: folders below others that are left out (see `files.identity`).
      skipped: counts what is left out.
    """
    skipped = Skipped() if skipped is None else skipped
    for argument in arguments:
        if argument == STDIN:
            items = (item for path in listed for item in _path(path, own, skipped))
            yield from _or_else(items, Item(STDIN, "", "no paths on standard input"))
        elif glob.escape(argument) == argument or os.path.lexists(argument):
            yield from _path(argument, own, skipped)
        else:
            # (An iterator of it would hold as many names, in no order.)
            paths = sorted(glob.glob(argument, recursive=True), key=os.fsencode)
            items = (item for path in paths for item in _path(path, own, skipped))
            yield from _or_else(
                items, Item(argument, "", "the pattern matches nothing")
            )


def read_list(
    stream: BinaryIO, *, null: bool = False, recursive: bool = False
) -> list[str]:
    """Reads a list of paths; before any of them is opened.

    The list is text, a path a line: UTF-8 with or without a byte order mark, or UTF-16
    with one; lines end with LF or CRLF, and empty ones are left out.

    Args:
      stream: of the list.
      null: the list is no text but the names' own bytes, each followed by a NUL, as
        `find -print0` writes it: for names that are not UTF-8 or have line breaks.
      recursive: whether a path may name a folder, for all that is below it.

    Raises:
      UserError: the list is not of that kind, or a path of it names a folder and
        `recursive` is off.
    """
    data = stream.read()
    paths = [os.fsdecode(path) for path in data.split(b"\0")] if null else _lines(data)
    for number, path in enumerate(paths, 1):
        if not recursive and path and os.path.isdir(path):
            raise UserError(
                f"expected a file on line {number} of the list, found the folder "
                f"{printable(path)}; list files, or give --recursive for all below it"
            )
    return [path for path in paths if path]


def _lines(data: bytes) -> list[str]:
    encoding = _BYTE_ORDER_MARKS.get(data[:2], "utf-8-sig")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UserError(
            f"expected the list on standard input to be text in UTF-8, or UTF-16 with "
            f"a byte order mark, found other bytes on line {line}; save it as UTF-8, "
            "or give names of other bytes with `find ... -print0` and --null"
        ) from error
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise UserError(
            f"expected the list on standard input to be text, found a NUL on line "
            f"{line}; for a list that separates names by NULs give --null, a list in "
            "UTF-16 needs a byte order mark"
        )
    return [line.removesuffix("\r") for line in text.split("\n")]


def _path(path: str, own: Collection[Identity], skipped: Skipped) -> Iterator[Item]:
    """Yields what a path that the user named stands for."""
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        yield Item(path, "", error.strerror or str(error))
    except ValueError as error:
        yield Item(path, "", str(error))
    else:
        if not stat.S_ISDIR(mode):
            # What it is, if it is anything, is found out when it is read.
            yield Item(path, kinds.kind_of(path) or IMAGE)
            return
        nothing = Item(path, FOLDER, "no images or videos in it")
        yield from _or_else(_below(path, own, skipped), nothing)


def _or_else(items: Iterator[Item], nothing: Item) -> Iterator[Item]:
    """Yields the items; where there are none, the one that says so."""
    yield next(items, nothing)
    yield from items


def _below(root: str, own: Collection[Identity], skipped: Skipped) -> Iterator[Item]:
    """Yields the images and videos below a folder, in order."""
    visited: set[Identity] = set()
    # The next one is the last: folders may lie deeper than Python's stack.
    waiting = [(root, True)]
    while waiting:
        path, is_folder = waiting.pop()
        if not is_folder:
            if kind := kinds.kind_of(path):
                yield Item(path, kind)
            else:
                skipped.other += 1
            continue
        try:
            folder = identity(path)
            if folder in visited:
                skipped.visited += 1
                continue
            if folder in own and path != root:
                skipped.own += 1
                continue
            visited.add(folder)
            with os.scandir(path) as scanned:
                entries = sorted(scanned, key=lambda entry: os.fsencode(entry.name))
        except OSError as error:
            yield Item(path, FOLDER, error.strerror or str(error))
            continue
        for entry in reversed(entries):
            if entry.name.startswith("."):
                skipped.hidden += 1
            else:
                # (Of a link that cannot be followed, `entry.is_dir` raises.)
                link = entry.is_symlink()
                is_folder = os.path.isdir(entry) if link else entry.is_dir()
                waiting.append((entry.path, is_folder))
