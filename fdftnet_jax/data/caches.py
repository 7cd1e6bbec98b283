"""The folder where prepared data is kept, and what can go wrong with writing to it."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from fdftnet_jax import files
from fdftnet_jax.errors import UserError


def cache_dir(configured: str) -> Path:
    """The folder of `config.data.cache_dir`; where it is empty, the user's cache."""
    if configured:
        return Path(configured).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "fdftnet_jax"


@contextlib.contextmanager
def writing(what: str, cache: Path, needed: int) -> Iterator[None]:
    """Turns everything that can go wrong with writing to the cache into one line.

    Args:
      what: is being written.
      cache: where to.
      needed: roughly how many bytes it takes.

    Raises:
      UserError: what could not be written and why; how much a full disk lacks.
    """
    advice = "free space there or choose another config.data.cache_dir"
    try:
        with files.writing(what, cache, needed, advice):
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
