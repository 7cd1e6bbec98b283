"""`fdftnet predict --parquet`: shards of results that are resumed."""

import collections
import csv
import dataclasses
import json
import os
import signal

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from stand_in import StandIn, predict

import fdftnet_jax
from fdftnet_jax.errors import Interrupted, UserError
from fdftnet_jax.prediction import inputs, stream
from fdftnet_jax.prediction.results import Row
from fdftnet_jax.scale import apart, run, shards, storage


@pytest.fixture(autouse=True)
def detector(monkeypatch):
    """A stand-in that the commands load."""
    detector = StandIn()
    monkeypatch.setattr(
        fdftnet_jax, "load", lambda path, program: detector, raising=False
    )
    return detector


@pytest.fixture
def pictures(tmp_path):
    """A folder of 23 pictures of many colours, two of them damaged."""
    folder = tmp_path / "in"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(23):
        pixels = rng.integers(0, 256, 3) * np.ones((34, 36, 3))
        pixels[:4] = 128
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i:02d}.png")
    (folder / "05.png").write_bytes(b"no picture")
    (folder / "21.png").write_bytes((folder / "21.png").read_bytes()[:60])
    return folder


def table(out):
    return pq.read_table(f"{out}/rows")


def as_csv(found):
    """The rows of a table as `csv.DictReader` gives those of --csv."""

    def text(value):
        if value is None:
            return ""
        return f"{value:.9g}" if isinstance(value, float) else str(value)

    return [{k: text(v) for k, v in row.items()} for row in found.to_pylist()]


def csv_rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("size", [1, 5, 23, 1000])
def test_the_rows_are_those_of_csv(tmp_path, pictures, size):
    assert predict(pictures, tmp_path / "gone.png", "--csv", tmp_path / "a.csv") == 0
    out = tmp_path / "out"
    arguments = (pictures, tmp_path / "gone.png", "--parquet", out)
    assert predict(*arguments, "--shard-size", size) == 0
    assert as_csv(table(out)) == csv_rows(tmp_path / "a.csv")
    parts = sorted(os.listdir(out / "rows"))
    assert parts == sorted(os.listdir(out / "inputs"))
    counts = [pq.read_metadata(out / "rows" / name).num_rows for name in parts]
    assert counts == [size] * (24 // size) + [24 % size] * bool(24 % size)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["complete"] and manifest["inputs"] == 24
    assert manifest["detector"]["sha256"] == StandIn.digest
    verdicts = collections.Counter(table(out)["verdict"].to_pylist())
    assert {v: manifest["summary"][v] for v in verdicts} == verdicts
    assert sum(manifest["summary"]["reasons"].values()) == verdicts["undecided"] == 3


def test_types_are_the_same_whatever_the_values_are(tmp_path, pictures):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_bytes(b"")
    assert predict(tmp_path / "bad", "--parquet", tmp_path / "1") == 3
    assert predict(pictures, "--parquet", tmp_path / "2") == 0
    one, two = (pq.read_schema(next((tmp_path / n / "rows").iterdir())) for n in "12")
    assert one.equals(two) and one.equals(shards.SCHEMA)


@pytest.mark.parametrize("at", range(5))
def test_what_was_stopped_goes_on_with_every_input_once(
    tmp_path, pictures, monkeypatch, at
):
    out, write = tmp_path / "out", storage.Store.write
    written = []

    def stopping(self, name, data):
        if name.startswith("rows"):
            written.append(name)
            if len(written) == at + 1:
                raise KeyboardInterrupt
        write(self, name, data)

    command = (pictures, "--parquet", out, "--shard-size", 5)
    with monkeypatch.context() as patch:
        patch.setattr(storage.Store, "write", stopping)
        with pytest.raises(Interrupted, match="the same command goes on"):
            predict(*command)
    before = {p.name: p.stat().st_mtime_ns for p in (out / "rows").glob("*")}
    assert len(before) == at
    (out / "rows").mkdir(exist_ok=True)
    (out / "rows" / ".part-0000004.parquet.123").write_bytes(b"PAR1")
    # What was not in the list is not in the results.
    (pictures / "00a.png").write_bytes((pictures / "00.png").read_bytes())
    assert predict(*command) == 0
    (pictures / "00a.png").unlink()
    assert predict(pictures, "--csv", tmp_path / "a.csv") == 0
    assert as_csv(table(out)) == csv_rows(tmp_path / "a.csv")
    after = {p.name: p.stat().st_mtime_ns for p in (out / "rows").glob("*")}
    assert before.items() <= after.items()
    assert len(os.listdir(out / "rows")) == 5
    # All is there: nothing is written any more.
    assert predict(*command) == 0
    assert {p.name: p.stat().st_mtime_ns for p in (out / "rows").glob("*")} == after


def test_a_list_that_was_not_completed_is_made_anew(tmp_path, pictures, monkeypatch):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(shards, "write_manifest", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            predict(pictures, "--parquet", out, "--shard-size", 2)
    assert predict(pictures, "--parquet", out, "--shard-size", 20) == 0
    assert len(os.listdir(out / "inputs")) == 2
    assert table(out).num_rows == 23


def test_another_detector_or_other_options_are_refused(tmp_path, pictures, detector):
    out = tmp_path / "out"
    assert predict(pictures, "--parquet", out) == 0
    for other in (
        [pictures, pictures],
        [pictures, "--threshold", 0.3],
        [pictures, "--shard-size", 7],
        [pictures, "--faces", "crop"],
    ):
        with pytest.raises(UserError, match="another command"):
            predict(*other, "--parquet", out)
    detector.digest = "1" * 64
    with pytest.raises(UserError, match="sha256"):
        predict(pictures, "--parquet", out)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("")
    with pytest.raises(UserError, match=r"mine\.txt"):
        predict(pictures, "--parquet", tmp_path / "other")


def test_two_commands_do_not_write_to_one_folder(tmp_path, pictures):
    with (
        run._held(storage.Store(str(tmp_path / "out"))),
        pytest.raises(UserError, match=str(os.getpid())),
    ):
        predict(pictures, "--parquet", tmp_path / "out")


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_other_columns_of_a_table_are_carried_through(tmp_path, pictures, suffix):
    paths = [str(path) for path in sorted(pictures.iterdir())]
    given = pa.table({"file": paths, "id": [*range(23)], "score": ["a"] * 23})
    name = tmp_path / f"list.{suffix}"
    if suffix == "csv":
        pa.csv.write_csv(given, name)
    else:
        pq.write_table(given, name, row_group_size=4)
    command = (name, "--parquet", tmp_path / "out", "--shard-size", 6)
    with pytest.raises(UserError, match="--path-column"):
        predict(*command)
    pattern = tmp_path / f"l?st.{suffix}"
    assert predict(pattern, *command[1:], "--path-column", "file") == 0
    found = table(tmp_path / "out")
    assert found["path"].to_pylist() == paths
    ids = [str(i) if suffix == "csv" else i for i in range(23)]
    assert found["id"].to_pylist() == ids
    assert set(found["input_score"].to_pylist()) == {"a"}
    assert found.column_names[-2:] == ["id", "input_score"]
    with pytest.raises(UserError, match="two commands"):
        predict(name, pictures, "--parquet", tmp_path / "out2")


def test_a_row_of_a_table_without_a_path_has_a_reason(tmp_path, pictures):
    name = tmp_path / "list.parquet"
    pq.write_table(pa.table({"path": [None, str(pictures / "00.png"), ""]}), name)
    assert predict(name, "--parquet", tmp_path / "out") == 0
    reasons = table(tmp_path / "out")["reason"].to_pylist()
    assert reasons == ["no path in the table", "", "no path in the table"]


@pytest.mark.parametrize("scheme", ["memory", "file"])
def test_inputs_and_results_at_addresses(tmp_path, pictures, scheme):
    root = "memory://bucket" if scheme == "memory" else f"file://{tmp_path}/bucket"
    system, inside = fsspec.core.url_to_fs(root)
    for path in pictures.iterdir():
        system.makedirs(f"{inside}/deep", exist_ok=True)
        system.pipe(f"{inside}/deep/{path.name}", path.read_bytes())
    system.pipe(f"{inside}/deep/.hidden.png", b"")
    system.pipe(f"{inside}/notes.txt", b"")
    try:
        command = (root, f"{root}/gone.png", f"{root}/deep/0?.png")
        assert predict(*command, "--parquet", f"{root}-out", "--shard-size", 9) == 0
        assert predict(*command, "--parquet", f"{root}-out", "--shard-size", 9) == 0
        names = sorted(system.ls(f"{inside}-out/rows", detail=False))
        assert [name.rsplit("/", 1)[1] for name in names] == [
            f"part-{number:07d}.parquet" for number in range(4)
        ]
        found = pa.concat_tables(
            pq.read_table(pa.BufferReader(system.cat(name))) for name in names
        )
    finally:
        if scheme == "memory":
            system.rm(f"{inside}-out", recursive=True)
            system.rm(inside, recursive=True)
    paths = [f"{root}/deep/{path.name}" for path in sorted(pictures.iterdir())]
    assert found["path"].to_pylist() == [*paths, f"{root}/gone.png", *paths[:10]]
    assert predict(pictures, "--csv", tmp_path / "a.csv") == 0
    logits = [row["logit"] for row in csv_rows(tmp_path / "a.csv")]
    assert [row["logit"] for row in as_csv(found)[:23]] == logits


@pytest.mark.parametrize(("failures", "judged"), [(2, True), (3, False)])
def test_a_file_that_cannot_be_fetched_is_tried_again(
    tmp_path, pictures, monkeypatch, failures, judged
):
    system, _ = fsspec.core.url_to_fs("memory://one.png")
    system.pipe("/one.png", (pictures / "00.png").read_bytes())
    tried, locate = [], storage.locate

    def failing(path):
        if path.endswith("one.png"):
            tried.append(path)
            # (The first is asked whether it is a folder.)
            if 1 < len(tried) <= failures + 1:
                raise OSError("no network")
        return locate(path)

    monkeypatch.setattr(storage, "locate", failing)
    monkeypatch.setattr(storage, "_PAUSES", (0.0, 0.0))
    code = predict("memory://one.png", "--parquet", tmp_path / "out")
    system.rm("/one.png")
    assert code == (0 if judged else 3)
    reason = "" if judged else "no network"
    assert table(tmp_path / "out")["reason"].to_pylist() == [reason]
    assert len(tried) == 4


def test_a_storage_that_refuses_is_a_line(tmp_path, pictures, monkeypatch):
    def refuse(self, name, data):
        raise OSError("When uploading part: AWS Error")

    out = tmp_path / "out"
    assert predict(pictures, "--parquet", out) == 0
    (out / "rows" / "part-0000000.parquet").unlink()
    monkeypatch.setattr(storage.Store, "write", refuse)
    with pytest.raises(UserError, match="AWS Error; once"):
        predict(pictures, "--parquet", out)


def test_an_address_of_unknown_storage_is_a_mistake(tmp_path, pictures):
    with pytest.raises(UserError, match="nothing-like-it"):
        predict(pictures, "--parquet", "nothing-like-it://x/y")


class Killing(apart.Reading):
    """Reads as usual, and dies at some names."""

    def reader(self, *, in_a_process=False):
        reader = super().reader(in_a_process=in_a_process)

        def read(item):
            if "poison" in item.path:
                os.kill(os.getpid(), signal.SIGSEGV)
            return reader(item)

        return read


def test_a_picture_that_kills_its_reader_has_a_reason(tmp_path, pictures, detector):
    (pictures / "poison.png").write_bytes(b"")
    reading = Killing(detector.preprocessing, None, "")
    paths = sorted(map(str, pictures.iterdir()))
    items = [inputs.Item(path, inputs.IMAGE) for path in paths]
    contents = dict(apart.read(reading, items, processes=2))
    assert sorted(contents) == [*range(24)]
    assert [i for i in contents if "SIGSEGV" in contents[i].reason] == [23]
    ordinary = stream.Reader(detector.preprocessing, find=None, video=None)
    for number in range(23):
        expected = ordinary(items[number])
        assert contents[number].reason == expected.reason
        np.testing.assert_array_equal(contents[number].views, expected.views)


def test_a_shard_that_was_begun_twice_is_read_apart(tmp_path, pictures, monkeypatch):
    out = tmp_path / "out"
    command = (pictures, "--parquet", out, "--shard-size", 8)
    for attempt in (1, 2):
        with monkeypatch.context() as patch:
            # As if the process had been killed in the second shard.
            patch.setattr(
                stream.Reader,
                "picture",
                lambda self, path, picture=stream.Reader.picture: (
                    1 / 0 if path.endswith("12.png") else picture(self, path)
                ),
            )
            with pytest.raises(ZeroDivisionError):
                predict(*command, "--debug", "--workers", 1)
        assert (out / "attempts" / "part-0000001").read_bytes() == b"." * attempt
    apart_read, read = [], apart.read
    monkeypatch.setattr(
        apart, "read", lambda *a: apart_read.append(len(a[1])) or read(*a)
    )
    assert predict(*command) == 0
    assert apart_read and not (out / "attempts").exists()
    assert predict(pictures, "--csv", tmp_path / "a.csv") == 0
    assert as_csv(table(out)) == csv_rows(tmp_path / "a.csv")


def test_a_shard_with_a_row_too_few_or_too_many_is_not_written(tmp_path):
    store = storage.Store(str(tmp_path))
    manifest = shards.Manifest({"sha256": ""}, {}, "crop", {}, "", shard_size=2)
    items = [inputs.Item(name, inputs.IMAGE) for name in "abc"]
    work, _ = shards.prepare(
        store, manifest, lambda: shards.input_tables(items, 2), dict
    )
    face = Row("a", "image", face=0)
    two = [Row("a", "image"), face, face._replace(face=1)]
    for bad in ([(0, two)], [(0, two), (1, two), (1, two)], [(1, two), (2, two)]):
        with pytest.raises(RuntimeError, match="rows of"):
            work.write(0, shards.result_table(bad))
    assert work.missing() == [0, 1]
    counts = work.write(0, shards.result_table([(1, [Row("b", "image")]), (0, two)]))
    assert (counts.inputs, counts.rows) == (2, 4)
    found = table(tmp_path)
    assert found["path"].to_pylist() == ["a", "a", "a", "b"]
    assert found["face"].to_pylist() == [None, 0, 1, None]
    assert work.missing() == [1] and work.counts(0) == counts
    (tmp_path / "rows" / "part-0000001.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match="part-0000001"):
        work.counts(1)


def test_progress_says_rate_time_left_and_reasons():
    now = [0.0]
    progress = run.Progress(1000, clock=lambda: now[0])
    before = shards.Counts(inputs=200, rows=210)
    before.reasons["empty"] = 3
    progress.resume(before)
    now[0] = 20.0
    progress.advance(100)
    assert progress.line() == (
        "300 of 1,000 inputs (30.0%), 5/s, 2.3 min left; 210 rows written; "
        "not judged: 3 empty"
    )


@pytest.mark.parametrize(
    "options",
    [("--replace",), ("--plots", "p"), ("--explain", "e"), ("--ray-actors", "2")],
)
def test_options_that_do_not_go_together(tmp_path, pictures, options):
    with pytest.raises(UserError, match=options[0]):
        predict(pictures, "--parquet", tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()


def test_a_manifest_is_read_as_it_was_written(tmp_path):
    store = storage.Store(str(tmp_path))
    name = os.fsdecode(b"\xff")
    manifest = shards.Manifest(
        {"name": "x"}, {"value": 0.5}, "whole", {"paths": [name]}, name, 10, 25
    )
    shards.write_manifest(store, manifest)
    assert shards.read_manifest(store) == manifest
    assert manifest.shards == 3
    other = dataclasses.replace(manifest, options={"paths": ["b"]}, summary={})
    assert [text.split()[0] for text in manifest.differences(other)] == ["paths"]
