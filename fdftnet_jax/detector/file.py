"""Reads and writes a detector's file: named arrays, a card, a digest of every byte.

It is a safetensors file, which any reader of that format opens. Its metadata has one
entry, `fdftnet_detector`, JSON:

    sha256           of the whole file with 64 zeros in place of this value
    format_version   2
    card             what a person and a program need to know (see `export`)

Nothing in it is a pickle. The digest shows damage and careless edits; it is no
signature, because whoever rewrites a file can compute it again. A forged program is not
run as code of the machine, but it can end the process that reads it: it is read only
where its user asks for that (see `detector.load`).
"""

import hashlib
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy

from fdftnet_jax import files
from fdftnet_jax.errors import UserError

FORMAT_VERSION = 2
# The detector that the package carries.
TOY = "toy"
_TOY_FILE = Path(__file__).parent / "toy.safetensors"
_ENTRY = "fdftnet_detector"
# Of a file that may be something else: bytes of its header that are looked at.
_LONGEST_HEADER = 2**24
# Of the digest while it is computed.
_BLANK = "0" * 64


def write(
    path: str | os.PathLike[str],
    arrays: Mapping[str, np.ndarray],
    card: dict[str, Any],
    *,
    replace: bool = True,
) -> None:
    """Writes a detector; the same arrays and card give the same bytes.

    Args:
      path: of the file, which is written atomically.
      arrays: by name.
      card: ready for JSON.
      replace: whether an existing file may be replaced.

    Raises:
      UserError: the disk refuses, there is no such folder, or there is such a file.
    """
    path = Path(path)
    data = _bytes(arrays, card)
    if not path.absolute().parent.is_dir():
        raise UserError(
            f"expected a folder {path.parent} for the detector, found none; make it, "
            "or give another path"
        )
    try:
        files.write_atomic(path, data, replace=replace)
    except FileExistsError:
        # One that appeared since the export began.
        files.check_output(path, "the detector", replace=False)
        raise


def locate(path: str | os.PathLike[str]) -> Path:
    """Finds a detector's file; 'toy' is the package's, unless a file has that name."""
    if os.fspath(path) == TOY and not os.path.exists(TOY):
        return _TOY_FILE
    return Path(path)


def is_detector(path: str | os.PathLike[str]) -> bool:
    """Whether a file says of itself that it is a detector, of whatever version."""
    path = locate(path)
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        return f'"{_ENTRY}"'.encode() in stream.read(min(length, _LONGEST_HEADER))


class Contents(NamedTuple):
    """The contents of a file."""

    arrays: dict[str, np.ndarray]
    card: dict[str, Any]
    digest: str  # As the file has it: 64 hexadecimal digits.


def read(path: str | os.PathLike[str]) -> Contents:
    """Reads a detector, once its bytes are known to be those that were written.

    Args:
      path: of the file, or 'toy' for the one that the package carries.

    Raises:
      UserError: there is no such file, it is no detector or of another version, or a
        byte of it has changed.
    """
    data = _contents(locate(path))
    try:
        entry = _entry(data)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path} is no detector, or it is damaged: expected a file that `fdftnet "
            "export` has written; get it again"
        ) from error
    version = entry.get("format_version")
    if version != FORMAT_VERSION:
        raise UserError(
            f"{path} is a detector of format {str(version)[:20]}, this version of "
            f"fdftnet_jax reads {FORMAT_VERSION}; use the version that wrote it"
        )
    digest = entry["sha256"]
    blank = data.replace(digest.encode(), _BLANK.encode(), 1)
    if hashlib.sha256(blank).hexdigest() != digest:
        raise UserError(
            f"{path} is damaged or was changed: its bytes are not those that were "
            "written; get the file again"
        )
    try:
        return Contents(safetensors.numpy.load(data), entry["card"], digest)
    except (safetensors.SafetensorError, ValueError, TypeError, KeyError) as error:
        raise tampered(path, error) from error


def tampered(path: str | os.PathLike[str], error: Exception | str) -> UserError:
    """Makes the error for an undamaged file that does not hold a working detector."""
    reason = " ".join(str(error).split())[:120]
    if isinstance(error, Exception):
        reason = f"{type(error).__name__}: {reason}"
    return UserError(
        f"{path} does not hold a detector that works ({reason}): `fdftnet export` did "
        "not write it so; get it from where it was made"
    )


def _bytes(arrays: Mapping[str, np.ndarray], card: dict[str, Any]) -> bytes:
    # The digest comes first, and so is the first that `replace` finds. One entry alone:
    # safetensors does not keep the order of several.
    entry = {"sha256": _BLANK, "format_version": FORMAT_VERSION, "card": card}
    metadata = {_ENTRY: json.dumps(entry, allow_nan=False)}
    contiguous = {name: np.asarray(a, order="C") for name, a in arrays.items()}
    data = safetensors.numpy.save(contiguous, metadata)
    digest = hashlib.sha256(data).hexdigest()
    return data.replace(_BLANK.encode(), digest.encode(), 1)


def _entry(data: bytes) -> dict[str, Any]:
    """Reads the JSON in the metadata; checks the types of the digest and the card."""
    length = int.from_bytes(data[:8], "little")
    if not 0 < length <= len(data) - 8:
        raise ValueError("no header")
    entry = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][_ENTRY])
    sha256 = entry["sha256"]
    if len(sha256) != len(_BLANK) or not isinstance(entry["card"], dict):
        raise ValueError("no digest or no card")
    int(sha256, 16)
    return entry


def _contents(path: str | os.PathLike[str]) -> bytes:
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise UserError(
                f"expected a detector at {path}, found no regular file; give the path "
                "of a file that `fdftnet export` has written"
            )
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(
            f"cannot read the detector {path}: {error.strerror or error}; give the "
            "path of a file that `fdftnet export` has written, or 'toy'"
        ) from error
