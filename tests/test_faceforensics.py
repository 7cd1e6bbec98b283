"""Which split a video of FaceForensics++ or of the set of actors belongs to."""

import collections
import re
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paper_trees import (
    ACTORS,
    DEEPFAKES,
    DFD,
    FACE2FACE,
    FRACTIONS,
    YOUTUBE,
    frames,
    places,
    reasons,
    swapped,
    touch,
    write_lists,
)

from fdftnet_jax.data import splits
from fdftnet_jax.errors import UserError
from fdftnet_jax.paper_sets import faceforensics

PAIRS = [("071", "054"), ("000", "003"), ("001", "870"), ("002", "006")]
OFFICIAL = {
    "train": [["071", "054"]],
    "validation": [["000", "003"]],
    "test": [["001", "870"]],
}


def read(root, name="deepfakes", fractions=FRACTIONS, compression="c23"):
    return faceforensics.read(Path(root), name, compression, fractions)


def write_pairs(root, pairs=PAIRS, fakes=DEEPFAKES, number=1):
    videos = [video for pair in pairs for video in pair]
    touch(root, *frames(YOUTUBE, videos, number))
    touch(root, *frames(fakes, swapped(pairs), number))


def test_a_pair_is_a_group_whichever_way_it_was_swapped(tmp_path):
    write_pairs(tmp_path, number=2)
    found = places(read(tmp_path))
    assert len(found) == 4 * 2 * 4
    for path, (split, group, label, generator) in found.items():
        video = path.split("/")[-2]
        first, second = next(pair for pair in PAIRS if set(video.split("_")) & {*pair})
        assert group == "_".join(sorted((first, second)))
        assert label == ("_" in video) == path.startswith(DEEPFAKES)
        assert generator == ("deepfakes" if label else "")
        assert split == splits.split_of(group, FRACTIONS)


@pytest.mark.parametrize("folder", ["", "splits"])
@pytest.mark.parametrize("validation", ["val", "validation"])
def test_the_official_lists_are_followed(tmp_path, folder, validation):
    write_pairs(tmp_path, PAIRS[:3])
    write_lists(tmp_path / folder, OFFICIAL, validation)
    layout = read(tmp_path, fractions={"train": 0.5, "test": 0.5})
    assert layout.expected == ["train", "validation", "test"]
    assert not layout.left_out
    for path, (split, group, *_) in places(layout).items():
        video = path.split("/")[-2].split("_")[0]
        (listed,) = (s for s, pairs in OFFICIAL.items() if video in pairs[0])
        assert (split, group) == (listed, "_".join(sorted(OFFICIAL[listed][0])))


def test_fine_tuning_gets_its_share_of_the_official_training_pairs(tmp_path):
    pairs = [[f"{i:03d}", f"{i + 400:03d}"] for i in range(400)]
    official = {"train": pairs[:360], "validation": pairs[360:380], "test": pairs[380:]}
    write_pairs(tmp_path, pairs)
    write_lists(tmp_path, official)
    fractions = {"train": 0.3, "finetune": 0.1, "test": 0.6}
    layout = read(tmp_path, fractions=fractions)
    assert layout.expected == list(splits.SPLITS)
    groups = {s: {e.group for e in some} for s, some in layout.examples.items()}
    assert len(groups["validation"]) == len(groups["test"]) == 20
    assert len(groups["train"] | groups["finetune"]) == 360
    # A quarter of 360, by 4 standard deviations of a binomial draw.
    assert abs(len(groups["finetune"]) - 90) < 4 * (360 * 0.25 * 0.75) ** 0.5
    everything = read(tmp_path, fractions={"finetune": 1.0})
    assert set(everything.examples) == {"validation", "test", "finetune"}
    # What was drawn for fine-tuning stays, whatever pairs there are.
    write_lists(tmp_path, official | {"train": pairs[100:360]})
    fewer = read(tmp_path, fractions=fractions).examples["finetune"]
    assert {e.group for e in fewer} < groups["finetune"]


def test_what_the_lists_do_not_know_is_left_out(tmp_path):
    write_pairs(tmp_path)
    write_lists(tmp_path, OFFICIAL)
    touch(tmp_path, *frames(DEEPFAKES, ["071_000", "071_999", "071-054"]))
    touch(tmp_path, f"{YOUTUBE}/071_0000.png", *frames(YOUTUBE, ["final"]))
    layout = read(tmp_path)
    assert reasons(layout) == {
        f"{YOUTUBE}/002": "not in the official splits",
        f"{YOUTUBE}/006": "not in the official splits",
        f"{DEEPFAKES}/002_006": "not in the official splits",
        f"{DEEPFAKES}/006_002": "not in the official splits",
        f"{DEEPFAKES}/071_999": "not in the official splits",
        f"{DEEPFAKES}/071_000": "two videos of different pairs",
        f"{DEEPFAKES}/071-054": "a name that does not tell its videos",
        f"{YOUTUBE}/final": "a name that does not tell its videos",
        f"{YOUTUBE}/071_0000.png": "not in the folder of a video",
    }
    assert len(places(layout)) == 12


def test_a_real_video_without_a_fake_and_the_reverse(tmp_path):
    touch(tmp_path, *frames(YOUTUBE, ["071", "999"]), *frames(DEEPFAKES, ["054_071"]))
    found = {p.split("/")[-2]: v[1] for p, v in places(read(tmp_path)).items()}
    assert found == {"071": "054_071", "054_071": "054_071", "999": "999"}
    lists = {"train": [["071", "054"]], "validation": [["9", "8"]], "test": []}
    write_lists(tmp_path, lists)
    with pytest.raises(UserError, match=r"test\.json, found something else"):
        read(tmp_path)
    write_lists(tmp_path, lists | {"test": [["999", "998"]]})
    found = {p.split("/")[-2]: v[1] for p, v in places(read(tmp_path)).items()}
    assert found == {"071": "054_071", "054_071": "054_071", "999": "998_999"}


def test_both_manipulations_are_split_alike(tmp_path):
    # Only Face2Face has a fake of 071 with 054, only another compression one of 000.
    touch(tmp_path, *frames(YOUTUBE, ["071", "054", "000", "003"]))
    touch(tmp_path, *frames(DEEPFAKES, ["001_870", "006_003"]))
    touch(tmp_path, *frames(FACE2FACE, ["071_054"]))
    touch(tmp_path, *frames(DEEPFAKES.replace("c23", "c40"), ["000_003"]))
    first, second = (places(read(tmp_path, n)) for n in ("deepfakes", "face2face"))
    real = {path for path in first if path.startswith(YOUTUBE)}
    assert len(real) == 4
    assert all(first[path] == second[path] for path in real)
    groups = {path.split("/")[-2]: first[path][1] for path in real}
    assert groups["071"] == groups["054"] == "054_071"
    assert groups["000"] == groups["003"] == "000_003_006"


NUMBERS = st.integers(0, 9).map("{:03d}".format)
VIDEO_PAIRS = st.tuples(NUMBERS, NUMBERS).filter(lambda pair: pair[0] != pair[1])


@settings(max_examples=60, deadline=None)
@given(
    real=st.sets(NUMBERS, min_size=1),
    fake=st.sets(VIDEO_PAIRS, min_size=1),
    official=st.booleans(),
)
def test_no_video_and_no_group_is_in_two_splits(real, fake, official):
    with tempfile.TemporaryDirectory() as root:
        names = ["_".join(pair) for pair in fake]
        touch(Path(root), *frames(YOUTUBE, real), *frames(DEEPFAKES, names))
        if official:
            lists = {"train": [["000", "001"], ["002", "003"]]}
            lists |= {"validation": [["004", "005"]], "test": [["006", "007"]]}
            write_lists(Path(root), lists)
        layout = read(root)
    found = places(layout)
    videos, groups = collections.defaultdict(set), collections.defaultdict(set)
    for path, (split, group, *_) in found.items():
        groups[group].add(split)
        for video in path.split("/")[-2].split("_"):
            videos[video].add(split)
    assert all(len(where) == 1 for where in [*videos.values(), *groups.values()])
    left = sum(left.images for left in layout.left_out)
    assert len(found) + left == len(real) + len(fake)
    assert bool(left) <= official


@settings(max_examples=60, deadline=None)
@given(
    real=st.sets(NUMBERS, min_size=1), fake=st.sets(VIDEO_PAIRS, min_size=1, max_size=9)
)
def test_no_actor_is_in_two_splits(real, fake):
    with tempfile.TemporaryDirectory() as root:
        touch(Path(root), *frames(ACTORS, [f"{actor}__hugging" for actor in real]))
        names = [f"{a}_{b}__walking_outside__X1Y{a}" for a, b in fake]
        touch(Path(root), *frames(DFD, names, number=3))
        layout = read(root, "dfd")
    actors = collections.defaultdict(set)
    for path, (split, group, label, generator) in places(layout).items():
        named = path.split("/")[-2].split("__")[0].split("_")
        assert group == "dfd/" + "_".join(sorted(named))
        assert (label, generator) == ((1, "dfd") if len(named) == 2 else (0, ""))
        for actor in named:
            actors[actor].add(split)
    assert all(len(where) == 1 for where in actors.values())
    # Exactly the fakes of two actors whom the hash deals apart are left out.
    dealt = {i: splits.split_of(f"dfd/{i}", FRACTIONS) for i in {*real, *sum(fake, ())}}
    apart = {f"{a}_{b}" for a, b in fake if dealt[a] != dealt[b]}
    left = {Path(left.path).name.split("__")[0] for left in layout.left_out}
    assert left == apart
    assert all(left.images == 3 for left in layout.left_out)
    assert {*reasons(layout).values()} <= {"two actors of different splits"}


def test_names_of_actors(tmp_path):
    touch(tmp_path, *frames(ACTORS, ["01__exit", "01_02__exit", "exit"]))
    touch(tmp_path, *frames(DFD, ["02_02__exit__AB", "01__exit__CD"]))
    layout = read(tmp_path, "dfd")
    assert {v[1] for v in places(layout).values()} == {"dfd/01", "dfd/02"}
    left = {path.split("/")[-1]: reason for path, reason in reasons(layout).items()}
    named = "a name that does not tell its actors"
    assert left == {"01_02__exit": named, "exit": named, "01__exit__CD": named}


def one_line(error):
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("name", "real", "fake"),
    [
        ("deepfakes", YOUTUBE, DEEPFAKES),
        ("face2face", YOUTUBE, FACE2FACE),
        ("dfd", ACTORS, DFD),
    ],
)
def test_missing_folders_are_listed_with_the_command(tmp_path, name, real, fake):
    with pytest.raises(UserError) as error:
        read(tmp_path, name)
    message = one_line(error)
    assert f"{real}/VIDEO/*.png and {fake}/VIDEO/*.png" in message
    assert f"found none in {real} and in {fake};" in message
    command = "python -m experiments.prepare_faces --input=VIDEOS --output="
    assert f"`{command}{tmp_path}`" in message
    touch(tmp_path, *frames(real, ["071"]), f"{fake}/071_054/notes.txt")
    with pytest.raises(UserError, match=f"found none in {fake};"):
        read(tmp_path, name)


def test_another_compression_is_named(tmp_path):
    write_pairs(tmp_path)
    message = r"found none in .*/raw/videos \(but there is --config.data.compression=c2"
    with pytest.raises(UserError, match=message):
        read(tmp_path, compression="raw")


@pytest.mark.parametrize("folder", [YOUTUBE, DEEPFAKES])
def test_videos_in_place_of_faces(tmp_path, folder):
    write_pairs(tmp_path)
    for path in (tmp_path / folder).rglob("*.png"):
        path.unlink()
    touch(tmp_path, f"{folder}/071.MP4")
    with pytest.raises(UserError) as error:
        read(tmp_path)
    message = one_line(error)
    assert f"in {tmp_path / folder}, found videos (071.MP4)" in message
    command = f"python -m experiments.prepare_faces --input={tmp_path} --output=DIR"
    assert f"`{command}`" in message


def test_videos_beside_faces_are_ignored(tmp_path):
    write_pairs(tmp_path)
    touch(tmp_path, f"{YOUTUBE}/071.mp4", f"{DEEPFAKES}/071_054/faces.csv")
    layout = read(tmp_path)
    assert len(places(layout)) == 16 and not layout.left_out


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ({"train": [["071", "054"]]}, "found no val.json and no test.json"),
        (OFFICIAL | {"test": {"071": "054"}}, "test.json, found something else"),
        (OFFICIAL | {"test": [["071", 54]]}, "test.json, found something else"),
        (OFFICIAL | {"test": [["071", "054", "1"]]}, "test.json, found something else"),
        (OFFICIAL | {"test": [["071", "054"]]}, "found it in train and in test"),
        (OFFICIAL | {"test": [["054", "1"]]}, "('054', '1') in test, and one of"),
    ],
)
def test_lists_that_cannot_be_followed(tmp_path, lists, message):
    write_pairs(tmp_path)
    write_lists(tmp_path, lists)
    with pytest.raises(UserError, match=re.escape(message)) as error:
        read(tmp_path)
    one_line(error)


def test_a_list_that_is_no_json(tmp_path):
    write_pairs(tmp_path)
    write_lists(tmp_path, OFFICIAL)
    (tmp_path / "val.json").write_bytes(b'[["000", "\xff')
    with pytest.raises(UserError, match=r"val\.json, found something else"):
        read(tmp_path)
