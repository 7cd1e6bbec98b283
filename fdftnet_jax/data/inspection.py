"""What is in each file of a folder: looked at once, then remembered.

Every file is decoded before anything is drawn from the folder, so that files which
cannot be read are left out before the splits are counted, and so that leaks are found
by content (`leaks`). What is known of an image is kept in the cache under its path,
size and times: another start looks only at files that are new, changed or were left
out (a disk may have failed to read them, for once).
"""

import hashlib
import json
import os
from collections.abc import Sequence
from concurrent import futures
from pathlib import Path
from typing import NamedTuple

import imagehash
import numpy as np
import PIL
from PIL import Image
from tqdm import tqdm

from fdftnet_jax import files
from fdftnet_jax.data import caches, images
from fdftnet_jax.data.splits import File

# Remembered findings of another version are not used; another Pillow may decode
# differently.
_VERSION = [1, PIL.__version__]
# The side at which a picture gets its perceptual hash, as `imagehash.phash` does.
_SMALL = 32
# Grey values (0..255): what is left of a picture without its stripes, as a standard
# deviation. Below, the signs that the hash is made of are those of noise.
_PLAIN = 2.0
# Files that may wait for the threads.
_BLOCK = 256
# Bytes that a finding takes in the cache, roughly.
_ROW = 250
NO_IMAGE = "not an image file"


class Finding(NamedTuple):
    """What is known of a file."""

    # Why it is left out; '' for an image that is used, which alone has the rest.
    reason: str
    # Of the decoded pixels and their shape; see `digest`.
    digest: str = ""
    # 64 bits in hexadecimal; '' for a plain picture. See `perceptual_hash`.
    phash: str = ""
    format: str = ""
    width: int = 0
    height: int = 0
    # Of a JPEG, in 1..100.
    quality: int | None = None


def digest(pixels: np.ndarray) -> str:
    """SHA-256, in hexadecimal, of an image [h, w, 3] uint8 and its shape."""
    content = hashlib.sha256(repr(pixels.shape).encode())
    content.update(np.ascontiguousarray(pixels).data)
    return content.hexdigest()


def perceptual_hash(pixels: np.ndarray) -> str:
    """The 64 signs of an image's lowest frequencies, which survive re-encoding.

    Args:
      pixels: [h, w, 3] uint8.

    Returns:
      16 hexadecimal digits, or '' for a picture of one colour or of plain stripes,
      which has too few frequencies.
    """
    size = (_SMALL, _SMALL)
    grey = Image.fromarray(pixels).convert("L").resize(size, Image.Resampling.LANCZOS)
    values = np.asarray(grey, np.float64)
    stripes = values.mean(axis=0) + values.mean(axis=1)[:, None] - values.mean()
    if (values - stripes).std() < _PLAIN:
        return ""
    return str(imagehash.phash(grey))


def look(directory: str, file: File) -> Finding:
    """Reads one file of a folder."""
    path = os.path.join(directory, file.path)
    expected = images.SUFFIXES.get(file.suffix)
    if expected is None:
        found = images.format_of(path) if os.path.isfile(path) else None
        return Finding(_wrong_suffix(found, file) if found else NO_IMAGE)
    if not _is_utf8(file.path):
        return Finding("its name is not UTF-8")
    try:
        picture = images.read(path)
    except images.ImageError as error:
        return Finding(error.reason)
    if picture.format != expected:
        return Finding(_wrong_suffix(picture.format, file))
    height, width, _ = picture.pixels.shape
    return Finding(
        "",
        digest(picture.pixels),
        perceptual_hash(picture.pixels),
        picture.format,
        width,
        height,
        picture.quality,
    )


def _wrong_suffix(found: str, file: File) -> str:
    return f"{found} data under the suffix {file.suffix or '(none)'}"


def _is_utf8(name: str) -> bool:
    """False for a name with the stand-ins for bytes that are not UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def inspect(
    directory: str, listed: Sequence[File], cache: Path, part: str = ""
) -> list[Finding]:
    """Looks at the files of a folder, in parallel, or remembers them.

    Args:
      directory: the folder, absolute.
      listed: files in it.
      cache: where data is kept; the findings go to `inspections/` in it.
      part: names a part of the folder that is remembered on its own; '' is all of it.

    Returns:
      A finding for each file, in the same order.

    Raises:
      UserError: if the findings cannot be written.
    """
    # No path has a null character.
    key = f"{directory}\0{part}" if part else directory
    name = hashlib.sha256(os.fsencode(key)).hexdigest()[:32]
    memory = cache / "inspections" / f"{name}.json"
    with caches.writing("what is in the images", cache, _ROW * len(listed)):
        memory.parent.mkdir(parents=True, exist_ok=True)
        with caches.exclusive(memory.with_suffix(".lock")):
            return _inspect(directory, listed, memory)


def _inspect(directory: str, listed: Sequence[File], memory: Path) -> list[Finding]:
    stamps = [_stamp(os.path.join(directory, file.path)) for file in listed]
    known = _remembered(memory)
    keys = [(file.path, *stamp) for file, stamp in zip(listed, stamps, strict=True)]
    new = [i for i, key in enumerate(keys) if key not in known]
    with (
        futures.ThreadPoolExecutor(os.cpu_count()) as pool,
        # `disable=None` shows the bar on a terminal only.
        tqdm(desc="inspecting", total=len(new), unit=" files", disable=None) as bar,
    ):
        for start in range(0, len(new), _BLOCK):
            block = new[start : start + _BLOCK]
            looks = pool.map(lambda i: look(directory, listed[i]), block)
            for i, finding in zip(block, looks, strict=True):
                known[keys[i]] = finding
                bar.update()
    found = [known[key] for key in keys]
    if any(not known[keys[i]].reason for i in new):
        rows = [
            [*key, *finding]
            for key, finding in zip(keys, found, strict=True)
            if not finding.reason
        ]
        # Columns: a fraction of the size of a list of objects.
        columns = list(zip(*rows, strict=True))
        files.write_atomic(memory, json.dumps({"version": _VERSION, "rows": columns}))
    return found


def _stamp(path: str) -> tuple[int, int, int]:
    """What changes with a file's content or permissions."""
    try:
        status = os.stat(path)
    except OSError:
        return -1, -1, -1
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _remembered(memory: Path) -> dict[tuple, Finding]:
    try:
        stored = json.loads(memory.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    if stored["version"] != _VERSION:
        return {}
    rows = zip(*stored["rows"], strict=True)
    return {tuple(row[:4]): Finding(*row[4:]) for row in rows}
