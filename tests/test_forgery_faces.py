"""A folder as a data set: records, splits, fingerprints, mistakes."""

import os
import shutil

import cv2
import numpy as np
import pytest
from PIL import Image
from prepared_folders import colour, entries, write_folder

from fdftnet_jax import datasets
from fdftnet_jax.data import forgery_faces, images, splits
from fdftnet_jax.errors import UserError


def test_folder_records(folder, tmp_path, monkeypatch):
    # Blocks that do not divide the number of images.
    monkeypatch.setattr(forgery_faces, "_BLOCK", 5)
    dataset = datasets.prepare(folder)
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


@pytest.mark.parametrize("remembered", [False, True])
def test_a_record_is_what_an_independent_reader_sees(folder, tmp_path, remembered):
    rng = np.random.default_rng(0)
    for name, shape in (("real", (33, 20, 3)), ("fake", (1, 1, 3)), ("fake", (9, 64))):
        noise = Image.fromarray(rng.integers(0, 256, shape, np.uint8))
        for suffix in ("png", "jpg"):
            noise.save(tmp_path / "faces" / name / f"{shape[0]}.{suffix}")
    if remembered:
        # The scan has been made; the records of other splits have not.
        datasets.prepare(folder)
        folder.fractions.update(train=0.6, test=0.4)
    records = datasets.prepare(folder).source("all")
    assert len(records) == 30
    for record in records:
        path = str(tmp_path / "faces" / record["path"])
        written = cv2.imdecode(np.frombuffer(record["image"], np.uint8), -1)
        np.testing.assert_array_equal(written, cv2.imread(path, cv2.IMREAD_COLOR))


def test_splits_are_disjoint_and_make_up_all(folder):
    dataset = datasets.prepare(folder)
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
    dataset = datasets.prepare(data)
    assert dataset.splits == {"train": 4, "test": 6}
    assert all(r["path"].startswith("test/") for r in dataset.source("test"))
    with pytest.raises(UserError, match=r"'validation' in faces, found train, test;"):
        dataset.source("validation")


def test_order_is_the_same_in_every_preparation(folder, tmp_path):
    first = list(datasets.prepare(folder).source("all"))
    folder.cache_dir = str(tmp_path / "other_cache")
    assert list(datasets.prepare(folder).source("all")) == first


def test_a_preparation_decodes_every_file_once_and_a_second_none(folder, decoded):
    first = datasets.prepare(folder)
    assert len(decoded) == len(set(decoded)) == 24
    again = datasets.prepare(folder)
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
def test_a_change_is_another_cache_entry(folder, tmp_path, change):
    path = tmp_path / "faces" / "real" / "00.png"
    before = datasets.prepare(folder, only_needed=True)
    change(folder, path)
    after = datasets.prepare(folder, only_needed=True)
    assert len(entries(folder)) == 2
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
def test_the_same_pictures_are_the_same_entry(folder, tmp_path, change):
    before = datasets.prepare(folder)
    folder.dir = str(change(tmp_path / "faces/real/00.png"))
    after = datasets.prepare(folder)
    assert len(entries(folder)) == 1
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
    before = datasets.prepare(data).fingerprint(used)
    path = tmp_path / "faces" / split / "real/00.png"
    Image.new("RGB", (9, 9), (1, 2, 3)).save(path)
    after = datasets.prepare(data).fingerprint(used)
    assert (before != after) == changed
    # The order of the names says nothing.
    assert datasets.prepare(data).fingerprint(used[::-1]) == after


def test_nothing_else_changes_when_the_test_split_is_deleted(folder, tmp_path):
    fractions = {"train": 0.4, "validation": 0.2, "test": 0.2, "finetune": 0.2}
    folder.fractions.update(fractions)
    faces = tmp_path / "faces"
    shutil.rmtree(faces)
    write_folder(faces, 60)
    used = ("train", "validation", "finetune")
    before = datasets.prepare(folder)
    records = {split: list(before.source(split)) for split in used}
    for record in before.source("test"):
        (faces / record["path"]).unlink()
    with pytest.warns(UserWarning, match="'test' of faces cannot be used: it has 0 re"):
        after = datasets.prepare(folder, ("train", "validation"))
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
    before = list(datasets.prepare(data).source("train"))
    for path in (tmp_path / "faces/test/fake/gan").iterdir():
        path.unlink()
    with pytest.warns(UserWarning, match="'test' of faces cannot be used"):
        one_sided = datasets.prepare(data, ("train", "validation"))
    assert list(one_sided.source("train")) == before
    shutil.rmtree(tmp_path / "faces/test")
    gone = datasets.prepare(data, ("train", "validation"))
    assert list(gone.source("train")) == before


def test_an_empty_split_is_an_error_where_it_is_needed(folder):
    folder.fractions.update(train=0.5, test=0.5 - 1e-9, finetune=1e-9)
    with pytest.raises(UserError, match="'finetune' of faces, found 0 real and 0 fake"):
        datasets.prepare(folder, needed=["finetune"])
    with pytest.warns(UserWarning, match="'finetune' of faces cannot be used: it has"):
        datasets.prepare(folder, needed=["train"])
    dataset = datasets.prepare(folder, needed=["all"], only_needed=True)
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
        datasets.prepare(folder, (lacking,), only_needed=True)


def test_an_unknown_way_with_duplicates(folder):
    folder.duplicates = "ignore"
    with pytest.raises(UserError, match="'error' or 'drop', found 'ignore'"):
        datasets.prepare(folder)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("name", "video", "one of folder, toy, pggan, .*, found 'video'"),
        ("dir", "", "--config.data.dir=PATH"),
        ("dir", "/nowhere/at/all", "'/nowhere/at/all', found nothing"),
    ],
)
def test_config_errors(folder, field, value, message):
    folder[field] = value
    with pytest.raises(UserError, match=message):
        datasets.prepare(folder)


def test_unknown_split(folder):
    with pytest.raises(UserError, match="found 'dev'"):
        datasets.prepare(folder).source("dev")
