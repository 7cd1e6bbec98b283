import csv
import itertools
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from configs import base
from fdftnet_jax import datasets
from fdftnet_jax.data import leaks, splits
from fdftnet_jax.data.leaks import Finding, Placed
from fdftnet_jax.data.splits import Example
from fdftnet_jax.errors import UserError


def place(split, path, digest="", phash="", *, group=None, **finding):
    """An image of the class that its path begins with."""
    label = splits.CLASSES.index(path.split("/")[0])
    example = Example(path, label, group or path, "")
    return Placed(split, example, Finding("", digest or path, phash, **finding))


def found(images, **options):
    """The leaks, as {paths that are kept: paths that are not}."""
    return {
        tuple(sorted(leak.kept)): tuple(
            image.example.path
            for image in leak.images
            if image.example.path not in leak.kept
        )
        for leak in leaks.duplicates(images, **options)
    }


@pytest.mark.parametrize(
    ("places", "kept", "dropped"),
    [
        (["train real/a", "test real/b"], ["real/a"], ["real/b"]),
        (["test real/a", "train real/b"], ["real/b"], ["real/a"]),
        (["test real/a", "finetune real/b"], ["real/b"], ["real/a"]),
        (["validation real/a", "finetune real/b"], ["real/b"], ["real/a"]),
        (["test real/a", "validation real/b"], ["real/b"], ["real/a"]),
        (["train real/b", "train fake/a"], ["fake/a"], ["real/b"]),
        (["train fake/a", "test real/b"], ["fake/a"], ["real/b"]),
        # All of the training split stays, whatever another split holds.
        (
            ["train real/a", "train real/b", "test real/c"],
            ["real/a", "real/b"],
            ["real/c"],
        ),
        (
            ["train real/c", "train fake/d", "test fake/a", "test real/b"],
            ["fake/d"],
            ["fake/a", "real/b", "real/c"],
        ),
    ],
)
def test_duplicates(places, kept, dropped):
    images = [place(*text.split(), digest="same") for text in places]
    images.append(place("train", "real/other"))
    for order in itertools.permutations(images):
        assert found(order) == {tuple(kept): tuple(dropped)}


def test_the_same_picture_twice_in_one_class_of_one_split_is_no_leak():
    images = [place("test", f"fake/{i}", digest="same") for i in range(3)]
    assert found(images) == {}


def test_splits_may_share_pictures_where_they_mean_nothing():
    images = [place("test", "fake/a", "1"), place("train", "fake/b", "1")]
    images += [place("test", "fake/c", "2"), place("train", "real/d", "2")]
    assert set(found(images)) == {("fake/b",), ("real/d",)}
    assert set(found(images, across_splits=False)) == {("real/d",)}


def near(images, distance):
    """Every pair compared with every other."""
    return {
        (a.example.path, b.example.path, bits)
        for a, b in itertools.combinations(
            sorted(images, key=lambda i: i.example.path), 2
        )
        if a.finding.phash and b.finding.phash and a.split != b.split
        for bits in [(int(a.finding.phash, 16) ^ int(b.finding.phash, 16)).bit_count()]
        if bits <= distance and a.finding.digest != b.finding.digest
    }


@pytest.mark.parametrize("distance", [0, 1, 2, 3, 4, 6])
def test_near_twins_are_those_of_comparing_all_pairs(distance):
    rng = random.Random(distance)
    hashes = [rng.getrandbits(64) for _ in range(20)]
    images = []
    for i in range(400):
        value = rng.choice(hashes)
        for bit in rng.sample(range(64), rng.randint(0, 4)):
            value ^= 1 << bit
        images.append(
            place(
                rng.choice(splits.SPLITS),
                f"real/{i:03d}",
                digest=str(rng.randrange(300)),
                phash=f"{value:016x}" if i % 10 else "",
            )
        )
    expected = near(images, distance)
    assert len(expected) > 50
    twins = leaks.near_twins(images, distance)
    pairs = [(t.first.example.path, t.second.example.path) for t in twins]
    assert pairs == sorted(pairs)
    assert {(*pair, t.distance) for pair, t in zip(pairs, twins, strict=True)} == (
        expected
    )


def test_the_number_of_near_twins_is_limited():
    images = [
        place(("train", "test")[i % 2], f"real/{i:05d}", phash="0123456789abcdef")
        for i in range(20_000)
    ]
    assert len(leaks.near_twins(images, most=50)) == 50
    assert leaks.near_twins(images[::2]) == []
    assert leaks.near_twins([]) == []


def sources(number, real, fake):
    """Images whose properties `real` and `fake` give for each number."""
    return [
        place("train", f"{name}/{i}", **properties(i))
        for name, properties in (("real", real), ("fake", fake))
        for i in range(number)
    ]


def auroc(images):
    return {s.name: round(s.auroc, 2) for s in leaks.shortcuts(images)}


def jpeg(width=64, height=64, quality=75):
    return {"format": "JPEG", "width": width, "height": height, "quality": quality}


def png(width=64, height=64):
    return {"format": "PNG", "width": width, "height": height}


def test_what_is_alike_is_no_shortcut():
    images = sources(50, lambda i: jpeg(), lambda i: jpeg())
    assert auroc(images) == {
        "file format": 0.5,
        "size in pixels": 0.5,
        "JPEG quality": 0.5,
    }
    assert not any(s.suspicious for s in leaks.shortcuts(images))


@pytest.mark.parametrize(
    ("real", "fake", "name", "values"),
    [
        (jpeg(), png(), "file format", ("JPEG", "PNG")),
        (jpeg(89, 109), jpeg(128, 128), "size in pixels", ("89x109", "128x128")),
        (jpeg(64, 48), jpeg(48, 64), "size in pixels", ("64x48", "48x64")),
        (jpeg(quality=95), jpeg(quality=75), "JPEG quality", ("95", "75")),
    ],
)
def test_a_property_that_separates_the_classes(real, fake, name, values):
    (shortcut,) = (
        s
        for s in leaks.shortcuts(sources(50, lambda i: real, lambda i: fake))
        if s.suspicious
    )
    assert (shortcut.name, shortcut.auroc, shortcut.images) == (name, 1, 100)
    assert (shortcut.real, shortcut.fake) == values


def test_a_value_that_only_ever_one_image_has_separates_nothing():
    images = sources(
        200,
        lambda i: png(1000 + (37 * i) % 200 * 2, 900),
        lambda i: png(1001 + (37 * i) % 200 * 2, 900),
    )
    assert auroc(images)["size in pixels"] < 0.55


def test_nor_one_that_only_ever_one_group_has():
    """Every video has a size of its own; a detector meets others."""
    images = [
        place("train", f"{name}/{i}", group=f"{name}{i // 20}", **png(width, 900))
        for parity, name in enumerate(("real", "fake"))
        for i in range(400)
        for width in [1000 + 2 * ((7 * (i // 20)) % 20) + parity]
    ]
    assert auroc(images)["size in pixels"] < 0.6


def test_sizes_that_all_differ_but_are_mostly_larger_in_one_class():
    images = sources(100, lambda i: png(100 + i, 70), lambda i: png(150 + i, 70))
    # P(fake wider) of two uniform distributions of width 100, 50 apart: 7/8.
    assert auroc(images)["size in pixels"] == pytest.approx(0.875, abs=0.01)
    images = sources(100, lambda i: png(150 + i, 70), lambda i: png(100 + i, 70))
    assert auroc(images)["size in pixels"] == pytest.approx(0.875, abs=0.01)


def test_a_part_of_the_images_that_gives_itself_away():
    # 60 % of the fakes, and no real image, have another format: AUROC 0.8.
    images = sources(200, lambda i: png(), lambda i: jpeg() if i % 5 < 3 else png())
    assert auroc(images)["file format"] == pytest.approx(0.8, abs=0.02)
    assert "JPEG quality" not in auroc(images)


def test_few_images_are_not_enough_for_a_suspicion():
    images = sources(3, lambda i: png(70 + i), lambda i: png(80 + i))
    assert auroc(images)["size in pixels"] == 1
    assert not any(s.suspicious for s in leaks.shortcuts(images))


def noise(seed, size=32):
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (size, size, 3), np.uint8))


@pytest.fixture
def data(tmp_path):
    """A folder of splits: 4 real and 4 fake pictures in each."""
    numbers = itertools.count()
    for split in splits.SPLITS:
        for name in splits.CLASSES:
            (tmp_path / "faces" / split / name).mkdir(parents=True)
            for i in range(4):
                path = tmp_path / "faces" / split / name / f"{i}.png"
                noise(next(numbers)).save(path)
    data = base.get_config().data
    data.name, data.dir = "folder", str(tmp_path / "faces")
    data.cache_dir = str(tmp_path / "cache")
    return data


def copy(data, source, target):
    shutil.copy(Path(data.dir) / source, Path(data.dir) / target)


def report(data, name):
    (path,) = Path(data.cache_dir).rglob(name)
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("copies", "named", "number"),
    [
        ([("train/real/0.png", "train/fake/x.png")], "train/real/0.png (train)", 1),
        ([("train/real/0.png", "test/real/x.png")], "test/real/x.png (test)", 1),
        (
            [
                ("train/fake/1.png", "train/fake/twice.png"),
                ("train/fake/1.png", "test/fake/x.png"),
            ],
            "test/fake/x.png (test)",
            1,
        ),
        (
            [
                ("finetune/real/0.png", "validation/real/x.png"),
                ("train/fake/1.png", "train/fake/twice.png"),
                ("train/fake/1.png", "test/fake/x.png"),
            ],
            "validation/real/x.png (validation)",
            2,
        ),
    ],
)
def test_a_picture_in_two_places_is_an_error(data, copies, named, number):
    for source, target in copies:
        copy(data, source, target)
    with pytest.raises(UserError, match=f"in two splits, found {number} in") as error:
        datasets.prepare(data)
    message = str(error.value)
    assert named in message and "--config.data.duplicates=drop" in message
    assert "\n" not in message
    assert str(next(Path(data.cache_dir).rglob("duplicates.csv"))) in message
    rows = report(data, "duplicates.csv")
    assert {row["path"] for row in rows} >= {path for pair in copies for path in pair}


def test_another_encoding_is_the_same_picture(data):
    with Image.open(Path(data.dir) / "train/real/0.png") as image:
        image.save(Path(data.dir) / "test/real/x.bmp")
    with pytest.raises(UserError, match=r"train/real/0\.png .* test/real/x\.bmp"):
        datasets.prepare(data)


def test_dropping_keeps_one(data):
    copy(data, "train/real/0.png", "train/fake/x.png")
    copy(data, "train/real/1.png", "test/real/x.png")
    copy(data, "validation/fake/1.png", "validation/fake/again.png")
    data.duplicates = "drop"
    for _ in range(2):  # A later start says it again.
        with pytest.warns(UserWarning, match="left out 2 of the images of"):
            dataset = datasets.prepare(data)
    assert dataset.splits == {"train": 8, "validation": 9, "test": 8, "finetune": 8}
    assert {row["path"]: row["kept"] for row in report(data, "duplicates.csv")} == {
        "train/real/0.png": "no",
        "train/fake/x.png": "yes",
        "train/real/1.png": "yes",
        "test/real/x.png": "no",
    }
    paths = {record["path"] for record in dataset.source("all")}
    assert "test/real/x.png" not in paths and "train/real/1.png" in paths


def test_what_trains_does_not_depend_on_duplicates_in_the_test_split(data):
    copy(data, "train/real/1.png", "train/real/again.png")
    data.duplicates = "drop"
    before = datasets.prepare(data)
    for name in ("train/real/1.png", "validation/real/2.png", "finetune/fake/0.png"):
        copy(data, name, f"test/real/{name.replace('/', '-')}")
    with pytest.warns(UserWarning, match="left out 3 of the images of"):
        after = datasets.prepare(data)
    for split in ("train", "validation", "finetune"):
        assert list(after.source(split)) == list(before.source(split))


def test_a_whole_folder_is_scored_whatever_its_splits_share(data, recwarn):
    copy(data, "train/real/0.png", "test/real/x.png")
    with Image.open(Path(data.dir) / "train/real/1.png") as image:
        image.resize((64, 64)).save(Path(data.dir) / "test/real/like.png")
    dataset = datasets.prepare(data, ("all",), only_needed=True)
    assert len(dataset.source("all")) == 34
    with pytest.raises(UserError, match="in two splits"):
        datasets.prepare(data, ("test",), only_needed=True)
    assert not recwarn
    copy(data, "train/real/0.png", "test/fake/x.png")
    with pytest.raises(UserError, match="in both classes"):
        datasets.prepare(data, ("all",), only_needed=True)


def test_near_twins_are_reported(data):
    with Image.open(Path(data.dir) / "train/real/0.png") as image:
        image.resize((64, 64)).save(Path(data.dir) / "test/real/x.png")
    for _ in range(2):
        with pytest.warns(
            UserWarning, match=r"look alike are .* \(1 by pairs, listed in"
        ):
            dataset = datasets.prepare(data)
    assert sum(dataset.splits.values()) == 33
    (row,) = report(data, "near_twins.csv")
    assert int(row.pop("distance")) <= 2
    assert row == {
        "path": "test/real/x.png",
        "split": "test",
        "other_path": "train/real/0.png",
        "other_split": "train",
    }


def test_a_shortcut_is_reported(data):
    for path in Path(data.dir).glob("*/fake/*.png"):
        with Image.open(path) as image:
            image.resize((40, 32)).save(path)
    expected = (
        r"size in pixels alone .* AUROC 1\.00 \(real mostly 32x32, fake mostly 40"
    )
    for _ in range(2):
        with pytest.warns(UserWarning, match=expected) as warned:
            datasets.prepare(data)
        assert len(warned) == 1 and "\n" not in str(warned[0].message)
    assert {row["property"]: row["auroc"] for row in report(data, "shortcuts.csv")} == {
        "file format": "0.5000",
        "size in pixels": "1.0000",
    }
