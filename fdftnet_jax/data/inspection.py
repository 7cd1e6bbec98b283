"""What is in each file of a folder: decoded once, then remembered.

One decode serves everything: checks, hashes, the file's properties, and the PNG of the
picture's record (`caches.Pictures`). What is known of an image is kept in the cache
under its path, size and times: another scan looks only at files that are new, changed
or were left out (a disk may have failed to read them, for once).
"""

import hashlib
import json
import os
from collections.abc import Sequence
from concurrent import futures
from pathlib import Path

import PIL
from tqdm import tqdm

from fdftnet_jax import files
from fdftnet_jax.data import caches, images, kinds, leaks
from fdftnet_jax.data.leaks import Finding
from fdftnet_jax.data.splits import File

# Remembered findings of another version are not used; another Pillow may decode
# differently.
_VERSION = [2, PIL.__version__]
# Files that may wait for the threads.
_BLOCK = 256
NO_IMAGE = "not an image file"
VIDEO = "a video; cut its faces out with experiments.prepare_faces"


def look(
    directory: str,
    file: File,
    pictures: caches.Pictures | None = None,
    decoding: str = "srgb",
) -> Finding:
    """Reads one file of a folder; keeps its picture for the record, if asked to."""
    path = os.path.join(directory, file.path)
    expected = images.SUFFIXES.get(file.suffix)
    if expected is None:
        found = images.format_of(path) if os.path.isfile(path) else None
        if found:
            return Finding(_wrong_suffix(found, file))
        return Finding(VIDEO if kinds.kind_of(path) == kinds.VIDEO else NO_IMAGE)
    if not _is_utf8(file.path):
        return Finding("its name is not UTF-8")
    try:
        picture = images.read(path, decoding)
    except images.ImageError as error:
        return Finding(error.reason)
    if picture.format != expected:
        return Finding(_wrong_suffix(picture.format, file))
    digest = leaks.digest(picture.pixels)
    if pictures is not None:
        pictures.keep(digest, picture.pixels)
    height, width, _ = picture.pixels.shape
    return Finding(
        "",
        digest,
        leaks.perceptual_hash(picture.pixels),
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
    directory: str,
    listed: Sequence[File],
    cache: Path,
    *,
    part: str = "",
    pictures: caches.Pictures | None = None,
    decoding: str = "srgb",
) -> dict[str, Finding]:
    """Looks at the files of a folder, in parallel, or remembers them.

    Args:
      directory: the folder, absolute.
      listed: files in it.
      cache: where data is kept; the findings go to `inspections/` in it.
      part: names a part of the folder that is remembered on its own; '' is all of it.
      pictures: keeps the pictures of files that are decoded.
      decoding: one of `images.DECODINGS`.

    Returns:
      The findings by path, in the order of `listed`.

    Raises:
      UserError: if the findings cannot be written.
    """
    # No path has a null character.
    key = "\0".join([directory, part, decoding])
    name = hashlib.sha256(os.fsencode(key)).hexdigest()[:32]
    memory = cache / "inspections" / f"{name}.json"
    with caches.writing("what is in the images", cache):
        memory.parent.mkdir(parents=True, exist_ok=True)
        with caches.exclusive(memory.with_suffix(".lock")):
            return _inspect(directory, listed, memory, pictures, decoding)


def _inspect(
    directory: str,
    listed: Sequence[File],
    memory: Path,
    pictures: caches.Pictures | None,
    decoding: str,
) -> dict[str, Finding]:
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
            looks = pool.map(
                lambda i: look(directory, listed[i], pictures, decoding), block
            )
            for i, finding in zip(block, looks, strict=True):
                known[keys[i]] = finding
                bar.update()
    if any(not known[keys[i]].reason for i in new):
        rows = [[*key, *known[key]] for key in keys if not known[key].reason]
        # Columns: a fraction of the size of a list of objects.
        columns = list(zip(*rows, strict=True))
        files.write_atomic(memory, json.dumps({"version": _VERSION, "rows": columns}))
    return {key[0]: known[key] for key in keys}


def _stamp(path: str) -> tuple[int, int, int]:
    """Size and times of a file, which change with its content or permissions."""
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
