"""Keeps files that were sent, for as long as they are judged, where nobody else reads.

The body of a request is written to the disk as it arrives, so that a large video is
never in memory. Each request has a folder in the server's own, which no other user of
the machine may open; it is deleted with the answer. What a lost connection or a killed
server left behind is deleted an hour later, or by the next server that starts.
"""

import contextlib
import dataclasses
import os
import re
import shutil
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, BinaryIO

import python_multipart
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from fdftnet_jax import files

_PREFIX = "fdftnet-serve-"
_LOCK = "lock"
_SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,8}")
# Seconds after which no upload is there any more.
_LONGEST = 3600.0
# Bytes of a field that is no file, such as a label.
_LONGEST_FIELD = 1024
DISK_FULL = "the server's disk takes no more"


class UploadError(Exception):
    """A request whose body is refused.

    Attributes:
      status: the HTTP status that says so.
    """

    def __init__(self, status: int, message: str):
        """Takes the status and a sentence for the client."""
        super().__init__(message)
        self.status = status


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a request may hold.

    Attributes:
      size: bytes of its body.
      number: of its files.
      total: bytes of all requests that are received or judged at a time.
    """

    size: int = 2**30
    number: int = 32
    total: int = 2**32


@dataclasses.dataclass(frozen=True)
class Upload:
    """A file that was sent.

    Attributes:
      name: what its sender calls it, without folders.
      path: where it is.
    """

    name: str
    path: str


@dataclasses.dataclass
class Form:
    """What a request holds: its files, and its other fields by name."""

    files: list[Upload] = dataclasses.field(default_factory=list)
    fields: dict[str, str] = dataclasses.field(default_factory=dict)


class Store:
    """The folder of the files that were sent to this server."""

    def __init__(self, limits: Limits | None = None):
        """Makes the folder; deletes those of servers that have been killed."""
        self.limits = limits or Limits()
        _delete_left_behind()
        # Only its owner may open it.
        self.folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
        self._lock = (self.folder / _LOCK).open("w")
        files.hold(self._lock, blocking=False)
        self._bytes = 0

    @contextlib.asynccontextmanager
    async def form(
        self, content_type: str, body: AsyncIterator[bytes]
    ) -> AsyncIterator[Form]:
        """Receives a request; deletes its files at the end.

        Args:
          content_type: of the request, multipart/form-data with a boundary.
          body: of the request, in parts.

        Raises:
          UploadError: it is too large, has too many files, or is no such form.
        """
        folder = tempfile.mkdtemp(dir=self.folder)
        received = 0

        async def counted() -> AsyncIterator[bytes]:
            nonlocal received
            async for part in body:
                received += len(part)
                self._bytes += len(part)
                if received > self.limits.size:
                    raise too_large(self.limits)
                if self._bytes > self.limits.total:
                    raise UploadError(503, "too much is being sent: try again later")
                yield part

        try:
            with contextlib.closing(_Receiver(folder, self.limits)) as receiver:
                form = await receiver.receive(content_type, counted())
            yield form
        finally:
            self._bytes -= received
            shutil.rmtree(folder, ignore_errors=True)

    def delete_old(self, *, older_than: float = _LONGEST) -> None:
        """Deletes the files of requests that began so many seconds ago."""
        for folder in self.folder.iterdir():
            with contextlib.suppress(OSError):
                if folder.is_dir() and _age(folder) > older_than:
                    shutil.rmtree(folder, ignore_errors=True)

    def close(self) -> None:
        """Deletes the folder and all that is in it."""
        self._lock.close()
        shutil.rmtree(self.folder, ignore_errors=True)


class _Receiver:
    """Writes the files of a form into a folder while its body is read."""

    def __init__(self, folder: str, limits: Limits):
        self._folder = folder
        self._limits = limits
        self._form = Form()
        self._headers: dict[bytes, bytes] = {}
        self._header = (b"", b"")
        self._file: BinaryIO | None = None
        self._field, self._value = "", b""

    async def receive(self, content_type: str, body: AsyncIterator[bytes]) -> Form:
        """Reads the form; see `Store.form`."""
        kind, options = parse_options_header(content_type)
        if kind != b"multipart/form-data" or not options.get(b"boundary"):
            raise UploadError(415, "expected multipart/form-data")
        try:
            parser = python_multipart.MultipartParser(
                options[b"boundary"], self._callbacks()
            )
            async for part in body:
                parser.write(part)
            parser.finalize()
        except FormParserError as error:
            raise UploadError(400, "the form is damaged") from error
        except OSError as error:
            raise UploadError(507, DISK_FULL) from error
        self.close()
        return self._form

    def close(self) -> None:
        """Closes the file that is being written."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _callbacks(self) -> Any:
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._header_field,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_headers_finished": self._open,
            "on_part_data": self._write,
            "on_part_end": self._end,
        }

    def _begin(self) -> None:
        self._headers = {}

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        name, value = self._header
        self._header = name + data[start:end], value

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        name, value = self._header
        self._header = name, value + data[start:end]

    def _header_end(self) -> None:
        name, value = self._header
        self._headers[name.lower()] = value
        self._header = (b"", b"")

    def _open(self) -> None:
        disposition = self._headers.get(b"content-disposition", b"")
        _, options = parse_options_header(disposition)
        self._field = options.get(b"name", b"").decode(errors="replace")
        self._value = b""
        if b"filename" not in options:
            return
        number = len(self._form.files)
        if number >= self._limits.number:
            most = self._limits.number
            raise UploadError(413, f"expected at most {most} files at a time")
        name = base_name(options[b"filename"].decode(errors="replace"))
        # The suffix says what the file is; nothing else of the name is used.
        suffix = os.path.splitext(name)[1]
        suffix = suffix if _SUFFIX.fullmatch(suffix) else ""
        path = os.path.join(self._folder, f"{number}{suffix}")
        self._file = open(path, "xb")  # noqa: SIM115
        self._form.files.append(Upload(name, path))

    def _write(self, data: bytes, start: int, end: int) -> None:
        if self._file is not None:
            self._file.write(data[start:end])
            return
        self._value += data[start:end]
        if len(self._value) > _LONGEST_FIELD:
            raise UploadError(413, f"the field {self._field[:40]} is too long")

    def _end(self) -> None:
        if self._file is None:
            self._form.fields[self._field] = self._value.decode(errors="replace")
        self.close()


def base_name(name: str) -> str:
    """The last part of a name that a client gave, without characters that control."""
    last = re.split(r"[/\\]", name)[-1]
    shown = "".join(c for c in last if c.isprintable())[:255]
    return shown if shown.strip(". ") else "unnamed"


def too_large(limits: Limits) -> UploadError:
    """Makes the error for a body of too many bytes."""
    return UploadError(413, f"expected at most {limits.size / 2**20:g} MiB at a time")


def _delete_left_behind() -> None:
    """Deletes the folders whose servers have been killed: nobody holds their locks."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        # Those of other users cannot be opened; a young one may get its lock yet.
        with contextlib.suppress(OSError):
            if _age(folder) < 60 or folder.is_symlink():
                continue
            with (folder / _LOCK).open("r+") as lock:
                files.hold(lock, blocking=False)
                shutil.rmtree(folder, ignore_errors=True)


def _age(folder: Path) -> float:
    return time.time() - folder.stat().st_mtime
