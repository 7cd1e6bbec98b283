"""Which split an image of CelebA or of PGGAN belongs to."""

import collections
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paper_trees import CELEBA, FRACTIONS, places, reasons, touch

from fdftnet_jax.data import splits
from fdftnet_jax.errors import UserError
from fdftnet_jax.paper_sets import celeba_pggan

REAL = [f"{CELEBA}/{i:06d}.jpg" for i in range(1, 7)]
FAKE = ["pggan/0.png", "pggan/00001/1.jpg", "pggan/00001/a/1.PNG"]
OFFICIAL = ("train", "validation", "test")


def write_list(root, name, values):
    """A list of CelebA, of the images from 1 on."""
    lines = [f"{i:06d}.jpg {value}\n" for i, value in enumerate(values, 1)]
    (root / "celeba").mkdir(exist_ok=True)
    (root / "celeba" / name).write_text("".join(lines))


def write_people(root, people):
    write_list(root, "identity_CelebA.txt", people)


def write_partitions(root, partitions):
    write_list(root, "list_eval_partition.txt", partitions)


def test_without_lists_every_image_is_a_group(tmp_path):
    touch(tmp_path, *REAL, *FAKE, "pggan/readme.txt", "celeba/list_attr_celeba.txt")
    layout = celeba_pggan.read(tmp_path, FRACTIONS)
    assert layout.expected == list(splits.SPLITS) and not layout.left_out
    groups = {p: f"celeba/{i:06d}" for i, p in enumerate(REAL, 1)}
    groups |= {path: path.rpartition(".")[0] for path in FAKE}
    assert places(layout) == {
        path: (
            splits.split_of(group, FRACTIONS),
            group,
            int(path in FAKE),
            "pggan" if path in FAKE else "",
        )
        for path, group in groups.items()
    }


def test_people_are_groups(tmp_path):
    touch(tmp_path, *REAL, *FAKE)
    write_people(tmp_path, [2880, 2937, 2880, 7, 7])
    layout = celeba_pggan.read(tmp_path, FRACTIONS)
    found = places(layout)
    people = [found[path][1] for path in REAL[:5]]
    assert people == [f"celeba/{i}" for i in (2880, 2937, 2880, 7, 7)]
    assert all(found[p][0] == splits.split_of(found[p][1], FRACTIONS) for p in found)
    assert reasons(layout) == {REAL[5]: "not in celeba/identity_CelebA.txt"}


def test_official_partitions(tmp_path):
    touch(tmp_path, *REAL, *FAKE)
    write_partitions(tmp_path, [0, 1, 2, 2, 0])
    layout = celeba_pggan.read(tmp_path, {"train": 0.5, "test": 0.5})
    found = places(layout)
    splits_of = [found[path][0] for path in REAL[:5]]
    assert splits_of == ["train", "validation", "test", "test", "train"]
    assert reasons(layout) == {REAL[5]: "not in celeba/list_eval_partition.txt"}
    assert {found[path][0] for path in FAKE} <= {"train", "test"}
    tuned = places(celeba_pggan.read(tmp_path, {"finetune": 1.0}))
    assert [tuned[path][0] for path in REAL[:3]] == ["finetune", "validation", "test"]


def test_a_person_stays_where_most_of_the_images_are(tmp_path):
    touch(tmp_path, *REAL, *FAKE)
    write_people(tmp_path, [1, 1, 1, 2, 2, 3])
    write_partitions(tmp_path, [0, 2, 2, 2, 1, 0])
    layout = celeba_pggan.read(tmp_path, {"train": 1.0})
    reason = "its person is mostly in another official split"
    assert reasons(layout) == {REAL[0]: reason, REAL[3]: reason}
    found = places(layout)
    assert [found[REAL[i]][0] for i in (1, 2, 4, 5)] == [
        "test",
        "test",
        "validation",
        "train",
    ]


def test_images_may_have_another_suffix_than_in_the_lists(tmp_path):
    touch(tmp_path, f"{CELEBA}/000001.png", f"{CELEBA}/more/000002.webp", *FAKE)
    write_people(tmp_path, [5, 6])
    write_partitions(tmp_path, [1, 2])
    layout = celeba_pggan.read(tmp_path, FRACTIONS)
    assert not layout.left_out
    real = sorted(v[:2] for v in places(layout).values() if v[2] == 0)
    assert real == [("test", "celeba/6"), ("validation", "celeba/5")]


@settings(max_examples=60, deadline=None)
@given(
    people=st.lists(st.integers(1, 5), min_size=1, max_size=30),
    partitions=st.lists(st.integers(0, 2), max_size=30),
    official=st.booleans(),
)
def test_no_person_is_in_two_splits(people, partitions, official):
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        touch(root, *[f"{CELEBA}/{i:06d}.jpg" for i, _ in enumerate(people, 1)], *FAKE)
        write_people(root, people)
        if official:
            write_partitions(root, partitions)
        layout = celeba_pggan.read(root, FRACTIONS)
    where = collections.defaultdict(set)
    kept = 0
    for path, (split, group, label, _) in places(layout).items():
        if label == 0:
            number = int(Path(path).stem)
            assert group == f"celeba/{people[number - 1]}"
            where[people[number - 1]].add(split)
            kept += 1
            if official:
                given_split = OFFICIAL[partitions[number - 1]]
                assert split == given_split or (split, given_split) == (
                    "finetune",
                    "train",
                )
    assert all(len(found) == 1 for found in where.values())
    assert kept + len(layout.left_out) == len(people)
    if not official:
        assert not layout.left_out


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "found no image in celeba/img_align_celeba and in pggan; put"),
        (REAL, "found no image in pggan; put"),
        (FAKE, "found no image in celeba/img_align_celeba; put"),
        ([*REAL, "pggan/0.mp4"], "found no image in pggan; put"),
    ],
)
def test_missing_folders_are_listed(tmp_path, files, message):
    touch(tmp_path, *files)
    with pytest.raises(UserError, match=message) as error:
        celeba_pggan.read(tmp_path, FRACTIONS)
    assert "celeba/img_align_celeba/*.jpg" in str(error.value)
    assert "pggan/**/*.png" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("identity_CelebA.txt", "x", "a person's number .* '000002.jpg x' in line 2"),
        ("list_eval_partition.txt", 3, "0, 1 or 2 .* '000002.jpg 3' in line 2"),
        ("list_eval_partition.txt", "", "found '000002.jpg ' in line 2"),
    ],
)
def test_lists_that_are_none(tmp_path, name, value, message):
    touch(tmp_path, *REAL, *FAKE)
    write_list(tmp_path, name, [1, value, 1])
    with pytest.raises(UserError, match=message) as error:
        celeba_pggan.read(tmp_path, FRACTIONS)
    assert "\n" not in str(error.value)


def test_a_name_that_is_not_utf8_is_left_to_the_inspection(tmp_path):
    touch(tmp_path, *REAL, *FAKE)
    (tmp_path / "pggan" / os.fsdecode(b"\xff.png")).touch()
    found = places(celeba_pggan.read(tmp_path, FRACTIONS))
    assert {group for _, group, label, _ in found.values() if label} == {
        "pggan/0",
        "pggan/00001/1",
        "pggan/00001/a/1",
        "pggan/\\xff",
    }
