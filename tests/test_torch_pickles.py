"""Files of PyTorch: the tensors that NumPy has, and nothing else ever."""

import collections
import os
import pickle
import random
import zipfile

import ml_dtypes
import numpy as np
import pytest
import torch_saved
from torch_saved import Storage, Tensor, whole

from fdftnet_jax.errors import UserError
from fdftnet_jax.weights import torch_pickles

LAYOUTS = pytest.mark.parametrize("legacy", [False, True])


def refused(path):
    with pytest.raises(UserError) as error:
        torch_pickles.read(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    return str(error.value)


def arrays():
    rng = np.random.default_rng(0)
    kinds = [*torch_saved.STORAGES]
    found = {k: rng.integers(0, 100, (3, 4)).astype(k) for k in kinds}
    return found | {
        "scalar": np.float32(3).reshape(()),
        "empty": np.zeros((0, 3), "f4"),
    }


@LAYOUTS
@pytest.mark.parametrize("order", ["little", "big"])
def test_tensors_of_every_type(legacy, order, tmp_path):
    expected = arrays()
    state = collections.OrderedDict((k, whole(k, v)) for k, v in expected.items())
    state["bn.num_batches_tracked"] = whole("n", np.int64(7).reshape(()))
    path = torch_saved.save(tmp_path / "x", state, legacy=legacy, order=order)
    found = torch_pickles.read(path)
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


@LAYOUTS
def test_bfloat16(legacy, tmp_path):
    values = np.array([1.5, -2, 0.1], ml_dtypes.bfloat16)
    storage = Storage("0", values.view(np.int16), "BFloat16Storage")
    path = torch_saved.save(
        tmp_path / "x", {"w": Tensor(storage, 0, (3,), (1,))}, legacy=legacy
    )
    found = torch_pickles.read(path)["w"]
    assert found.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(found, values)


@LAYOUTS
def test_views_of_one_storage(legacy, tmp_path):
    base = np.arange(60, dtype="f4")
    cube = base.reshape(3, 4, 5)
    expected = {
        "turned": cube.transpose(2, 0, 1),
        "stepped": cube[:, ::2, 1::3],
        "row": cube[1, 2],
        "repeated": np.broadcast_to(base[7:8], (6,)),
        "last": base[59:],
    }
    storage = Storage("0", base)
    start = base.__array_interface__["data"][0]
    state = {
        name: Tensor(
            storage,
            (view.__array_interface__["data"][0] - start) // 4,
            view.shape,
            tuple(step // 4 for step in view.strides),
        )
        for name, view in expected.items()
    }
    found = torch_pickles.read(torch_saved.save(tmp_path / "x", state, legacy=legacy))
    for name, view in expected.items():
        np.testing.assert_array_equal(found[name], view)
        # What is read is the reader's own.
        assert found[name].base is None or found[name].base.base is None


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_a_state_dict_among_other_things(key, tmp_path):
    state = {key: {"w": whole("0", np.ones(3, "f4"))}, "epoch": 3, "name": "x"}
    found = torch_pickles.read(torch_saved.save(tmp_path / "x", state))
    np.testing.assert_array_equal(found["w"], np.ones(3))


# What is refused.


class Call:
    """Calls a function when it is read."""

    def __init__(self, function, *arguments):
        self._of = function, arguments

    def __reduce__(self):
        return self._of


@LAYOUTS
@pytest.mark.parametrize(
    ("thing", "name"),
    [
        (Call(os.mkdir, "made"), "posix.mkdir"),
        (Call(eval, "1"), ".eval"),
        (Call(getattr, "", "join"), ".getattr"),
        (Call(bytearray, 2**40), ".bytearray"),
        (np.float64(1), "numpy"),
        (zipfile.ZipInfo("x"), "ZipInfo"),
    ],
)
def test_anything_else_is_named_and_never_called(
    legacy, thing, name, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    state = {"w": whole("0", np.ones(3, "f4")), "other": thing}
    path = torch_saved.save(tmp_path / "x", state, legacy=legacy)
    message = refused(path)
    assert "it holds" in message and name in message
    assert not (tmp_path / "made").exists()


@LAYOUTS
@pytest.mark.parametrize(
    ("offset", "sizes", "strides"),
    [
        *[(1, (6,), (1,)), (0, (7,), (1,)), (0, (2, 4), (3, 1)), (6, (1,), (1,))],
        *[(0, (2**40,), (0,)), (0, (2**40, 2**40), (1, 1)), (-1, (2,), (1,))],
        *[(5, (2,), (-1,)), (0, (-1,), (1,)), (0, (2.0,), (1,)), (0, (2,), (1, 1))],
        *[(True, (2,), (1,)), (0, [2], [1]), (0, (1,) * 9, (1,) * 9)],
    ],
)
def test_tensors_outside_of_their_storage(legacy, offset, sizes, strides, tmp_path):
    storage = Storage("0", np.arange(6, dtype="f4"))
    state = {"w": Tensor(storage, offset, sizes, strides)}
    assert "a tensor" in refused(torch_saved.save(tmp_path / "x", state, legacy=legacy))


def test_storages_that_are_shorter_than_they_say(tmp_path):
    state = {"w": whole("0", np.ones(1000, "f4"))}
    data = torch_saved.save(tmp_path / "x", state, legacy=True).read_bytes()
    (tmp_path / "x").write_bytes(data[:-4])
    assert "damaged" in refused(tmp_path / "x")
    with zipfile.ZipFile(torch_saved.save(tmp_path / "y", state)) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    for how, message in ((zipfile.ZIP_DEFLATED, "compressed"), (0, "damaged")):
        with zipfile.ZipFile(tmp_path / "z", "w", how) as archive:
            for name, part in parts.items():
                archive.writestr(name, part if how else part[:3999])
        assert message in refused(tmp_path / "z")


def test_other_pickles(tmp_path):
    path = tmp_path / "x.pkl"
    for content, message in (
        ([1, 2], "damaged"),
        (0x1950A86A20F9469CFC6C, "damaged"),
    ):
        path.write_bytes(pickle.dumps(content, protocol=2))
        assert message in refused(path)
    assert "no state dict" in refused(torch_saved.save(path, {"epoch": 3}))


@LAYOUTS
def test_damaged_files_are_refused_or_read_in_a_moment(legacy, tmp_path):
    """One to three changed bytes, in 500 files: no other error, no large array."""
    state = {k: whole(k, v) for k, v in arrays().items()}
    data = torch_saved.save(tmp_path / "x", state, legacy=legacy).read_bytes()
    draw, read = random.Random(0), 0
    for _ in range(500):
        damaged = bytearray(data)
        for _ in range(draw.randint(1, 3)):
            damaged[draw.randrange(len(data))] = draw.randrange(256)
        (tmp_path / "y").write_bytes(damaged[: draw.choice([len(data), len(data) - 9])])
        try:
            found = torch_pickles.read(tmp_path / "y")
        except UserError:
            continue
        read += 1
        assert sum(array.nbytes for array in found.values()) <= 10 * len(data)
    assert read > 0


def test_the_same_as_pytorch(tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is not among the packages")
    state = {"w": torch.randn(4, 3).T, "b": torch.ones(2, dtype=torch.bfloat16)}
    for new in (True, False):
        torch.save(state, tmp_path / "x", _use_new_zipfile_serialization=new)
        found = torch_pickles.read(tmp_path / "x")
        np.testing.assert_array_equal(found["w"], state["w"].numpy())
        np.testing.assert_array_equal(found["b"].astype("f4"), np.ones(2))
