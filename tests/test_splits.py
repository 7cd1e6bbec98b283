import collections
import hashlib
import os
import re

import pytest

from fdftnet_jax.data import splits
from fdftnet_jax.errors import UserError

FRACTIONS = {"train": 0.5, "validation": 0.1, "test": 0.2, "finetune": 0.2}


def touch(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()


def test_lists_a_folder_of_two_classes(tmp_path):
    touch(tmp_path, "real/b.PNG", "real/a/c.jpg", "fake/gan/x.webp", "fake/y.jpeg")
    touch(tmp_path, "real/.hidden.png", "real/.cache/z.png", "fake/notes.txt")
    touch(tmp_path, "other/ignored.png")
    assert splits.list_files(tmp_path) == [
        ("fake/gan/x.webp", "", 1, "gan/x.webp"),
        ("fake/notes.txt", "", 1, "notes.txt"),
        ("fake/y.jpeg", "", 1, "y.jpeg"),
        ("real/a/c.jpg", "", 0, "a/c.jpg"),
        ("real/b.PNG", "", 0, "b.PNG"),
    ]


def test_suffix():
    assert splits.File("real/a.b.JPEG", "", 0, "a.b.JPEG").suffix == ".jpeg"
    assert splits.File("real.png/a", "", 0, "a").suffix == ""


def test_a_split_may_lack_a_class_or_both(tmp_path):
    touch(tmp_path, "train/real/a.png", "test/fake/b.png")
    (tmp_path / "validation").mkdir()
    found = [file.path for file in splits.list_files(tmp_path)]
    assert found == ["test/fake/b.png", "train/real/a.png"]


def test_lists_a_folder_of_splits(tmp_path):
    touch(tmp_path, "train/real/a.png", "train/fake/g/b.png")
    touch(tmp_path, "test/real/a.png", "test/fake/c.png")
    assert splits.list_files(str(tmp_path)) == [
        ("test/fake/c.png", "test", 1, "c.png"),
        ("test/real/a.png", "test", 0, "a.png"),
        ("train/fake/g/b.png", "train", 1, "g/b.png"),
        ("train/real/a.png", "train", 0, "a.png"),
    ]


def test_follows_links(tmp_path):
    touch(tmp_path, "elsewhere/a.png", "data/fake/b.png")
    (tmp_path / "data/real").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data/fake/more").symlink_to(tmp_path / "elsewhere")
    paths = [image.path for image in splits.list_files(tmp_path / "data")]
    assert paths == ["fake/b.png", "fake/more/a.png", "real/a.png"]


@pytest.mark.parametrize(
    ("files", "folder", "message"),
    [
        (["a.png"], "gone", "found nothing; give"),
        (["a.png"], "a.png", "found a file; give"),
        (["cats/a.png", "dogs/b.png"], ".", "found cats/, dogs/; sort"),
        (["a.png"], ".", "found no folder; sort"),
        (["real/a.png"], ".", "fake, found no such folder; put"),
        (["real/a.png", "fake/.hidden.png"], ".", "fake, found none; put"),
        (["real/a.png", "fake/a.txt", "fake/b"], ".", "2 files of other kinds (.txt, "),
        (["train/real/.a.png", "test/b.png"], ".", "found train/, test/ without any"),
        (["real/a.png", "fake/a.png", "train/b.png"], ".", "found both"),
    ],
)
def test_folder_errors_say_what_was_found(tmp_path, files, folder, message):
    touch(tmp_path, *files)
    with pytest.raises(UserError, match=re.escape(message)) as error:
        splits.list_files(tmp_path / folder)
    assert str(error.value).startswith("expected ") and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("link", "target"),
    [
        ("real/again", "real"),
        ("real/deep/up", "."),
        ("fake/a/b", "fake/a"),
        ("train/real/round", "train"),
    ],
)
def test_a_loop_of_links_is_named(tmp_path, link, target):
    split = "train/" if link.startswith("train") else ""
    touch(tmp_path, f"{split}real/a.png", f"{split}fake/b.png")
    (tmp_path / link).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / link).symlink_to(tmp_path / target)
    with pytest.raises(UserError, match=f"found {tmp_path / link}, which links to a"):
        splits.list_files(tmp_path)


def test_links_to_nowhere_and_to_themselves_are_left_to_the_inspection(tmp_path):
    touch(tmp_path, "real/a.png", "fake/b.png")
    (tmp_path / "real/gone.png").symlink_to("nowhere")
    (tmp_path / "real/self.png").symlink_to("self.png")
    found = [file.path for file in splits.list_files(tmp_path)]
    assert found == ["fake/b.png", "real/a.png", "real/gone.png", "real/self.png"]


@pytest.fixture
def unprivileged(tmp_path):
    """Makes this process one that permissions hold for."""
    if os.geteuid():
        yield
        return
    # pytest's folders are the privileged user's alone.
    for folder in (tmp_path, *tmp_path.parents):
        if not folder.stat().st_mode & 0o005:
            folder.chmod(0o755)
    os.seteuid(65534)
    yield
    os.seteuid(0)


@pytest.mark.parametrize("locked", [".", "real", "real/deep/deeper"])
def test_an_unreadable_folder_is_named(tmp_path, locked, request):
    root = tmp_path / "faces"
    touch(root, "real/a.png", "real/deep/deeper/c.png", "fake/b.png")
    (root / locked).chmod(0)
    request.getfixturevalue("unprivileged")
    try:
        with pytest.raises(UserError) as error:
            splits.list_files(root)
    finally:
        if not os.getuid():
            os.seteuid(0)
        (root / locked).chmod(0o755)
    message = str(error.value)
    assert message.startswith("expected a readable folder at ") and "\n" not in message
    assert str(root / locked) in message and "found Permission denied;" in message


@pytest.mark.parametrize(
    ("inner", "group_by", "group"),
    [
        ("a/b.c.png", "file", "a/b.c"),
        ("a/b/c.png", "folder", "a/b"),
        ("a/id7_003.png", r"id\d+", "id7"),
        ("a/id7_003.png", r"(id\d+)_\d+", "id7"),
        ("a/id7_003.png", r"a/(\w)(\w)", "i"),
    ],
)
def test_group(inner, group_by, group):
    assert splits.group_of(inner, group_by) == group


@pytest.mark.parametrize(
    ("inner", "generator_by", "generator"),
    [
        ("gan/v1/a.png", "folder", "gan"),
        ("a.png", "folder", "unknown"),
        ("x/stylegan-12.png", r"([a-z]+)-\d+", "stylegan"),
    ],
)
def test_generator(inner, generator_by, generator):
    assert splits.generator_of(inner, generator_by, 1) == generator
    assert splits.generator_of(inner, generator_by, 0) == ""


@pytest.mark.parametrize(
    ("inner", "group_by", "message"),
    [
        ("a.png", "folder", "'a.png' directly in it"),
        ("a/b.png", r"id\d+", "found no match in 'a/b.png'"),
        ("a/b.png", r"(x)?b", "found no match in 'a/b.png'"),
        ("a/b.png", "(", "regular expression, found '\\('"),
    ],
)
def test_a_rule_that_does_not_fit_names_the_file(inner, group_by, message):
    with pytest.raises(UserError, match=message):
        splits.group_of(inner, group_by)


@pytest.mark.parametrize(
    "fractions",
    [{"train": 0.5}, {"train": 1.5, "test": -0.5}, {"train": 0.5, "dev": 0.5}, {}],
)
def test_wrong_fractions(fractions):
    with pytest.raises(UserError, match="sum to 1"):
        splits.check_fractions(fractions)


def test_split_is_the_groups_place_in_the_hash_range():
    bounds = {"train": 0.5, "validation": 0.6, "test": 0.8, "finetune": 1.0}
    for group in map(str, range(200)):
        place = int(hashlib.sha256(group.encode()).hexdigest()[:16], 16) / 16**16
        expected = next(split for split, bound in bounds.items() if place < bound)
        assert splits.split_of(group, FRACTIONS) == expected


def test_splits_never_change():
    # On any machine and in any version: these are part of every reported result.
    drawn = [splits.split_of(group, FRACTIONS) for group in "abcdefgh"]
    assert drawn == ["test", *["train"] * 5, "finetune", "test"]


def test_split_sizes_follow_the_fractions():
    drawn = collections.Counter(
        splits.split_of(f"video{i}", FRACTIONS) for i in range(4000)
    )
    for split, fraction in FRACTIONS.items():
        # Five standard deviations of a binomial.
        slack = 5 * (4000 * fraction * (1 - fraction)) ** 0.5
        assert abs(drawn[split] - 4000 * fraction) < slack


def test_a_fraction_of_zero_makes_no_split():
    fractions = {"train": 0.7, "validation": 0.0, "test": 0.3, "finetune": 0.0}
    drawn = {splits.split_of(str(i), fractions) for i in range(100)}
    assert drawn == {"train", "test"}


def test_assign_keeps_groups_together_across_classes(tmp_path):
    for i in range(40):
        touch(tmp_path, f"real/id{i}/0.png", f"real/id{i}/1.png", f"fake/gan/id{i}.png")
    assigned = splits.assign(
        splits.list_files(tmp_path),
        group_by=r"id\d+",
        generator_by="folder",
        fractions=FRACTIONS,
        digests={},
    )
    assert list(assigned) == [s for s in splits.SPLITS if s in assigned]
    homes = collections.defaultdict(list)
    for split, examples in assigned.items():
        for example in examples:
            homes[example.group].append(split)
            assert example.generator == ("gan" if example.label else "")
    assert len(homes) == 40
    for found in homes.values():
        assert len(found) == 3 and len(set(found)) == 1


def test_assign_takes_given_splits(tmp_path):
    touch(tmp_path, "finetune/real/a.png", "finetune/fake/g/a.png")
    assigned = splits.assign(
        splits.list_files(tmp_path),
        group_by="file",
        generator_by="folder",
        fractions=FRACTIONS,
        digests={},
    )
    assert assigned == {
        "finetune": [
            ("finetune/fake/g/a.png", 1, "g/a", "g"),
            ("finetune/real/a.png", 0, "a", ""),
        ]
    }


# Usual names, and what is passed over.


@pytest.mark.parametrize(
    ("real", "fake"), [("Real", "Fake"), ("0_real", "1_fake"), ("REAL", "fake")]
)
def test_usual_names_of_classes(real, fake, tmp_path):
    touch(tmp_path, f"{real}/a.png", f"{fake}/gan/b.png")
    assert splits.list_files(tmp_path) == sorted(
        [
            splits.File(f"{real}/a.png", "", 0, "a.png"),
            splits.File(f"{fake}/gan/b.png", "", 1, "gan/b.png"),
        ]
    )


@pytest.mark.parametrize(
    ("name", "split"),
    [
        *[("training", "train"), ("Train", "train"), ("val", "validation")],
        *[("valid", "validation"), ("testing", "test"), ("fine-tune", "finetune")],
    ],
)
def test_usual_names_of_splits(name, split, tmp_path):
    touch(tmp_path, f"{name}/0_real/a.png", f"{name}/1_fake/b.png")
    found = splits.list_files(tmp_path)
    assert [(file.split, file.label) for file in found] == [(split, 0), (split, 1)]


@pytest.mark.parametrize("pair", [("val", "valid"), ("Train", "training")])
def test_two_folders_for_one_thing_are_an_error(pair, tmp_path):
    touch(tmp_path, *[f"{name}/real/a.png" for name in pair])
    with pytest.raises(UserError, match=f"found {pair[0]}/ and {pair[1]}/"):
        splits.list_files(tmp_path)


def test_images_that_are_passed_over_are_counted(tmp_path):
    touch(tmp_path, "real/a.png", "fake/b.png", "Real2/c.png", "Real2/deep/d.jpg")
    touch(tmp_path, "fake_gan/e.png", "e.txt", "loose.png", "notes/f.txt", ".g/h.png")
    assert splits.ignored(tmp_path) == {".": 1, "Real2": 2, "fake_gan": 1}


def test_images_that_are_passed_over_in_a_folder_of_splits(tmp_path):
    touch(tmp_path, "train/real/a.png", "train/fake/b.png", "train/other/c.png")
    touch(tmp_path, "extra/real/d.png", "train/e.png")
    assert splits.ignored(tmp_path) == {"extra": 1, "train": 1, "train/other": 1}
