"""Files on this machine and on other storage, by a path or an address.

An address is `scheme://...`: one of PyArrow's own file systems (`file`, `s3`, `gs`,
`abfs`, `hdfs`), or any other that fsspec has a package for.
"""

import contextlib
import fnmatch
import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator

import pyarrow as pa
from pyarrow import fs

from fdftnet_jax import files
from fdftnet_jax.data import images, kinds
from fdftnet_jax.errors import UserError
from fdftnet_jax.files import printable
from fdftnet_jax.prediction import inputs

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
# File systems on which an object appears when all of it has been sent.
_ATOMIC_PUT = ("s3", "gcs", "abfs", "fsspec+s3", "fsspec+gcs", "fsspec+abfs")
_SUFFIXES = (*images.SUFFIXES, *kinds.VIDEO_SUFFIXES)
# Seconds before a file that could not be fetched is tried again, but for these errors.
_PAUSES = (1.0, 5.0)
_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, UserError)
_PATTERN = re.compile(r"[*?\[]")


def is_address(path: str) -> bool:
    """Whether a path is an address of some storage, not a path of this machine."""
    return _ADDRESS.match(path) is not None


def kind_of(path: str) -> str:
    """VIDEO by its suffix, else IMAGE: what it is, is found out when it is read."""
    suffix = os.path.splitext(path)[1].lower()
    return inputs.VIDEO if suffix in kinds.VIDEO_SUFFIXES else inputs.IMAGE


def locate(path: str) -> tuple[fs.FileSystem, str]:
    """Finds the file system of a path or an address, and the path there.

    Raises:
      UserError: there is no such file system, or its package is missing.
    """
    if not is_address(path):
        return fs.LocalFileSystem(), path
    try:
        return fs.FileSystem.from_uri(path)
    except (pa.ArrowInvalid, NotImplementedError, ValueError):
        pass
    except OSError as error:
        raise UserError(f"cannot reach {printable(path)}: {error}") from error
    import fsspec

    try:
        found, inside = fsspec.core.url_to_fs(path)
    except (ImportError, ValueError) as error:
        raise UserError(
            f"cannot reach {printable(path)}: {error}; install the package that "
            "fsspec names for it, or copy the files to another storage"
        ) from error
    return fs.PyFileSystem(fs.FSSpecHandler(found)), inside


@contextlib.contextmanager
def on_this_machine(path: str, base: str = "") -> Iterator[str]:
    """Gives the path of a file on this machine: its own, or that of a copy.

    Args:
      path: of the file, or its address.
      base: the folder that a relative path begins at; '' is the current one.

    Raises:
      ImageError: the file of an address cannot be fetched.
    """
    if not is_address(path):
        yield os.path.join(base, path)
        return
    # Readers look at the suffix, too.
    suffix = os.path.splitext(path)[1]
    with tempfile.NamedTemporaryFile(suffix=suffix) as copy:
        for pause in (*_PAUSES, None):
            try:
                copy.seek(0)
                copy.truncate()
                system, inside = locate(path)
                with system.open_input_stream(inside) as stream:
                    shutil.copyfileobj(stream, copy, 1 << 20)
                copy.flush()
                break
            # (Each storage has exceptions of its own.)
            except Exception as error:
                if pause is not None and not isinstance(error, _FINAL):
                    time.sleep(pause)
                    continue
                reason = getattr(error, "strerror", None) or str(error)
                raise images.ImageError(path, " ".join(reason.split())) from error
        yield copy.name


def expand(address: str, skipped: inputs.Skipped) -> Iterator[inputs.Item]:
    """Yields the files that an address stands for, in the order of their names.

    That is itself, or the pictures and videos below it (told by their suffixes), or
    those that match its pattern, in which * and ? stand for anything, also for '/'.
    A folder's names are in memory at a time, not those of all folders.

    Args:
      address: of a file or a folder, or a pattern.
      skipped: counts what is left out.
    """
    pattern = _PATTERN.search(address)
    root = address[: address.rindex("/", 0, pattern.start())] if pattern else address
    system, inside = locate(root)
    # What stands before the file system's own paths in an address.
    prefix = root[: len(root) - len(inside.rstrip("/"))]
    if not root.rstrip("/").endswith(inside.rstrip("/")):
        prefix = _ADDRESS.match(root)[0]  # type: ignore[index]
    try:
        info = system.get_file_info(inside)
        if info.type == fs.FileType.File:
            yield inputs.Item(address, kind_of(address))
            return
        empty = True
        for path in _below(system, inside, skipped):
            found = prefix + path
            if pattern and not fnmatch.fnmatchcase(found, address):
                continue
            suffix = os.path.splitext(path)[1].lower()
            if pattern or suffix in _SUFFIXES:
                empty = False
                yield inputs.Item(found, kind_of(path))
            else:
                skipped.other += 1
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split())
        yield inputs.Item(address, "", reason)
        return
    if empty:
        nothing = "the pattern matches nothing" if pattern else "no such file"
        if info.type == fs.FileType.Directory and not pattern:
            nothing = "no images or videos in it"
        yield inputs.Item(address, inputs.FOLDER if not pattern else "", nothing)


def _below(
    system: fs.FileSystem, folder: str, skipped: inputs.Skipped
) -> Iterator[str]:
    """Yields the paths of all files below a folder that are not hidden."""
    waiting = [(folder, True)]
    while waiting:
        path, is_folder = waiting.pop()
        if not is_folder:
            yield path
            continue
        selector = fs.FileSelector(path, allow_not_found=True)
        infos = system.get_file_info(selector)
        for info in sorted(infos, key=lambda info: info.path, reverse=True):
            if info.base_name.startswith("."):
                skipped.hidden += 1
            else:
                waiting.append((info.path, info.type == fs.FileType.Directory))


class Store:
    """A folder to which files are written whole or not at all.

    Attributes:
      address: of the folder, as the user wrote it.
      local: whether it is on this machine.
    """

    def __init__(self, address: str):
        """Finds the storage; raises UserError where it cannot be reached."""
        self.address = address
        self.local = not is_address(address)
        self._system, self._root = locate(address)
        self._root = self._root.rstrip("/") or "/"
        self.local = isinstance(self._system, fs.LocalFileSystem)
        inner = getattr(getattr(self._system, "handler", None), "fs", None)
        protocol = getattr(inner, "protocol", "")
        first = protocol if isinstance(protocol, str) else protocol[0]
        name = f"fsspec+{first}" if inner is not None else self._system.type_name
        self._atomic_put = name in _ATOMIC_PUT

    @property
    def folder(self) -> str:
        """The path of the folder in its file system."""
        return self._root

    def names(self, folder: str = "") -> list[str]:
        """The names of what lies in a folder, in order; none where there is none."""
        selector = fs.FileSelector(self._path(folder), allow_not_found=True)
        infos = self._system.get_file_info(selector)
        return sorted(os.path.basename(info.path.rstrip("/")) for info in infos)

    def exists(self, name: str) -> bool:
        """Whether there is a file or folder of that name."""
        info = self._system.get_file_info(self._path(name))
        return info.type != fs.FileType.NotFound

    def read(self, name: str) -> bytes:
        """Reads a file; raises OSError where it cannot."""
        with self._system.open_input_stream(self._path(name)) as stream:
            return stream.read()

    def open(self, name: str) -> pa.NativeFile:
        """Opens a file for reading at any place in it."""
        return self._system.open_input_file(self._path(name))

    def write(self, name: str, data: bytes) -> None:
        """Writes a file: all of it is there under its name, or nothing.

        Raises:
          WriteError: a disk of this machine refuses.
          OSError: the storage does.
        """
        path = self._path(name)
        folder = os.path.dirname(path)
        if self.local:
            with files.writing(os.path.basename(path), self._root):
                os.makedirs(folder, exist_ok=True)
                files.write_atomic(path, data)
            return
        if self._atomic_put:
            self._put(path, data)
            return
        self._system.create_dir(folder, recursive=True)
        temporary = f"{folder}/.{os.path.basename(path)}.{uuid.uuid4().hex}"
        self._put(temporary, data)
        self._system.move(temporary, path)

    def delete(self, name: str) -> None:
        """Deletes a file or folder, where it is there."""
        path = self._path(name)
        info = self._system.get_file_info(path)
        if info.type == fs.FileType.Directory:
            self._system.delete_dir(path)
        elif info.type == fs.FileType.File:
            with contextlib.suppress(FileNotFoundError):
                self._system.delete_file(path)

    def _put(self, path: str, data: bytes) -> None:
        with self._system.open_output_stream(path) as stream:
            stream.write(data)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root
