"""Files that a killed process, a second process and a full disk leave whole."""

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from fdftnet_jax.errors import UserError

# No room, no quota, a file system that refuses to be written to.
_CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


def write_atomic(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Writes a file that is there whole or, after a crash, as it was before."""
    path = Path(path)
    # The process's number keeps two writers apart.
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        data = content.encode() if isinstance(content, str) else content
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
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
