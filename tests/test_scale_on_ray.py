"""`fdftnet predict --parquet --ray`, on Ray on this machine.

What needs Ray itself is skipped where it is not installed: with pandas it takes 300 MB,
so the tests do not bring it (`pip install '.[ray]'`).
"""

import csv
import importlib.util
import os
import signal
import sys
import types
import warnings
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from stand_in import predict

from fdftnet_jax.data import toy
from fdftnet_jax.errors import UserError
from fdftnet_jax.prediction import inputs
from fdftnet_jax.scale import apart, on_ray

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None,
    reason="Ray is not installed: pip install 'fdftnet_jax[ray]'",
)


@pytest.mark.parametrize("kinds", ["", "i", "v", "iii", "vv", "iviiiv", "i" * 9])
def test_pieces_hold_every_input_once_and_videos_alone(monkeypatch, kinds):
    monkeypatch.setattr(on_ray, "PIECE", 3)
    items = [
        inputs.Item(str(i), inputs.VIDEO if kind == "v" else inputs.IMAGE)
        for i, kind in enumerate(kinds)
    ]
    found = on_ray.pieces(7, items)
    spans = [range(start, stop) for _, start, stop in found]
    assert [i for span in spans for i in span] == [*range(len(kinds))]
    for span in spans:
        assert 1 <= len(span) <= 3
        assert len(span) == 1 or "v" not in kinds[span.start : span.stop]
    if kinds == "i" * 9:
        assert len(found) == 3


def options(actors=0, gpus=None):
    return SimpleNamespace(ray_actors=actors, ray_gpus=gpus)


@pytest.mark.parametrize(
    ("given", "resources", "nodes", "expected"),
    [
        (options(), {"CPU": 2}, 1, (1, 0)),
        (options(), {"CPU": 64}, 4, (4, 0)),
        (options(), {"CPU": 64, "GPU": 8}, 1, (8, 1)),
        (options(gpus=0.5), {"CPU": 64, "GPU": 2}, 1, (4, 0.5)),
        (options(3, 0), {"CPU": 8, "GPU": 2}, 1, (3, 0)),
    ],
)
def test_a_network_for_each_device(given, resources, nodes, expected):
    assert on_ray._sized(given, resources, nodes) == expected


@pytest.mark.parametrize(
    ("given", "resources", "message"),
    [
        (options(2, 1), {"CPU": 16, "GPU": 1}, "2 GPUs"),
        (options(gpus=1), {"CPU": 16}, "1 GPUs"),
    ],
)
def test_a_cluster_that_is_too_small_is_refused(given, resources, message):
    with pytest.raises(UserError, match=message):
        on_ray._sized(given, resources, 1)


def test_without_ray_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install 'fdftnet_jax\[ray\]'"):
        predict(tmp_path, "--parquet", tmp_path / "out", "--ray", detector="toy")
    assert not (tmp_path / "out").exists()


class _FakeRay(types.ModuleType):
    """Ray that starts, or joins a cluster, at the last of some attempts."""

    def __init__(self, failures):
        super().__init__("ray")
        self.data = types.ModuleType("ray.data")
        self.failures = list(failures)
        self.addresses, self.running = [], False

    def is_initialized(self):
        return self.running

    def init(self, address, **_):
        assert not self.running
        self.addresses.append(address)
        self.running = True
        if self.failures:
            raise self.failures.pop(0)

    def shutdown(self):
        self.running = False


@pytest.mark.parametrize(
    ("address", "failures", "attempts", "message"),
    [
        ("", [], 1, None),
        # So say Ray's processes when the machine is busy with other work.
        ("", [Exception("timed out")], 2, None),
        ("", [RuntimeError("one"), Exception("two")], 2, "start.*Exception: two"),
        ("there:6379", [], 1, None),
        ("there:6379", [ConnectionError("none")], 1, "join Ray at there:6379"),
    ],
)
def test_a_start_of_ray(address, failures, attempts, message, monkeypatch):
    """Twice on this machine, where it may be slow to come up; a cluster once."""
    fake = _FakeRay(failures)
    monkeypatch.setitem(sys.modules, "ray", fake)
    monkeypatch.setitem(sys.modules, "ray.data", fake.data)
    monkeypatch.setenv("RAY_ADDRESS", address)
    if message:
        with pytest.raises(UserError, match=message), on_ray.connected():
            pass
    else:
        with on_ray.connected():
            assert fake.running
        assert not fake.running
    assert fake.addresses == [address or "local"] * attempts


@pytest.fixture(scope="module")
def ray():
    """Ray with two CPUs on this machine."""
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore")
        # Workers find the classes of this module.
        here = os.path.dirname(__file__)
        patch.setenv("PYTHONPATH", here, prepend=os.pathsep)
        with on_ray.connected():
            yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """40 pictures of the toy, 3 of them damaged."""
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(40):
        draw = toy.fake_image if i % 2 else lambda _, *seeds: toy.real_image(*seeds)
        Image.fromarray(draw("upsampled", 0, i)).save(folder / f"{i:02d}.png")
    for i in (3, 17, 39):
        (folder / f"{i:02d}.png").write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="module")
def expected(folder):
    """The rows of --csv, which has another way from files to rows."""
    assert predict(folder, "--csv", folder / "a.csv", detector="toy") == 0
    with open(folder / "a.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    (folder / "a.csv").unlink()
    return rows


def compare(out, expected):
    found = pq.read_table(out / "rows").to_pylist()
    assert [row["path"] for row in found] == [row["path"] for row in expected]
    assert [row["verdict"] for row in found] == [row["verdict"] for row in expected]
    for row, other in zip(found, expected, strict=True):
        if "poison" not in row["path"]:
            assert row["reason"] == other["reason"]
        if other["logit"]:
            assert row["logit"] == pytest.approx(float(other["logit"]), abs=1e-5)
    return found


class Killing(apart.Reading):
    """Reads as usual, and dies at some names."""

    def reader(self, *, in_a_process=False):
        reader = super().reader(in_a_process=in_a_process)

        def read(item):
            if "poison" in item.path:
                os.kill(os.getpid(), signal.SIGKILL)
            return reader(item)

        return read


@needs_ray
@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
def test_the_rows_are_those_of_csv_and_are_resumed(
    tmp_path, ray, folder, expected, monkeypatch
):
    monkeypatch.setattr(on_ray, "PIECE", 4)
    out = tmp_path / "out"
    command = (folder, "--parquet", out, "--shard-size", 9, "--ray")
    assert predict(*command, detector="toy") == 0
    compare(out, expected)
    kept = out / "rows" / "part-0000001.parquet"
    before = kept.stat().st_mtime_ns
    for number in (0, 4):
        (out / "rows" / f"part-{number:07d}.parquet").unlink()
    assert predict(*command, detector="toy") == 0
    compare(out, expected)
    assert kept.stat().st_mtime_ns == before


@needs_ray
@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
def test_what_kills_its_reader_has_a_reason_and_stops_nothing(
    tmp_path, ray, folder, expected, monkeypatch
):
    monkeypatch.setattr(on_ray, "PIECE", 4)
    monkeypatch.setattr(apart, "Reading", Killing)
    poison = folder / "poison.png"
    poison.write_bytes((folder / "00.png").read_bytes())
    try:
        out = tmp_path / "out"
        command = (folder, "--parquet", out, "--shard-size", 15, "--ray")
        assert predict(*command, detector="toy") == 0
    finally:
        poison.unlink()
    row = {"path": str(poison), "verdict": "undecided", "logit": ""}
    found = compare(out, [*expected, row])
    assert "SIGKILL" in found[-1]["reason"] and "3 times" in found[-1]["reason"]


@needs_ray
@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
def test_what_is_wrong_with_all_files_ends_the_command(
    tmp_path, ray, folder, monkeypatch
):
    class Failing(apart.Reading):
        def reader(self, *, in_a_process=False):
            raise UserError("no face detector here")

    monkeypatch.setattr(apart, "Reading", Failing)
    with pytest.raises(UserError, match="no face detector"):
        predict(folder, "--parquet", tmp_path / "out", "--ray", detector="toy")
    assert not np.any([*(tmp_path / "out").glob("rows/part*")])
