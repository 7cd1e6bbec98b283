"""Pictures that a detector got wrong: how they are named, split and shown."""

import csv
import shutil

import numpy as np
import pytest
from PIL import Image

from fdftnet_jax.adaptation import folders
from fdftnet_jax.data import splits
from fdftnet_jax.errors import UserError
from fdftnet_jax.prediction import writers
from fdftnet_jax.records import Lineage
from fdftnet_jax.training import defaults, run_data


def _fill(folder, number, seed):
    """Writes `number` pictures of noise; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    paths = [folder / f"{seed}-{i}.png" for i in range(number)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(path)
    return paths


def _config(folder, cache, **data):
    config = defaults.get_config()
    config.data.update({"name": "folder", "dir": str(folder), "cache_dir": str(cache)})
    config.data.update({"group_by": "picture", "duplicates": "drop", **data})
    config.data.fractions = {
        **{"train": 0.7, "validation": 0.15, "test": 0.15, "finetune": 0.0}
    }
    return config


def _used(part):
    """Path -> times that it is shown in an epoch."""
    paths = [part.records[int(i)]["path"] for i in part.indices]
    return {path: paths.count(path) for path in paths}


@pytest.mark.parametrize(("number", "least", "most"), [(1, 10, 10), (4, 2, 10)])
def test_corrections_are_shown_often_and_outweigh_nothing(
    tmp_path, number, least, most
):
    data = tmp_path / "data"
    for seed, name in enumerate(splits.CLASSES):
        _fill(data / name, 80, seed)
    _fill(data / "corrections" / "real", number, 9)
    prepared = run_data.prepare(_config(data, tmp_path), Lineage())
    (train,) = prepared.train
    used = _used(train)
    corrected = {p: n for p, n in used.items() if p.startswith("corrections/")}
    others = len(used) - len(corrected)
    assert len(corrected) == number
    assert least <= min(corrected.values()) == max(corrected.values()) <= most
    assert sum(corrected.values()) <= 0.1 * others
    # Real ones are more of what the loss sees now, not more pictures.
    assert sum(train.counts) == others + number
    fakes = sum(n for path, n in used.items() if path.startswith("fake/"))
    share = fakes / sum(used.values())
    assert prepared.fake_share("none") == pytest.approx(share)
    for part in prepared.validation:
        assert not any(path.startswith("corrections/") for path in _used(part))


def test_many_corrections_are_shown_once(tmp_path):
    data = tmp_path / "data"
    for seed, name in enumerate(splits.CLASSES):
        _fill(data / name, 30, seed)
        _fill(data / "corrections" / name, 15, 10 + seed)
    (train,) = run_data.prepare(_config(data, tmp_path), Lineage()).train
    used = _used(train)
    assert [n for path, n in used.items() if path.startswith("corrections/")] == [
        1
    ] * 30


def test_shots_are_drawn_from_the_other_pictures(tmp_path):
    data = tmp_path / "data"
    for seed, name in enumerate(splits.CLASSES):
        _fill(data / name, 40, seed)
    _fill(data / "corrections" / "fake", 3, 9)
    (train,) = run_data.prepare(_config(data, tmp_path, shots=5), Lineage()).train
    used = _used(train)
    assert sum(not path.startswith("corrections/") for path in used) == 10
    assert len(used) == 13 and train.counts == (5, 8)


def test_a_corrected_picture_is_not_tested(tmp_path):
    """It stays where it trains, although the same picture would be for the test."""
    data = tmp_path / "data"
    for seed, name in enumerate(splits.CLASSES):
        _fill(data / name, 60, seed)
    config = _config(data, tmp_path)
    dataset = run_data.prepare(config, Lineage()).train[0].dataset
    path = next(path for path in dataset.digests(("test",)) if "real" in path)
    (data / "corrections" / "real").mkdir(parents=True)
    shutil.copy(data / path, data / "corrections" / "real" / "again.png")
    with pytest.warns(UserWarning, match="left out 1 of the images"):
        (train,) = run_data.prepare(config, Lineage()).train
    assert "corrections/real/again.png" in _used(train)
    assert path not in train.dataset.digests(("test",))


def test_a_picture_has_its_split_wherever_it_lies(tmp_path):
    """Also in the folder of another forgery, under another name."""
    first, second = tmp_path / "first", tmp_path / "second"
    for seed, name in enumerate(splits.CLASSES):
        for number, path in enumerate(_fill(first / name, 60, seed)):
            (second / name / "sub").mkdir(parents=True, exist_ok=True)
            shutil.copy(path, second / name / "sub" / f"other{number}.png")
        _fill(second / name, 20, 10 + seed)
    of = {}
    for folder in (first, second):
        dataset = run_data.prepare(_config(folder, tmp_path), Lineage())
        dataset = dataset.train[0].dataset
        of[folder] = {
            digest: split
            for split in ("train", "validation", "test")
            for digest in dataset.digests((split,)).values()
        }
    assert len(of[first]) == 120 and len(of[second]) == 160
    assert all(of[second][digest] == split for digest, split in of[first].items())


def test_a_replayed_folder_is_split_alike(tmp_path):
    for seed, folder in enumerate(("new", "old")):
        for label, name in enumerate(splits.CLASSES):
            _fill(tmp_path / folder / name, 60, 2 * seed + label)
    cache = tmp_path / "cache"
    config = _config(tmp_path / "new", cache, replay=10)
    config.data.replay_dir = str(tmp_path / "old")
    config.data.train_split = "train"
    replayed = run_data.prepare(config, Lineage()).train[1].dataset
    own = run_data.prepare(_config(tmp_path / "old", cache), Lineage()).train[0].dataset
    for split in ("train", "validation", "test"):
        assert replayed.digests((split,)) == own.digests((split,))


def test_official_splits_have_corrections_too(tmp_path):
    for split in ("train", "test"):
        for name in splits.CLASSES:
            _fill(tmp_path / split / name, 1, 0)
    _fill(tmp_path / "corrections" / "Fake", 1, 1)
    found = [f for f in splits.list_files(tmp_path) if f.is_correction]
    assert found == [("corrections/Fake/1-0.png", "train", 1, "1-0.png")]
    assert not splits.ignored(tmp_path)


# What a person gives.


def _table(path, rows, delimiter=",", encoding="utf-8"):
    with path.open("w", newline="", encoding=encoding) as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(["path", "kind", "verdict", "label"])
        writer.writerows(rows)
    return str(path)


@pytest.mark.parametrize(
    ("delimiter", "encoding"), [(",", "utf-8"), (";", "utf-8-sig"), ("\t", "utf-8")]
)
def test_a_table_as_spreadsheets_write_it(tmp_path, delimiter, encoding):
    pictures = _fill(tmp_path / "some, where", 4, 0)
    path = _table(
        tmp_path / "results.csv",
        [
            [writers.path_text(str(pictures[0])), "image", "fake", "real"],
            [str(pictures[1]), "image", "real", " Fake "],
            [str(pictures[2]), "image", "real", ""],
            # A face of the first one.
            [str(pictures[0]), "image", "fake", "real"],
        ],
        delimiter,
        encoding,
    )
    assert folders.read_corrections(path) == {
        "real": [str(pictures[0])],
        "fake": [str(pictures[1])],
    }


def test_a_path_as_predict_writes_what_is_no_text(tmp_path):
    odd = str(tmp_path / "odd") + "\udcff.png"
    try:
        shutil.copy(_fill(tmp_path, 1, 0)[0], odd)
    except OSError:
        pytest.skip("this file system takes no such name")
    path = _table(
        tmp_path / "r.csv", [[writers.path_text(odd), "image", "fake", "real"]]
    )
    assert folders.read_corrections(path)["real"] == [odd]


def test_a_folder_with_one_class(tmp_path):
    (picture,) = _fill(tmp_path / "real" / "inside", 1, 0)
    (tmp_path / "real" / "notes.txt").write_text("seen by two people")
    assert folders.read_corrections(str(tmp_path)) == {"real": [str(picture)]}


def test_corrections_of_one_class_are_warned_of(recwarn):
    folders.warn_if_one_sided({"real": ["a"], "fake": ["b"]})
    assert not recwarn.list
    with pytest.warns(UserWarning, match="all corrections are real: .* label fake"):
        folders.warn_if_one_sided({"real": ["a"], "fake": []})


def test_mistakes_in_corrections(tmp_path):
    (picture,) = _fill(tmp_path, 1, 0)
    for row, message in (
        ([picture, "image", "fake", "maybe"], "label in line 2 .* found 'maybe'"),
        ([tmp_path / "x.png", "image", "fake", "real"], "which is not there"),
        ([tmp_path / "x.mp4", "video", "fake", "real"], "labels a video"),
        ([picture, "image", "fake", ""], "has no corrections"),
    ):
        with pytest.raises(UserError, match=message):
            folders.read_corrections(_table(tmp_path / "r.csv", [row]))
    both = [[picture, "image", "fake", name] for name in splits.CLASSES]
    with pytest.raises(UserError, match="both real and fake"):
        folders.read_corrections(_table(tmp_path / "r.csv", both))
    (tmp_path / "r.csv").write_text("path,verdict\na.png,real\n")
    with pytest.raises(UserError, match="no column label"):
        folders.read_corrections(str(tmp_path / "r.csv"))
    with pytest.raises(UserError, match="cannot be read"):
        folders.read_corrections(str(tmp_path / "none.csv"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="has no corrections"):
        folders.read_corrections(str(tmp_path / "empty"))
