"""Reads PyTorch's own files (`torch.save`) without PyTorch and without running code.

Such a file is a pickle, which can name any function for its reader to call. This one
knows ordered dicts and tensors alone: another name ends the reading before anything
is called. A tensor is a part of a storage, given by offset, sizes and strides, which
are checked against what the storage holds.

Two layouts are read: zip archives (since PyTorch 1.6), with the pickle and a member for
each storage; and the older one of several pickles with the storages after them.
"""

import collections
import dataclasses
import io
import math
import os
import pickle
import zipfile
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from fdftnet_jax.errors import UserError

# The first number of a file of the older layout, and its version.
_MAGIC, _VERSION = 0x1950A86A20F9469CFC6C, 1001
_TYPES = {
    "DoubleStorage": "f8",
    "FloatStorage": "f4",
    "HalfStorage": "f2",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "i8",
    "IntStorage": "i4",
    "ShortStorage": "i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}
# Where a training script keeps the state dict among other things.
_INNER = ("state_dict", "model")
# No tensor of a network has more.
_MOST_SIDES = 8


class _RefusedError(Exception):
    """A file that holds something else than tensors; the message names what it is."""


@dataclasses.dataclass(frozen=True)
class _Storage:
    """A row of numbers, which the file holds apart from its pickle."""

    key: str
    type: str  # Of NumPy.
    numbers: int


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """A part of a storage."""

    storage: _Storage
    offset: int
    sizes: tuple[int, ...]
    strides: tuple[int, ...]


class _Rebuild:
    """Stands for `torch._utils._rebuild_tensor_v2`; nothing can be set on it."""

    __slots__ = ()

    def __call__(
        self, storage: Any, offset: Any, sizes: Any, strides: Any, *_: Any
    ) -> _Tensor:
        counts = isinstance(sizes, tuple) and isinstance(strides, tuple)
        numbers = (offset, *sizes, *strides) if counts else ()
        if (
            not isinstance(storage, _Storage)
            or len(numbers) != 1 + 2 * len(sizes)
            or len(sizes) > _MOST_SIDES
            or not all(type(n) is int and 0 <= n < 2**48 for n in numbers)
        ):
            raise _RefusedError("a tensor that is malformed")
        # Of nothing, the last element has no place.
        last = offset + sum(
            (size - 1) * stride for size, stride in zip(sizes, strides, strict=True)
        )
        elements = math.prod(sizes)
        if elements and (last >= storage.numbers or elements > storage.numbers):
            raise _RefusedError("a tensor that is larger than its storage")
        return _Tensor(storage, offset, sizes, strides)


class _Parameter:
    """Stands for `torch._utils._rebuild_parameter`."""

    __slots__ = ()

    def __call__(self, data: Any, *_: Any) -> _Tensor:
        if not isinstance(data, _Tensor):
            raise _RefusedError("a parameter that is no tensor")
        return data


class _Type:
    """Stands for a class of storages, such as `torch.FloatStorage`."""

    __slots__ = ("name",)
    name: str

    def __init__(self, name: str):
        object.__setattr__(self, "name", name)

    def __setattr__(self, name: str, value: Any) -> None:
        raise _RefusedError("a change of a class")


class _Dict(collections.OrderedDict):
    """An ordered dict without the attributes that PyTorch gives it."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        pass


_KNOWN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _Dict,
    ("torch._utils", "_rebuild_tensor_v2"): _Rebuild(),
    ("torch._utils", "_rebuild_parameter"): _Parameter(),
    **{("torch", name): _Type(name) for name in _TYPES},
}


class _Unpickler(pickle.Unpickler):
    """Makes ordered dicts and tensors; refuses every other name."""

    def __init__(self, file: Any):
        super().__init__(file, encoding="utf-8")
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _KNOWN[module, name]
        except KeyError:
            raise _RefusedError(f"{module}.{name}"[:100]) from None

    def persistent_load(self, pid: Any) -> _Storage:
        """Reads what PyTorch pickles in the place of a storage's numbers."""
        match pid:
            case ("storage", _Type() as kind, str(key), str(), int(numbers), *view):
                if numbers < 0 or any(part is not None for part in view):
                    raise _RefusedError("a storage that is malformed")
            case _:
                raise _RefusedError("a storage that is malformed")
        storage = _Storage(key, _TYPES[kind.name], numbers)
        if self.storages.setdefault(key, storage) != storage:
            raise _RefusedError("two storages with the same name")
        return storage


def read(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads the tensors of a state dict, without the counters of batches.

    Args:
      path: what `torch.save` wrote: a state dict, or a dict with one under
        'state_dict' or 'model'.

    Returns:
      The tensors by name.

    Raises:
      UserError: it is damaged, or holds anything but tensors, dicts, texts and numbers.
    """
    try:
        with open(path, "rb") as file:
            found = _read_zip(file) if file.read(2) == b"PK" else _read_stream(file)
        return _state_dict(found)
    except _RefusedError as error:
        raise UserError(
            f"cannot read {path}: it holds {error}, and only tensors in dicts are "
            "read, since a pickle can run any code; where you trust it, save its state "
            "dict alone (`torch.save(model.state_dict(), 'weights.pth')`)"
        ) from error
    # What damaged pickles and archives make Python raise.
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:120]
        raise UserError(
            f"cannot read {path} as a file of PyTorch, it seems to be damaged "
            f"({reason}): get the file again"
        ) from error


def _read_zip(file: Any) -> Any:
    """The newer layout: `<name>/data.pkl`, and `<name>/data/<key>` for each storage."""
    with zipfile.ZipFile(file) as archive:
        [pickled] = [n for n in archive.namelist() if n.endswith("/data.pkl")]
        folder = pickled.removesuffix("data.pkl")
        unpickler = _Unpickler(io.BytesIO(_member(archive, pickled)))
        found = unpickler.load()
        order = "little"
        if f"{folder}byteorder" in archive.namelist():
            order = _member(archive, f"{folder}byteorder").decode()
        contents = {}
        for key, storage in unpickler.storages.items():
            data = _member(archive, f"{folder}data/{key}")
            contents[key] = _numbers(data, storage, order)
    return _filled(found, contents)


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    # PyTorch compresses nothing, so that no small file holds gigabytes.
    if archive.getinfo(name).compress_type != zipfile.ZIP_STORED:
        raise _RefusedError("a compressed member")
    return archive.read(name)


def _read_stream(file: Any) -> Any:
    """The older layout: five pickles, then each storage's length and numbers.

    The pickles are a magic number, a version, what wrote the file, the state dict, and
    the keys of the storages.
    """
    file.seek(0)
    magic, version, system = (_Unpickler(file).load() for _ in range(3))
    if (magic, version) != (_MAGIC, _VERSION):
        raise _RefusedError("a pickle of something else")
    order = "little" if system.get("little_endian", True) else "big"
    unpickler = _Unpickler(file)
    found = unpickler.load()
    contents = {}
    for key in _Unpickler(file).load():
        storage = unpickler.storages[key]
        numbers = int.from_bytes(file.read(8), order)  # type: ignore[arg-type]
        if numbers != storage.numbers:
            raise _RefusedError("a storage of another length")
        size = numbers * _type(storage).itemsize
        if size > os.fstat(file.fileno()).st_size:
            raise ValueError("it ends early")
        contents[key] = _numbers(file.read(size), storage, order)
    return _filled(found, contents)


def _type(storage: _Storage) -> np.dtype:
    return np.dtype(jnp.bfloat16 if storage.type == "bfloat16" else storage.type)


def _numbers(data: bytes, storage: _Storage, order: str) -> np.ndarray:
    kind = _type(storage)
    if len(data) != storage.numbers * kind.itemsize:
        raise ValueError(f"{len(data)} bytes for {storage.numbers} numbers")
    array = np.frombuffer(data, kind)
    return array.byteswap() if order == "big" else array


def _filled(found: Any, contents: Mapping[str, np.ndarray]) -> Any:
    """Puts the numbers into the tensors of dicts; other values stay."""
    if isinstance(found, dict):
        return {key: _filled(value, contents) for key, value in found.items()}
    if not isinstance(found, _Tensor):
        return found
    numbers = contents[found.storage.key]
    step = numbers.itemsize
    # (The place after the last number is none where there is nothing.)
    start = numbers[found.offset :] if math.prod(found.sizes) else numbers[:0]
    view = np.lib.stride_tricks.as_strided(
        start, found.sizes, [step * stride for stride in found.strides], writeable=False
    )
    return np.array(view)


def _state_dict(found: Any) -> dict[str, np.ndarray]:
    if isinstance(found, dict):
        for key in _INNER:
            if isinstance(found.get(key), dict):
                found = found[key]
    tensors = {
        name: value
        for name, value in (found.items() if isinstance(found, dict) else ())
        if isinstance(name, str) and isinstance(value, np.ndarray)
    }
    if not tensors:
        raise _RefusedError("no state dict")
    return {
        name: tensor
        for name, tensor in tensors.items()
        if not name.endswith("num_batches_tracked")
    }
