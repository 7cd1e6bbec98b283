"""Writes what `torch.save` writes, without PyTorch, in both of its layouts."""

import collections
import io
import pickle
import struct
import sys
import types
import zipfile

import numpy as np

STORAGES = {
    **{"f8": "DoubleStorage", "f4": "FloatStorage", "f2": "HalfStorage"},
    **{"i8": "LongStorage", "i4": "IntStorage", "i2": "ShortStorage"},
    **{"i1": "CharStorage", "u1": "ByteStorage", "b1": "BoolStorage"},
}


class Storage:
    def __init__(self, key, array, kind=None):
        self.key, self.array = key, array
        self.kind = kind or STORAGES[array.dtype.str[1:]]


class Tensor:
    """A part of a storage; strides count its elements."""

    def __init__(self, storage, offset, sizes, strides):
        self.parts = (storage, offset, sizes, strides, False, collections.OrderedDict())

    def __reduce__(self):
        return sys.modules["torch._utils"]._rebuild_tensor_v2, self.parts


def whole(key, array):
    """A tensor that is all of a storage of its own."""
    array = np.asarray(array)
    strides = tuple(step // array.itemsize for step in array.strides)
    return Tensor(Storage(key, array.reshape(-1)), 0, array.shape, strides)


class _Pickler(pickle.Pickler):
    def __init__(self, file, storages):
        super().__init__(file, protocol=2)
        self._storages = storages

    def persistent_id(self, thing):
        if not isinstance(thing, Storage):
            return None
        self._storages[thing.key] = thing
        kind = getattr(sys.modules["torch"], thing.kind)
        numbers = thing.array.size
        return ("storage", kind, thing.key, "cpu", numbers, *self.view)

    view = ()


class _Legacy(_Pickler):
    view = (None,)


def save(path, content, *, legacy=False, order="little"):
    """Writes a file; the names of PyTorch exist while its pickle is made."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")

    def _rebuild_tensor_v2():
        pass

    for where, name, thing in (
        (utils, "_rebuild_tensor_v2", _rebuild_tensor_v2),
        *[(torch, n, type(n, (), {})) for n in [*STORAGES.values(), "BFloat16Storage"]],
    ):
        thing.__module__, thing.__qualname__ = where.__name__, name
        setattr(where, name, thing)
    present = {n: sys.modules.get(n) for n in ("torch", "torch._utils")}
    sys.modules.update({"torch": torch, "torch._utils": utils})
    storages = {}
    pickled = io.BytesIO()
    try:
        (_Legacy if legacy else _Pickler)(pickled, storages).dump(content)
    finally:
        for name, module in present.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
    raw = {
        key: (s.array.byteswap() if order == "big" else s.array).tobytes()
        for key, s in storages.items()
    }
    if legacy:
        begin = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": order == "little"}]
        data = b"".join(pickle.dumps(part, protocol=2) for part in begin)
        data += pickled.getvalue() + pickle.dumps(list(raw), protocol=2)
        form = "<q" if order == "little" else ">q"
        for key, numbers in raw.items():
            data += struct.pack(form, storages[key].array.size) + numbers
        path.write_bytes(data)
        return path
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled.getvalue())
        archive.writestr("archive/byteorder", order)
        for key, numbers in raw.items():
            archive.writestr(f"archive/data/{key}", numbers)
        archive.writestr("archive/version", "3\n")
    return path
