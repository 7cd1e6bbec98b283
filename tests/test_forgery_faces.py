import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from configs import base
from fdftnet_jax.data import forgery_faces, images, inspection, splits, toy
from fdftnet_jax.errors import UserError


def colour(label, index):
    """A colour that tells every stub image from the others."""
    return (100 * label, index % 256, index // 256 % 256)


def write_folder(root, number=12, split="", first=0):
    for label, name in enumerate(("real", "fake")):
        folder = root / split / name / ("gan" if label else "")
        folder.mkdir(parents=True)
        for i in range(number):
            image = Image.new("RGB", (5 + i, 7), colour(label, first + i))
            image.save(folder / f"{i:02d}.png")


@pytest.fixture
def data(tmp_path):
    data = base.get_config().data
    data.cache_dir = str(tmp_path / "cache")
    data.toy_examples.update(train=3, validation=1, test=2, finetune=1)
    return data


@pytest.fixture
def folder(data, tmp_path):
    write_folder(tmp_path / "faces")
    data.name = "folder"
    data.dir = str(tmp_path / "faces")
    data.fractions.update(train=0.5, validation=0, test=0.5, finetune=0)
    return data


def start(script, data):
    """Starts a script on a config section in a process of its own."""
    script = f"""
import os, sys, ml_collections
from fdftnet_jax.data import forgery_faces
data = ml_collections.ConfigDict({data.to_dict()})
{script}"""
    command = [sys.executable, "-c", script]
    root = Path(__file__).parents[1]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=root,
    )


def run(script, data):
    """Runs it to its end: exit status, stdout and stderr."""
    process = start(script, data)
    out, err = process.communicate()
    return process.returncode, out, err


@pytest.fixture
def decoded(monkeypatch):
    """Counts the files that preparations decode, after they were inspected."""
    paths = []
    decode = images.decode

    def counting(source):
        paths.append(source)
        return decode(source)

    monkeypatch.setattr(images, "decode", counting)
    return paths


def test_folder_records(folder, tmp_path, monkeypatch):
    # Blocks that do not divide the number of images.
    monkeypatch.setattr(forgery_faces, "_BLOCK", 5)
    dataset = forgery_faces.prepare(folder)
    assert dataset.name == "faces"
    assert dataset.directory == str(tmp_path / "faces")
    assert sum(dataset.splits.values()) == 24
    assert set(dataset.splits) == {"train", "test"}
    records = dataset.source("all")
    assert len(records) == 24
    assert len(dataset.source("train")) == dataset.splits["train"]
    for record in records:
        label, index = record["label"], int(record["group"].removeprefix("gan/"))
        subfolder = "fake/gan" if label else "real"
        assert record["path"] == f"{subfolder}/{index:02d}.png"
        assert record["generator"] == ("gan" if label else "")
        image = images.decode(record["image"])
        assert image.shape == (7, 5 + index, 3), "native size"
        np.testing.assert_array_equal(image[0, 0], colour(label, index))
    assert len({record["path"] for record in records}) == 24


def test_splits_are_disjoint_and_make_up_all(folder):
    dataset = forgery_faces.prepare(folder)
    train, test, everything = (
        [record["path"] for record in dataset.source(split)]
        for split in ("train", "test", "all")
    )
    assert not set(train) & set(test)
    assert train + test == everything


def test_given_splits_are_taken_as_they_are(data, tmp_path):
    write_folder(tmp_path / "faces", 2, "train")
    write_folder(tmp_path / "faces", 3, "test", first=5)
    data.name, data.dir = "folder", str(tmp_path / "faces")
    dataset = forgery_faces.prepare(data)
    assert dataset.splits == {"train": 4, "test": 6}
    assert all(r["path"].startswith("test/") for r in dataset.source("test"))
    with pytest.raises(UserError, match=r"'validation' in faces, found train, test;"):
        dataset.source("validation")


def test_order_is_the_same_in_every_preparation(folder, tmp_path):
    first = list(forgery_faces.prepare(folder).source("all"))
    folder.cache_dir = str(tmp_path / "other_cache")
    assert list(forgery_faces.prepare(folder).source("all")) == first


def test_prepares_once(folder, decoded):
    first = forgery_faces.prepare(folder)
    assert len(decoded) == 24
    again = forgery_faces.prepare(folder)
    assert len(decoded) == 24
    assert again.fingerprint(splits.SPLITS) == first.fingerprint(splits.SPLITS)


def change_picture(data, path):
    Image.new("RGB", (9, 9), (1, 2, 3)).save(path)


def change_name(data, path):
    path.rename(path.with_name("00a.png"))


def change_class(data, path):
    path.rename(path.parents[1] / "fake/gan/00a.png")


def change_fraction(data, path):
    data.fractions.update(train=0.4, test=0.6)


def change_grouping(data, path):
    data.group_by = r"\d+"


def change_generator(data, path):
    data.generator_by = "g"


@pytest.mark.parametrize(
    "change",
    [
        change_picture,
        change_name,
        change_class,
        change_fraction,
        change_grouping,
        change_generator,
    ],
)
def test_a_change_is_another_cache_entry(folder, tmp_path, decoded, change):
    path = tmp_path / "faces" / "real" / "00.png"
    before = forgery_faces.prepare(folder, only_needed=True)
    change(folder, path)
    after = forgery_faces.prepare(folder, only_needed=True)
    assert len(decoded) == 48
    assert before.fingerprint(splits.SPLITS) != after.fingerprint(splits.SPLITS)


def change_time(path):
    os.utime(path, ns=(10**18, 10**18 + 1))
    return path.parents[1]


def change_bytes(path):
    path.write_bytes(path.read_bytes() + b"\0")
    return path.parents[1]


def change_folder(path):
    return shutil.copytree(path.parents[1], path.parents[2] / "elsewhere" / "faces")


@pytest.mark.parametrize("change", [change_time, change_bytes, change_folder])
def test_the_same_pictures_are_the_same_entry(folder, tmp_path, decoded, change):
    before = forgery_faces.prepare(folder)
    folder.dir = str(change(tmp_path / "faces/real/00.png"))
    after = forgery_faces.prepare(folder)
    assert len(decoded) == 24
    assert after.directory == folder.dir
    assert before.fingerprint(splits.SPLITS) == after.fingerprint(splits.SPLITS)


@pytest.mark.parametrize(
    ("split", "changed"),
    [("train", True), ("finetune", False), ("test", False), ("validation", True)],
)
def test_a_fingerprint_is_that_of_its_splits(data, tmp_path, split, changed):
    for i, name in enumerate(splits.SPLITS):
        write_folder(tmp_path / "faces", 2, name, first=10 * i)
    data.name, data.dir = "folder", str(tmp_path / "faces")
    used = ("train", "validation")
    before = forgery_faces.prepare(data).fingerprint(used)
    path = tmp_path / "faces" / split / "real/00.png"
    Image.new("RGB", (9, 9), (1, 2, 3)).save(path)
    after = forgery_faces.prepare(data).fingerprint(used)
    assert (before != after) == changed
    # The order of the names says nothing.
    assert forgery_faces.prepare(data).fingerprint(used[::-1]) == after


def test_nothing_else_changes_when_the_test_split_is_deleted(folder, tmp_path):
    fractions = {"train": 0.4, "validation": 0.2, "test": 0.2, "finetune": 0.2}
    folder.fractions.update(fractions)
    faces = tmp_path / "faces"
    shutil.rmtree(faces)
    write_folder(faces, 60)
    used = ("train", "validation", "finetune")
    before = forgery_faces.prepare(folder)
    records = {split: list(before.source(split)) for split in used}
    for record in before.source("test"):
        (faces / record["path"]).unlink()
    with pytest.warns(UserWarning, match="'test' of faces cannot be used: it has 0 re"):
        after = forgery_faces.prepare(folder, ("train", "validation"))
    assert set(after.splits) == set(used)
    for split in used:
        assert list(after.source(split)) == records[split], split
        assert after.fingerprint((split,)) == before.fingerprint((split,))
    assert after.fingerprint(("test",)) != before.fingerprint(("test",))
    with pytest.raises(UserError, match="'test' of faces, found 0 real and 0 fake"):
        after.source("test")


def test_deleted_folders_of_a_given_test_split_change_nothing(data, tmp_path):
    for i, name in enumerate(splits.SPLITS):
        write_folder(tmp_path / "faces", 5, name, first=10 * i)
    data.name, data.dir = "folder", str(tmp_path / "faces")
    before = list(forgery_faces.prepare(data).source("train"))
    for path in (tmp_path / "faces/test/fake/gan").iterdir():
        path.unlink()
    with pytest.warns(UserWarning, match="'test' of faces cannot be used"):
        one_sided = forgery_faces.prepare(data, ("train", "validation"))
    assert list(one_sided.source("train")) == before
    shutil.rmtree(tmp_path / "faces/test")
    gone = forgery_faces.prepare(data, ("train", "validation"))
    assert list(gone.source("train")) == before


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit])
def test_an_interrupted_preparation_is_not_taken_for_a_finished_one(
    folder, monkeypatch, interruption
):
    encode_png = images.encode_png
    calls = []

    def interrupted(image):
        calls.append(image)
        if len(calls) == 20:
            raise interruption
        return encode_png(image)

    with monkeypatch.context() as patch:
        patch.setattr(images, "encode_png", interrupted)
        with pytest.raises(interruption):
            forgery_faces.prepare(folder)
    assert len(forgery_faces.prepare(folder).source("all")) == 24


def test_what_a_killed_preparation_leaves_is_not_taken_for_a_set(folder):
    # A killed process cannot tidy up. This one dies after the first split is written.
    script = """
config = forgery_faces.FolderConfig
image = config.image
config.image = lambda self, split, i: (
    os.kill(os.getpid(), 9) if split == "test" else image(self, split, i)
)
forgery_faces.prepare(data)
"""
    assert run(script, folder)[0] == -9
    cache = Path(folder.cache_dir)
    assert list(cache.glob("**/*.array_record*")) and list(cache.rglob("incomplete.*"))
    dataset = forgery_faces.prepare(folder)
    assert len(list(dataset.source("all"))) == 24
    assert not list(cache.rglob("incomplete.*"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"fake/gan/03\.png: empty; replace"),
        (None, r"fake/gan/03\.png: No such file"),
        (
            images.encode_png(np.zeros((9, 9, 3), np.uint8)),
            r"fake/gan/03\.png to stay as it is while it is read, found another",
        ),
    ],
)
def test_a_file_that_changes_after_the_inspection(
    folder, tmp_path, monkeypatch, content, message
):
    path = tmp_path / "faces/fake/gan/03.png"
    before = path.read_bytes()
    inspect = inspection.inspect

    def and_change(*arguments):
        findings = inspect(*arguments)
        path.unlink() if content is None else path.write_bytes(content)
        return findings

    with monkeypatch.context() as patch:
        patch.setattr(inspection, "inspect", and_change)
        with pytest.raises(UserError, match=message):
            forgery_faces.prepare(folder)
    path.write_bytes(before)
    assert len(forgery_faces.prepare(folder).source("all")) == 24


def test_a_second_process_waits_for_the_first(folder, tmp_path):
    """And finds the images ready."""
    slow = f"""
import time
image = forgery_faces.FolderConfig.image
def slow(self, split, i):
    sys.stderr.write("preparing\\n")
    while not os.path.exists({str(tmp_path / "go")!r}):
        time.sleep(0.01)
    return image(self, split, i)
forgery_faces.FolderConfig.image = slow
"""
    use = "print(len(forgery_faces.prepare(data).source('all')))"
    first = start(slow + use, folder)
    try:
        assert first.stderr.readline() == "preparing\n"
        second = start(use, folder)
        said = second.stderr.readline()
    finally:
        (tmp_path / "go").touch()
        prepared, found = first.communicate()[0], second.communicate()[0]
    assert prepared == found == "24\n"
    assert said == (
        f"waiting for process {first.pid}, which prepares the same images\n"
    )


def test_a_cache_that_cannot_be_written(folder, tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(UserError, match=r"choose another config\.data\.cache_dir"):
        forgery_faces.prepare(folder)


def test_default_cache(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    folder.cache_dir = ""
    forgery_faces.prepare(folder)
    assert len(list((tmp_path / "xdg/fdftnet_jax").glob("**/dataset_info.json"))) == 1
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    forgery_faces.prepare(folder)
    assert list((tmp_path / "home/.cache/fdftnet_jax").glob("**/dataset_info.json"))


def test_prints_nothing_away_from_a_terminal_and_needs_no_tensorflow(folder):
    script = """
for _ in range(2):
    forgery_faces.prepare(data).source("all")[0]
assert "tensorflow" not in sys.modules
"""
    assert run(script, folder) == (0, "", "")


def test_a_terminal_sees_progress(folder, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    forgery_faces.prepare(folder)
    out, err = capsys.readouterr()
    assert "train: 100%" in err and "test: 100%" in err and not out


def test_an_empty_split_is_an_error_where_it_is_needed(folder):
    folder.fractions.update(train=0.5, test=0.5 - 1e-9, finetune=1e-9)
    with pytest.raises(UserError, match="'finetune' of faces, found 0 real and 0 fake"):
        forgery_faces.prepare(folder, needed=["finetune"])
    with pytest.warns(UserWarning, match="'finetune' of faces cannot be used: it has"):
        forgery_faces.prepare(folder, needed=["train"])
    dataset = forgery_faces.prepare(folder, needed=["all"], only_needed=True)
    assert len(dataset.source("all")) == 24


def test_a_split_without_one_class_is_an_error(folder, tmp_path):
    for path in (tmp_path / "faces/fake/gan").iterdir():
        if path.name != "00.png":
            path.unlink()
    lacking = (
        "test" if splits.split_of("gan/00", folder.fractions) == "train" else "train"
    )
    with pytest.raises(
        UserError, match=f"{lacking!r} of faces, found \\d+ real and 0 f"
    ):
        forgery_faces.prepare(folder, (lacking,), only_needed=True)


def test_an_unknown_way_with_duplicates(folder):
    folder.duplicates = "ignore"
    with pytest.raises(UserError, match="'error' or 'drop', found 'ignore'"):
        forgery_faces.prepare(folder)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("name", "video", "'folder' or 'toy', found 'video'"),
        ("dir", "", "--config.data.dir=PATH"),
        ("dir", "/nowhere/at/all", "'/nowhere/at/all', found nothing"),
    ],
)
def test_config_errors(folder, field, value, message):
    folder[field] = value
    with pytest.raises(UserError, match=message):
        forgery_faces.prepare(folder)


def test_unknown_split(folder):
    with pytest.raises(UserError, match="found 'dev'"):
        forgery_faces.prepare(folder).source("dev")


@pytest.fixture
def stub_toy(monkeypatch):
    """Replaces pictures by records of the arguments they are made from."""
    made = []

    def real(seed, index):
        made.append(("real", seed, index))
        return np.full((64, 64, 3), len(made), np.uint8)

    def fake(family, seed, index):
        made.append((family, seed, index))
        return np.full((64, 64, 3), len(made), np.uint8)

    monkeypatch.setattr(toy, "real_image", real)
    monkeypatch.setattr(toy, "fake_image", fake)
    return made


def test_toy_records(data, stub_toy):
    data.toy_seed = 5
    dataset = forgery_faces.prepare(data)
    assert (dataset.name, dataset.directory) == ("toy-both", "")
    assert dataset.splits == {"train": 6, "validation": 2, "test": 4, "finetune": 2}
    records = {r["path"]: r for r in dataset.source("train")}
    assert set(records) == {
        *(f"train/real/{i:06d}" for i in range(3)),
        "train/fake/upsampled/000000",
        "train/fake/blended/000001",
        "train/fake/upsampled/000002",
    }
    blended = records["train/fake/blended/000001"]
    assert (blended["label"], blended["generator"]) == (1, "blended")
    assert records["train/real/000001"]["label"] == 0
    # No picture is used twice, neither within a split nor in two of them.
    assert len(set(stub_toy)) == len(stub_toy) == 14
    assert {seed for _, seed, _ in stub_toy} == {5}


def test_toy_of_one_family(data, stub_toy):
    data.family = "blended"
    assert forgery_faces.prepare(data).name == "toy-blended"
    assert {family for family, _, _ in stub_toy} == {"real", "blended"}


@pytest.mark.parametrize(
    "change", [{"toy_seed": 1}, {"family": "blended"}, {"version": 10**6}, {"train": 4}]
)
def test_toy_parameters_are_part_of_the_cache_entry(
    data, stub_toy, monkeypatch, change
):
    forgery_faces.prepare(data)
    number = len(stub_toy)
    forgery_faces.prepare(data)
    assert len(stub_toy) == number
    for key, value in change.items():
        if key == "version":
            monkeypatch.setattr(toy, "VERSION", value)
        elif key == "train":
            data.toy_examples.train = value
        else:
            data[key] = value
    forgery_faces.prepare(data)
    assert len(stub_toy) > number


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("family", "swapped", "both, upsampled, blended, found 'swapped'"),
        ("toy_examples", {"train": -1}, "of 0 or more"),
        ("toy_examples", {"dev": 1}, "of 0 or more"),
        ("toy_examples", {"train": 0}, "of 0 or more"),
    ],
)
def test_toy_errors(data, field, value, message):
    data[field] = value
    with pytest.raises(UserError, match=message):
        forgery_faces.prepare(data)


def test_a_toy_s_fingerprint_is_that_of_its_splits(data, stub_toy):
    before = forgery_faces.prepare(data)
    data.toy_examples.test = 5
    after = forgery_faces.prepare(data)
    used = ("train", "validation")
    assert after.fingerprint(used) == before.fingerprint(used)
    assert after.fingerprint(("test",)) != before.fingerprint(("test",))
    data.toy_seed = 1
    assert forgery_faces.prepare(data).fingerprint(used) != before.fingerprint(used)


def test_the_real_toy(data):
    dataset = forgery_faces.prepare(data)
    for record in dataset.source("train"):
        index = int(record["path"][-6:])
        if record["label"]:
            expected = toy.fake_image(record["generator"], 0, index)
        else:
            expected = toy.real_image(0, index)
        np.testing.assert_array_equal(images.decode(record["image"]), expected)
