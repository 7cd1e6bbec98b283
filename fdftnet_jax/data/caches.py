"""The folder where prepared data is kept, and what can go wrong with writing to it."""

import contextlib
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import numpy as np
from tqdm import tqdm

from fdftnet_jax import files
from fdftnet_jax.data import images
from fdftnet_jax.errors import UserError


def cache_dir(configured: str) -> Path:
    """The folder of `config.data.cache_dir`; where it is empty, the user's cache."""
    if configured:
        return Path(configured).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "fdftnet_jax"


def entry(cache: Path, name: str) -> Path:
    """The folder of a data set in the cache: prepared records and reports."""
    return cache / "forgery_faces" / name


@contextlib.contextmanager
def writing(what: str, cache: Path) -> Iterator[None]:
    """Turns everything that can go wrong with writing to the cache into one line.

    Args:
      what: is being written.
      cache: where to.

    Raises:
      UserError: what could not be written and why.
    """
    advice = "free space there or choose another config.data.cache_dir"
    try:
        with files.writing(what, cache, advice=advice):
            yield
    except OSError as error:
        raise UserError(
            f"expected to write {what} to {cache}, found: {error}; {advice}"
        ) from error


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Holds a lock of the cache; waits for a process that holds it, and says so."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(files.lock(path, blocking=False))
        except BlockingIOError as holder:
            tqdm.write(
                f"waiting for process {holder}, which prepares the same images",
                file=sys.stderr,
            )
            stack.enter_context(files.lock(path, blocking=True))
        yield


class Pictures:
    """The PNGs of pictures that a scan decoded, for the records that are written next.

    They wait in a file of the cache that has no name: the system removes it when this
    process ends, however it does. Where the disk has not room for them and for the
    records, they are given up, and whoever asks for one has to decode it again.
    """

    def __init__(self, cache: Path):
        """Keeps pictures in that folder, which has to exist when the first is kept."""
        self._cache = cache
        self._lock = threading.Lock()
        self._file: IO[bytes] | None = None
        self._places: dict[str, tuple[int, int]] = {}
        self._size = 0
        self._given_up = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._give_up()

    def keep(self, digest: str, pixels: np.ndarray) -> None:
        """Encodes a picture [h, w, 3] uint8 and keeps it; for any thread."""
        if self._given_up or digest in self._places:
            return
        png = images.encode_png(pixels)
        with self._lock:
            if self._given_up:
                return
            try:
                self._append(digest, png)
            except OSError:
                self._give_up()

    def get(self, digest: str) -> bytes | None:
        """The PNG of the picture with that digest, None where it was not kept."""
        if self._file is None or digest not in self._places:
            return None
        start, size = self._places[digest]
        png = os.pread(self._file.fileno(), size, start)
        return png if len(png) == size else None

    def _append(self, digest: str, png: bytes) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=self._cache)  # noqa: SIM115
        disk = os.fstatvfs(self._file.fileno())
        # The records take as much again.
        if disk.f_bavail * disk.f_frsize < self._size + 2 * len(png):
            self._give_up()
            return
        self._file.write(png)
        self._file.flush()
        self._places[digest] = (self._size, len(png))
        self._size += len(png)

    def _give_up(self) -> None:
        self._given_up = True
        self._places.clear()
        if self._file is not None:
            # What a full disk refused is still in the buffer, and closing tries again.
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None
