"""Writes files so that a kill, a second process or a full disk harms none.

A disk that refuses a write is a `WriteError`, one line for the user: `write_atomic`
raises it, and `writing` makes it of what libraries raise.
"""

import contextlib
import errno
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from fdftnet_jax.errors import UserError

try:
    import fcntl
except ImportError:  # On Windows.
    fcntl = None  # type: ignore[assignment]

# No space, no quota, a read-only file system: errors of writing alone.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
# No permission, which reading may lack too.
_DENIED = (errno.EACCES, errno.EPERM)
_ADVICE = "free space there and give the same command again"
_LOCKED_BYTE = 2**30
# Seconds between two looks at whether a file is still locked.
_LOOK = 0.1

# What identifies a file or a folder, whatever its path.
Identity = tuple[int, int]


class WriteError(UserError):
    """A disk that refuses a write: it is full or read-only, or permission is missing.

    The message says what was not written and where to, why, how much space is free
    there, and what to do.
    """


def identity(path: str | os.PathLike[str]) -> Identity:
    """Device and inode of what lies at a path; raises OSError where nothing does."""
    status = os.stat(path)
    return status.st_dev, status.st_ino


def check_output(
    path: str | os.PathLike[str],
    what: str,
    *,
    replace: bool,
    inputs: Iterable[str | os.PathLike[str]] = (),
    remedy: str = "give another path, or --replace to replace it",
) -> None:
    """Refuses an output that would destroy something.

    Args:
      path: of the file to be written. A pipe or a device is no file.
      what: names the output for the user, such as '--csv'.
      replace: whether the user allows to replace an existing file.
      inputs: files that the command reads; looked at only where the output exists.
      remedy: what the user can do about a file that exists.

    Raises:
      UserError: the file exists and `replace` is off, or it is one of the inputs.
    """
    path = os.fspath(path)
    # Nothing can be at a path that the system does not take: writing says so.
    with contextlib.suppress(ValueError):
        if not os.path.lexists(path):
            return
        if os.path.exists(path) and not os.path.isfile(path):
            return
        if not replace:
            raise UserError(f"{what} {printable(path)} exists; {remedy}")
        check_no_input(path, what, inputs)


def check_folder(
    path: str | os.PathLike[str],
    what: str,
    patterns: Iterable[str],
    *,
    replace: bool = False,
) -> None:
    """Refuses an output folder that holds something else than earlier results.

    Args:
      path: of the folder, which need not exist.
      what: names the output for the user, such as '--workdir'.
      patterns: of files, one of which is in each folder of earlier results.
      replace: whether the user allows other files beside the results.

    Raises:
      UserError: no pattern matches, there is another file, and `replace` is off; or
        it is no folder.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise UserError(
            f"{what} {printable(str(path))} is no folder; give another path"
        )
    if replace or any(True for pattern in patterns for _ in path.glob(pattern)):
        return
    for other in path.rglob("*"):
        if other.is_file() and not other.name.startswith("."):
            raise UserError(
                f"{what} {printable(str(path))} holds files that this command did not "
                f"make, such as {printable(other.name)}; give another folder, or "
                "--replace to write beside them, over those of the same names"
            )


def check_no_input(
    path: str | os.PathLike[str],
    what: str,
    inputs: Iterable[str | os.PathLike[str]],
) -> None:
    """Raises UserError where a file or folder is one of the inputs of the command."""
    if not os.path.exists(path):
        return
    output = identity(path)
    for source in inputs:
        # What cannot be read is reported when it is its turn.
        with contextlib.suppress(OSError, ValueError):
            if identity(source) == output:
                raise UserError(
                    f"{what} {printable(os.fspath(path))} is also an input "
                    f"({printable(os.fspath(source))}); give another path"
                )


def as_utf8(name: str) -> str:
    r"""Writes each byte of a name that is not UTF-8 as \xNN."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def printable(path: str) -> str:
    r"""Writes a path on one line, in characters that every terminal takes.

    Bytes that are no UTF-8 and characters that cannot be printed, such as line breaks,
    are written as \xNN and the like; so that no two paths look the same, a backslash
    is \\.
    """
    text = as_utf8(path.replace("\\", "\\\\"))
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in text
    )


def publish(
    temporary: str | os.PathLike[str], path: str | os.PathLike[str], *, replace: bool
) -> None:
    """Gives a complete file its name.

    Raises:
      FileExistsError: something has that name and `replace` is off; also where it
        appeared a moment ago. The file keeps its temporary name.
    """
    if not replace:
        try:
            # Unlike a rename, a link never replaces.
            os.link(temporary, path)
        except FileExistsError:
            raise
        except OSError:
            # A file system without hard links.
            if os.path.lexists(path):
                raise FileExistsError(
                    errno.EEXIST, os.strerror(errno.EEXIST), os.fspath(path)
                ) from None
        else:
            os.unlink(temporary)
            return
    os.replace(temporary, path)


def write_atomic(
    path: str | os.PathLike[str], content: str | bytes, *, replace: bool = True
) -> None:
    """Writes a file atomically: a crash leaves the whole new or the old content.

    Args:
      path: of the file.
      content: of the file; text is written in UTF-8.
      replace: whether an existing file may be replaced.

    Raises:
      WriteError: the disk refuses.
      OSError: it cannot be written for another reason; FileExistsError where it exists
        and may not be replaced.
    """
    path = Path(path)
    # The process's number keeps two writers apart.
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with writing(path.name, path.parent):
        try:
            data = content.encode() if isinstance(content, str) else content
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            publish(temporary, path, replace=replace)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise


def hold(file: IO[Any], *, blocking: bool) -> None:
    """Locks an open file until it is closed, or this process ends.

    Raises:
      BlockingIOError: where another process holds it and `blocking` is off.
    """
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if blocking else fcntl.LOCK_NB))
        return
    import msvcrt

    locking: Any = msvcrt
    place = os.lseek(file.fileno(), 0, os.SEEK_CUR)
    # One byte far behind what others may read meanwhile.
    os.lseek(file.fileno(), _LOCKED_BYTE, os.SEEK_SET)
    try:
        while True:
            with contextlib.suppress(OSError):
                locking.locking(file.fileno(), locking.LK_NBLCK, 1)
                return
            if not blocking:
                raise BlockingIOError
            time.sleep(_LOOK)
    finally:
        os.lseek(file.fileno(), place, os.SEEK_SET)


@contextlib.contextmanager
def lock(path: str | os.PathLike[str], *, blocking: bool) -> Iterator[None]:
    """Holds a lock that the operating system drops when this process ends or dies.

    Args:
      path: the lock's file, made where it is missing and left in place; while the lock
        is held, it contains the number of the process that does.
      blocking: whether to wait for another holder.

    Raises:
      BlockingIOError: where another process holds it and `blocking` is off; its
        message is that process's number.
    """
    with open(path, "a+", encoding="utf-8") as file:
        try:
            hold(file, blocking=blocking)
        except BlockingIOError:
            file.seek(0)
            raise BlockingIOError(file.read().strip() or "unknown") from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


@contextlib.contextmanager
def writing(
    what: str, directory: str | os.PathLike[str], *, advice: str = _ADVICE
) -> Iterator[None]:
    """Turns the refusal of a disk into one line for the user.

    Of several that are nested, the outermost says it: it knows best what to do.

    Args:
      what: is being written.
      directory: where to.
      advice: what to do next.

    Raises:
      WriteError: the disk refuses. Other exceptions pass.
    """
    try:
        yield
    # Not every library below raises an OSError that keeps its number.
    except Exception as error:
        reason = _refusal(error)
        if reason is None:
            raise
        raise WriteError(
            f"cannot write {what} to {printable(os.fspath(directory))}: {reason}, "
            f"{free_bytes(directory) / 1e6:.1f} MB are free there; {advice}"
        ) from error


def full_disk(error: OSError) -> WriteError | None:
    """Makes the error of a full disk outside `writing`; None of other errors."""
    if error.errno not in _FULL:
        return None
    place = f" to {printable(os.fspath(error.filename))}" if error.filename else ""
    reason = os.strerror(error.errno)
    return WriteError(f"cannot write{place}: {reason}; {_ADVICE}")


def free_bytes(directory: str | os.PathLike[str]) -> int:
    """Free space of the disk that holds a folder, or will hold it, in bytes."""
    path = Path(directory).absolute()
    while not os.path.exists(path):
        path = path.parent
    return shutil.disk_usage(path).free


def _refusal(error: Exception) -> str | None:
    """Why a disk refuses, in the system's words; None for any other exception."""
    if isinstance(error, OSError) and error.errno in _FULL + _DENIED:
        return os.strerror(error.errno)
    numbers = _FULL + _DENIED if isinstance(error, WriteError) else _FULL
    reasons = [os.strerror(number) for number in numbers]
    return next((reason for reason in reasons if reason in str(error)), None)
