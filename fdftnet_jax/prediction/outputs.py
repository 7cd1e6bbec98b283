"""What `fdftnet predict` may write to: files of results, and folders of figures.

An output that exists is refused unless the user allows to replace it; one that is also
an input always.
"""

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from fdftnet_jax import files
from fdftnet_jax.errors import UserError
from fdftnet_jax.files import printable
from fdftnet_jax.prediction import writers

# Characters of an input's name that are kept in a figure's.
_STEM = 60


def check_file(
    path: str, flag: str, *, replace: bool, inputs: Callable[[], Iterator[Path | str]]
) -> None:
    """Refuses a file of results that would destroy something.

    Args:
      path: of the file; the standard output is none.
      flag: of the command that names it, such as '--csv'.
      replace: whether the user allows to replace it.
      inputs: lists the files that the command reads; they are many, so it is called
        only where the file exists.

    Raises:
      UserError: the file exists and may not be replaced; or it is an input, or its
        name until it is complete is one.
    """
    if path == writers.STDOUT:
        return
    files.check_output(path, flag, replace=replace, inputs=inputs())
    files.check_no_input(writers.partial(path), flag, inputs())


def check_folder(path: str, flag: str, *, replace: bool, inputs: Iterable[str]) -> None:
    """Refuses a folder of figures that holds something else, or is an input.

    Args:
      path: of the folder, which need not exist.
      flag: of the command that names it, such as '--plots'.
      replace: whether the user allows to replace figures of an earlier command.
      inputs: files and folders that the user named.

    Raises:
      UserError: it does.
    """
    if not os.path.isdir(path):
        return
    files.check_no_input(path, flag, inputs)
    names = sorted(name for name in os.listdir(path) if not name.startswith("."))
    others = [name for name in names if not is_figure(name)]
    if others:
        raise UserError(
            f"{flag} {printable(path)} holds files that this command did not make, "
            f"such as {printable(others[0])}; give another folder"
        )
    if names and not replace:
        raise UserError(
            f"{flag} {printable(path)} holds figures of an earlier command; give "
            "another folder, or --replace to replace them"
        )


def make_folders(folders: Mapping[str, str]) -> set[files.Identity]:
    """Makes folders to write to.

    Args:
      folders: flag -> path.

    Returns:
      What identifies them.

    Raises:
      UserError: one cannot be made or written to.
    """
    identities = set()
    for flag, path in folders.items():
        try:
            Path(path).mkdir(parents=True, exist_ok=True)
            if not os.access(path, os.W_OK | os.X_OK):
                raise PermissionError(None, "no permission to write")
            identities.add(files.identity(path))
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(
                f"cannot write to {flag} {printable(path)}: {reason}; give another "
                "folder"
            ) from error
    return identities


def figure_name(name: str, suffix: str) -> str:
    """Names the file of a figure after what it shows.

    The result has the end of the name in letters that every file system takes, and a
    hash of all of it: different names have different files.
    """
    digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:12]
    stem = re.sub(r"[^A-Za-z0-9._-]+", "_", name)[-_STEM:].lstrip(".-_")
    return f"{stem}{'-' * bool(stem)}{digest}{suffix}"


def is_figure(name: str) -> bool:
    """Whether a file's name is one that `figure_name` gives."""
    return re.fullmatch(r"([A-Za-z0-9._-]+-)?[0-9a-f]{12}\.(svg|png)", name) is not None
