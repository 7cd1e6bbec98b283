"""The paper's sets prepared: what is drawn of them, reports, caches, errors."""

import collections
import csv
import random
from pathlib import Path, PurePosixPath

import paper_trees as trees
import pytest
from PIL import Image
from prepared_folders import entries

from configs import base
from fdftnet_jax import datasets
from fdftnet_jax.data import images, splits
from fdftnet_jax.errors import UserError
from fdftnet_jax.paper_sets import sets

PAIRS = [(f"{2 * i:03d}", f"{2 * i + 1:03d}") for i in range(12)]
ACTORS = [f"{i:02d}" for i in range(1, 21)]


def write_pggan(root):
    real = [f"{trees.CELEBA}/{i:06d}.png" for i in range(60)]
    fake = [f"pggan/{i // 10:05d}/{i:05d}.png" for i in range(60)]
    trees.pictures(root, *real, *fake)


def write_videos(method):
    def write(root):
        videos = [video for pair in PAIRS for video in pair]
        trees.pictures(root, *trees.frames(trees.YOUTUBE, videos, 4))
        trees.pictures(root, *trees.frames(method, trees.swapped(PAIRS), 3))

    return write


def write_actors(root):
    real = [f"{actor}__hugging_happy" for actor in ACTORS]
    fake = [f"{a}_{b}__hugging_happy__AB" for a in ACTORS for b in ACTORS if a != b]
    trees.pictures(root, *trees.frames(trees.ACTORS, real, 3))
    trees.pictures(root, *trees.frames(trees.DFD, fake))


WRITE = {
    "pggan": write_pggan,
    "deepfakes": write_videos(trees.DEEPFAKES),
    "face2face": write_videos(trees.FACE2FACE),
    "dfd": write_actors,
}


def section(root, name):
    data = base.get_config().data
    data.name, data.dir = name, str(root / "set")
    data.cache_dir = str(root / "cache")
    data.fractions.update(trees.FRACTIONS)
    WRITE[name](root / "set")
    return data


@pytest.fixture
def data(tmp_path):
    return section(tmp_path, "deepfakes")


def report(data, name):
    (path,) = Path(data.cache_dir).rglob(name)
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def paths(dataset, split="all"):
    return [record["path"] for record in dataset.source(split)]


@pytest.mark.filterwarnings("ignore:left out")
@pytest.mark.parametrize("name", sets.NAMES)
def test_every_set_can_be_prepared(tmp_path, name):
    data = section(tmp_path, name)
    dataset = datasets.prepare(data, splits.SPLITS)
    assert dataset.name == (name if name == "pggan" else f"{name}-c23")
    assert dataset.directory == data.dir
    groups = collections.defaultdict(set)
    for split, number in dataset.splits.items():
        records = list(dataset.source(split))
        assert len(records) == number
        for record in records:
            groups[record["group"]].add(split)
            with Image.open(Path(data.dir) / record["path"]) as image:
                assert images.decode(record["image"]).tobytes() == image.tobytes()
            fake = record["path"].startswith(("manipulated_sequences/", "pggan/"))
            assert record["label"] == fake
            assert record["generator"] == (name if fake else "")
    assert all(len(where) == 1 for where in groups.values())
    if name != "dfd":
        assert sum(dataset.splits.values()) == len(list(Path(data.dir).rglob("*.png")))


def test_prepares_and_inspects_once(data, decoded, monkeypatch):
    first = datasets.prepare(data)
    number = len(decoded)
    assert number == sum(first.splits.values())
    # Nor does another set in the same folder make it look again.
    fakes = trees.frames(trees.FACE2FACE, trees.swapped(PAIRS), 3)
    trees.pictures(Path(data.dir), *fakes)
    data.name = "face2face"
    datasets.prepare(data)
    data.name = "deepfakes"
    monkeypatch.setattr(images, "read", None)
    again = datasets.prepare(data)
    assert again.fingerprint(splits.SPLITS) == first.fingerprint(splits.SPLITS)


def test_limits_take_as_many_real_as_fake_evenly_from_the_videos(data):
    everything = datasets.prepare(data)
    data.limits.update(train=40, test=11)
    dataset = datasets.prepare(data)
    assert dataset.splits == everything.splits | {"train": 40, "test": 10}
    for split in ("train", "test"):
        assert set(paths(dataset, split)) < set(paths(everything, split))
        taken, there = (
            collections.Counter(
                (label, PurePosixPath(record["path"]).parent)
                for record in found.source(split)
                for label in [record["label"]]
            )
            for found in (dataset, everything)
        )
        for label in (0, 1):
            own = [taken[video] for video in there if video[0] == label]
            assert sum(own) == dataset.splits[split] // 2
            assert max(own) - min(own) <= 1


def test_a_smaller_draw_is_part_of_a_larger_one(data):
    drawn = []
    for limit in (10, 20, 40):
        data.limits.train = limit
        drawn.append(set(paths(datasets.prepare(data), "train")))
    assert list(map(len, drawn)) == [10, 20, 40]
    assert drawn[0] < drawn[1] < drawn[2]


def test_a_draw_depends_on_no_other_split_and_little_on_new_images(data):
    data.limits.train = 40
    before = datasets.prepare(data)
    # Fakes and real images of the test split are gone.
    for path in paths(before, "test"):
        (Path(data.dir) / path).unlink()
    with pytest.warns(UserWarning, match="'test' of deepfakes-c23 cannot be used"):
        after = datasets.prepare(data, ("train",))
    for split in ("train", "validation", "finetune"):
        assert list(after.source(split)) == list(before.source(split))
    # One real training video more takes the place of one image at most for each that
    # it gives.
    video = PurePosixPath(next(p for p in paths(after, "train") if "youtube" in p))
    new = str(video.parent.with_name("999"))
    group = next(f"{i:03d}" for i in range(900, 999) if _trains(f"{i:03d}_999"))
    trees.pictures(Path(data.dir), f"{new}/0000_0.png", f"{new}/0001_0.png")
    trees.touch(Path(data.dir), f"{trees.FACE2FACE}/{group}_999/note.txt")
    with pytest.warns(UserWarning, match="'test' of deepfakes-c23 cannot be used"):
        later = set(paths(datasets.prepare(data, ("train",)), "train"))
    came = later - set(paths(before, "train"))
    assert came <= {f"{new}/0000_0.png", f"{new}/0001_0.png"} and came
    assert len(later) == 40


def _trains(group):
    return splits.split_of(group, trees.FRACTIONS) == "train"


def test_the_order_of_drawing_is_no_matter_of_the_listing():
    examples = [
        splits.Example(path, label, "", "")
        for label, folder in enumerate((trees.YOUTUBE, trees.DEEPFAKES))
        for path in trees.frames(folder, ["1", "2", "3"], 5)
    ]
    ordered = sets.drawing_order(examples)
    for seed in range(5):
        shuffled = random.Random(seed).sample(examples, len(examples))
        assert sets.drawing_order(shuffled) == ordered
    assert sorted(ordered) == sorted(examples)
    # The same frames of another compression.
    other = [e._replace(path=e.path.replace("c23", "c40")) for e in examples]
    assert [e.path.replace("c40", "c23") for e in sets.drawing_order(other)] == [
        e.path for e in ordered
    ]
    assert [len(sets.draw(ordered, n)) for n in (0, 2, 7, 30, 99)] == [
        *(30, 2, 6, 30, 30)
    ]
    without = {e.path for e in ordered if e.label == 0}
    assert sets.draw(ordered, 10, without) == []
    assert len(sets.draw(ordered, 0, without)) == 15


def test_too_few_images_for_a_limit_are_told(data):
    everything = datasets.prepare(data)
    labels = [record["label"] for record in everything.source("test")]
    fewer = 2 * min(labels.count(0), labels.count(1))
    data.limits.test = 60000
    with pytest.warns(UserWarning, match=f": {fewer} of 60,000 in test$"):
        dataset = datasets.prepare(data)
    assert dataset.splits["test"] == fewer
    data.limits.update(train=2, test=fewer + 1)
    datasets.prepare(data)


def test_a_file_that_cannot_be_used_is_replaced(data):
    data.limits.train = 40
    before = paths(datasets.prepare(data), "train")
    for path in before[:3]:
        (Path(data.dir) / path).write_bytes(b"no image")
    for _ in range(2):  # A later start says it again.
        with pytest.warns(UserWarning, match=r"left out 3 of \d+ image files in"):
            after = paths(datasets.prepare(data), "train")
        assert len(after) == 40 and set(before[3:]) < set(after)
    assert {row["path"] for row in report(data, "rejected.csv")} == set(before[:3])
    data.max_rejected = 0.001
    with pytest.raises(UserError, match=r"at most 0% .* to be unusable, found 3 of"):
        datasets.prepare(data)


def test_a_name_that_is_not_utf8_is_rejected(tmp_path):
    data = section(tmp_path, "pggan")
    path = Path(data.dir) / "pggan" / b"\xff.png".decode(errors="surrogateescape")
    Image.new("RGB", (12, 12), (1, 2, 3)).save(path)
    with pytest.warns(UserWarning, match="left out 1 of 121 image files"):
        dataset = datasets.prepare(data)
    assert sum(dataset.splits.values()) == 120
    (row,) = report(data, "rejected.csv")
    assert row == {"path": "pggan/\\xff.png", "reason": "its name is not UTF-8"}


def test_what_fits_no_split_is_counted_and_listed(tmp_path):
    data = section(tmp_path, "dfd")
    dealt = {a: splits.split_of(f"dfd/{a}", trees.FRACTIONS) for a in ACTORS}
    apart = {
        f"{trees.DFD}/{a}_{b}__hugging_happy__AB"
        for a in ACTORS
        for b in ACTORS
        if dealt[a] != dealt[b]
    }
    assert apart
    message = (
        f"left out {len(apart)} of the 440 images of dfd-c23, which fit no split "
        rf"\({len(apart)}: two actors of different splits\); they are listed in "
    )
    with pytest.warns(UserWarning, match=message) as warned:
        dataset = datasets.prepare(data)
    assert len(warned) == 1
    assert sum(dataset.splits.values()) == 440 - len(apart)
    rows = report(data, "left_out.csv")
    assert {row["path"] for row in rows} == apart
    assert {row["images"] for row in rows} == {"1"}
    assert str(warned[0].message).endswith("left_out.csv")


def test_lists_of_other_videos_leave_nothing(data):
    lists = {"train": [["a", "b"]], "validation": [["c", "d"]], "test": [["e", "f"]]}
    trees.write_lists(Path(data.dir), lists)
    with (
        pytest.warns(UserWarning, match=r"168: not in the official splits"),
        pytest.raises(UserError, match="'train' of deepfakes-c23, found 0 real and 0"),
    ):
        datasets.prepare(data, ("train",))


def change_picture(data):
    path = next(Path(data.dir, trees.DEEPFAKES).rglob("*.png"))
    Image.new("RGB", (12, 12), (1, 2, 3)).save(path)


def change_name(data):
    path = next(Path(data.dir, trees.DEEPFAKES).rglob("*.png"))
    path.rename(path.with_name("0999_0.png"))


def change_fraction(data):
    data.fractions.update(train=0.2, validation=0.4)


def change_limit(data):
    data.limits.train = 10


def change_lists(data):
    pairs = [list(pair) for pair in PAIRS]
    lists = {"train": pairs[:2], "validation": pairs[2:3], "test": pairs[3:]}
    trees.write_lists(Path(data.dir), lists)


@pytest.mark.parametrize(
    "change",
    [change_picture, change_name, change_fraction, change_limit, change_lists],
)
def test_a_change_is_another_cache_entry(data, change):
    before = datasets.prepare(data).fingerprint(splits.SPLITS)
    change(data)
    after = datasets.prepare(data, only_needed=True).fingerprint(splits.SPLITS)
    assert before != after


def test_the_same_pictures_elsewhere_are_the_same_entry(data, tmp_path):
    before = datasets.prepare(data).fingerprint(splits.SPLITS)
    Path(data.dir).rename(tmp_path / "elsewhere")
    data.dir = str(tmp_path / "elsewhere")
    dataset = datasets.prepare(data)
    assert len(entries(data)) == 1
    assert dataset.fingerprint(splits.SPLITS) == before
    assert dataset.directory == data.dir


@pytest.mark.parametrize("duplicates", ["error", "drop"])
def test_a_frame_that_was_not_forged_is_a_leak(data, duplicates):
    root = Path(data.dir)
    frame = (root / trees.YOUTUBE / "000/0000_0.png").read_bytes()
    (root / trees.DEEPFAKES / "000_001/0000_0.png").write_bytes(frame)
    data.duplicates = duplicates
    if duplicates == "drop":
        with pytest.warns(UserWarning, match="left out 1 of the images of"):
            datasets.prepare(data)
        return
    with pytest.raises(UserError, match="remove them or keep one of each with --con"):
        datasets.prepare(data)


def test_a_split_that_no_fraction_makes(data):
    data.fractions.update(trees.FRACTIONS | {"train": 0.6, "finetune": 0.0})
    with pytest.raises(UserError, match="train, validation, test; give the split a sh"):
        datasets.prepare(data, ("finetune",))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dir": ""}, "--config.data.dir=PATH"),
        ({"dir": "/nowhere/at/all"}, "deepfakes at '/nowhere/at/all', found nothing"),
        ({"dir": "/"}, r"found none in original_sequences/youtube/c23/videos and in"),
        ({"compression": "c50"}, "one of raw, c23, c40, found 'c50'"),
        ({"limits": {"train": -1}}, "of 0 or more, found {'train': -1"),
        ({"limits": {"dev": 1}}, r"limits of train, validation, test, finetune of 0"),
        ({"fractions": {"train": 0.3}}, "sum to 1"),
    ],
)
def test_config_errors(data, change, message):
    with data.unlocked(), data.ignore_type():
        for field, value in change.items():
            data[field] = value
    with pytest.raises(UserError, match=message) as error:
        datasets.prepare(data)
    assert "\n" not in str(error.value)
