"""Files that no killed process, second process, full disk or output harms."""

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from fdftnet_jax.errors import UserError

# No room, no quota, a file system that refuses to be written to.
_CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


# What identifies a file or a folder, whatever its path.
Identity = tuple[int, int]


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
) -> None:
    """Refuses an output that would destroy something.

    Args:
      path: of the file to be written. A pipe or a device is no file.
      what: names the output for the user, such as '--csv'.
      replace: whether the user allows to replace an existing file.
      inputs: files that the command reads; looked at only where the output exists.

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
            raise UserError(
                f"{what} {printable(path)} exists; give another path, or --replace to "
                "replace it"
            )
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
    for given in inputs:
        # What cannot be read is reported when it is its turn.
        with contextlib.suppress(OSError, ValueError):
            if identity(given) == output:
                raise UserError(
                    f"{what} {printable(os.fspath(path))} is also an input "
                    f"({printable(os.fspath(given))}); give another path"
                )


def printable(path: str) -> str:
    r"""A path on one line, in characters that every terminal takes.

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
      OSError: it cannot be written; FileExistsError where it exists and may not be
        replaced.
    """
    path = Path(path)
    # The process's number keeps two writers apart.
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
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
            fcntl.flock(file, fcntl.LOCK_EX | (0 if blocking else fcntl.LOCK_NB))
        except BlockingIOError:
            file.seek(0)
            raise BlockingIOError(file.read().strip() or "unknown") from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


@contextlib.contextmanager
def writing(
    what: str, directory: str | os.PathLike[str], needed: int, advice: str
) -> Iterator[None]:
    """Turns a full or read-only disk into one line for the user.

    Args:
      what: is being written.
      directory: where to.
      needed: roughly how many bytes it takes.
      advice: what to do next.

    Raises:
      UserError: what could not be written, how much it needs and how much is free.
    """
    try:
        yield
    # Not every library below raises an OSError that keeps its number.
    except Exception as error:
        if not _is_refusal(error):
            raise
        raise UserError(
            f"cannot write {what} to {directory}: about {needed / 1e6:.1f} MB are "
            f"needed, {free_bytes(directory) / 1e6:.1f} MB are free "
            f"({_reason(error)}); {advice}"
        ) from error


def free_bytes(directory: str | os.PathLike[str]) -> int:
    """Free space of the disk that holds a folder, or will hold it, in bytes."""
    path = Path(directory).absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def _is_refusal(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno in _CANNOT_WRITE:
        return True
    return any(os.strerror(number) in str(error) for number in _CANNOT_WRITE[:3])


def _reason(error: BaseException) -> str:
    known = [os.strerror(number) for number in _CANNOT_WRITE]
    return next((text for text in known if text in str(error)), type(error).__name__)
