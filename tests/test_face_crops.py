"""From a tree of videos to a tree of crops, with a detector that knows the videos."""

import itertools
import json
import os
import shutil
import sys

import drawn_videos
import face_crop_runs
import numpy as np
import pytest
from drawn_videos import BLUE, Stub, canvas, rectangle
from face_crop_runs import prepare, reasons, table

from fdftnet_jax.data import images, splits
from fdftnet_jax.errors import UserError
from fdftnet_jax.faces import choice, crops, preparation
from fdftnet_jax.faces.detection import Face


@pytest.fixture
def config():
    return face_crop_runs.crop_config()


@pytest.fixture
def tree(tmp_path):
    return face_crop_runs.write_tree(tmp_path / "in")


@pytest.fixture
def serial(monkeypatch):
    return face_crop_runs.without_processes(monkeypatch)


def test_a_tree_of_videos_becomes_a_tree_of_crops(config, tree, tmp_path, serial):
    config.margin = 0.25
    found = prepare(config, tree, tmp_path / "out")
    out = tmp_path / "out"
    crops = sorted(str(path.relative_to(out)) for path in out.rglob("*.png"))
    assert crops == [
        f"{video}/{frame:06d}_0.png"
        for video in ("fake/000_003", "real/a/003")
        for frame in (0, 3, 6, 9)
    ]
    rows = table(out / "manifest.csv")
    assert [row["crop"] for row in rows] == crops
    assert list(rows[0]) == list(preparation.MANIFEST)
    for row in rows:
        side, stem = (40, "003") if "real" in row["video"] else (50, "000_003")
        frame = int(row["frame"])
        assert float(row["seconds"]) == pytest.approx(frame / 10, abs=1e-3)
        assert (row["face"], row["confidence"], row["source"]) == ("0", "0.9", stem)
        box = [int(row[key]) for key in ("x", "y", "width", "height")]
        np.testing.assert_allclose(box, (10 + 2 * frame, 20, side, side), atol=2)
        crop_x, crop_y, crop_side = (int(row[f"crop_{k}"]) for k in ("x", "y", "side"))
        assert crop_side == round(1.5 * max(box[2:]))
        # Twenty pixels of margin do not fit in at the left.
        if side == 40:
            assert crop_x == pytest.approx(max(0, 2 * frame), abs=3)
        pixels = images.decode(out / row["crop"])
        assert pixels.shape == (crop_side, crop_side, 3) and pixels.dtype == np.uint8
        expected = canvas()
        rectangle(10 + 2 * frame, 20, side, side, image=expected)
        expected = expected[crop_y:][:crop_side, crop_x:][:, :crop_side]
        # The codec blurs edges.
        assert np.median(np.abs(pixels - expected.astype(int))) <= 6
    assert found.videos == found.new == 2 and found.crops == 8
    assert (found.changed, found.unreadable, found.rejected) == (0, 0, {})
    assert len(serial) == 2


def test_crops_are_a_data_set_grouped_by_folder(config, tree, tmp_path, serial):
    prepare(config, tree, tmp_path / "out")
    listed = splits.list_files(tmp_path / "out")
    assert len(listed) == 8
    groups = {splits.group_of(file.inner, "folder") for file in listed}
    assert groups == {"a/003", "000_003"}


def test_the_preparation_is_written(config, tree, tmp_path, serial):
    prepare(config, tree, tmp_path / "out")
    written = json.loads((tmp_path / "out/preparation.json").read_text())
    assert written["detector"] == "stub" and written["detector_version"] == "1"
    # The detector's own.
    assert written["min_confidence"] == 0.5
    for key in ("every", "max_frames", "faces", "margin", "min_size"):
        assert written[key] == config[key]


def test_at_most_so_many_frames_a_video(config, tree, tmp_path, serial):
    config.max_frames = 2
    prepare(config, tree, tmp_path / "out")
    rows = table(tmp_path / "out/manifest.csv")
    # Of 0, 3, 6, 9, the middles of both halves.
    assert [row["frame"] for row in rows] == ["3", "9"] * 2


def test_a_single_video(config, tree, tmp_path, serial):
    prepare(config, tree / "real/a/003.mp4", tmp_path / "out")
    assert {row["crop"][:4] for row in table(tmp_path / "out/manifest.csv")} == {"003/"}


@pytest.mark.parametrize(
    ("rule", "sources"),
    [
        ("stem", {"003", "000_003"}),
        (r"(\d+)\.", {"003"}),
        ("real|fake", {"real", "fake"}),
    ],
)
def test_sources(rule, sources, config, tree, tmp_path, serial):
    config.source_by = rule
    prepare(config, tree, tmp_path / "out")
    rows = table(tmp_path / "out/manifest.csv")
    assert {row["source"] for row in rows} == sources


# Which faces.


def frames_of(*pictures):
    return list(itertools.chain.from_iterable([picture] * 3 for picture in pictures))


def test_each_frame_has_crops_or_a_reason(config, tmp_path, serial):
    pictures = (
        rectangle(30, 30, 40, 40),
        canvas(),
        rectangle(30, 30, 40, 40, BLUE),
        rectangle(30, 30, 26, 40),
        rectangle(30, 30, 15, 40),
    )
    drawn_videos.write(tmp_path / "in/a.avi", frames_of(*pictures))
    config.min_confidence = 0.85
    found = prepare(config, tmp_path / "in", tmp_path / "out")
    frames = [row["frame"] for row in table(tmp_path / "out/manifest.csv")]
    assert frames == ["0", "9"]
    assert reasons(tmp_path / "out") == [
        ("a.avi", "3", "no face"),
        ("a.avi", "6", "low confidence"),
        ("a.avi", "12", "face too small"),
    ]
    assert found.rejected == {"no face": 1, "low confidence": 1, "face too small": 1}
    details = [row["detail"] for row in table(tmp_path / "out/rejected.csv")]
    assert details[:2] == ["", "0.8"] and details[2].endswith(" pixels")


@pytest.mark.parametrize(("faces", "number"), [("largest", 1), ("all", 2)])
def test_the_largest_face_comes_first(faces, number, config, tmp_path, serial):
    both = rectangle(90, 60, 50, 50, BLUE, rectangle(10, 10, 40, 40))
    drawn_videos.write(tmp_path / "in/a.avi", [both])
    config.faces = faces
    prepare(config, tmp_path / "in", tmp_path / "out")
    rows = table(tmp_path / "out/manifest.csv")
    assert [row["face"] for row in rows] == ["0", "1"][:number]
    assert [int(row["x"]) > 80 for row in rows] == [True, False][:number]
    assert [row["confidence"] for row in rows] == ["0.8", "0.9"][:number]


@pytest.mark.parametrize("faces", ["largest", "all"])
def test_a_face_in_the_background_is_not_taken_for_the_usual(
    faces, config, tmp_path, serial
):
    usual, other = rectangle(30, 20, 70, 70), rectangle(120, 5, 28, 28)
    drawn_videos.write(tmp_path / "in/a.avi", frames_of(usual, other, usual))
    config.faces = faces
    prepare(config, tmp_path / "in", tmp_path / "out")
    kept = sorted(path.name for path in (tmp_path / "out/a").glob("*.png"))
    frames = [int(row["frame"]) for row in table(tmp_path / "out/manifest.csv")]
    assert [f"{frame:06d}_0.png" for frame in frames] == kept
    if faces == "all":
        assert frames == [0, 3, 6] and reasons(tmp_path / "out") == []
    else:
        assert frames == [0, 6]
        assert reasons(tmp_path / "out") == [("a.avi", "3", crops.ANOTHER)]


def test_ties_of_size_are_broken_by_confidence_then_place():
    rules = choice.FaceRules(faces="all", margin=0, min_size=1, min_confidence=0)
    faces = [
        Face(9, 9, 10, 10, 1),
        Face(5, 9, 10, 10, 1),
        Face(9, 9, 10, 10, 2),
        Face(0, 0, 5, 20, 1),
        Face(0, 0, 11, 10, 0),
    ]
    for order in itertools.permutations(faces):
        chosen, _, _ = choice.choose(order, rules)
        assert chosen == [faces[i] for i in (4, 2, 3, 1, 0)]


def test_the_smallest_face_that_is_looked_for(config, tmp_path, serial):
    asked = []

    class Asked(Stub):
        def __call__(self, image, smallest):
            asked.append((smallest, image.shape))
            return super().__call__(image, smallest)

    drawn_videos.write(tmp_path / "in/a.avi", [rectangle(10, 10, 100, 100)])
    large = rectangle(10, 10, 100, 100, image=canvas(1200, 1600))
    drawn_videos.write(tmp_path / "in/b.avi", [large])
    for min_size in (64, 20):
        config.min_size = min_size
        prepare(config, tmp_path / "in", tmp_path / f"out{min_size}", Asked)
    assert [smallest for smallest, _ in asked] == [32, 60, 24, 60]
    assert asked[1][1] == (1200, 1600, 3)


# What cannot be read.


def test_videos_that_cannot_be_read_are_listed(config, tree, tmp_path, serial):
    (tree / "empty.mp4").touch()
    (tree / "real/broken.mov").write_bytes(b"broken" * 100)
    (tree / "real/gone.mkv").symlink_to(tmp_path / "nowhere")
    found = prepare(config, tree, tmp_path / "out")
    assert found.unreadable == 3 and found.new == 2 and found.crops == 8
    assert reasons(tmp_path / "out") == [
        (video, "", "unreadable video")
        for video in ("empty.mp4", "real/broken.mov", "real/gone.mkv")
    ]
    details = [row["detail"] for row in table(tmp_path / "out/rejected.csv")]
    assert details[0] == "empty" and all(details)
    assert not (tmp_path / "out/empty").exists()
    # They are tried again, the others are not.
    serial.clear()
    drawn_videos.write(tree / "repaired.mp4", drawn_videos.moving())
    (tree / "repaired.mp4").rename(tree / "empty.mp4")
    found = prepare(config, tree, tmp_path / "out")
    assert serial == ["empty.mp4", "real/broken.mov", "real/gone.mkv"]
    assert (found.unreadable, found.new, found.crops) == (2, 1, 12)


def test_a_name_that_is_not_utf_8(config, tree, tmp_path, serial):
    os.rename(tree / "real/a/003.mp4", os.fsencode(tree / "real") + b"/\xff.mp4")
    found = prepare(config, tree, tmp_path / "out")
    assert (found.unreadable, found.new) == (1, 1)
    [row] = table(tmp_path / "out/rejected.csv")
    assert row["video"] == r"real/\xff.mp4"
    assert row["detail"] == "its name is not UTF-8"


def test_a_video_that_is_cut_short_gives_what_there_is(config, tree, tmp_path, serial):
    path = tree / "fake/000_003.avi"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    prepare(config, tree, tmp_path / "out")
    [row] = reasons(tmp_path / "out")
    assert row[0] == "fake/000_003.avi" and row[2] == "video ends early"
    assert (tmp_path / "out/fake/000_003/000000_0.png").exists()


@pytest.mark.parametrize("readable", [False, True])
def test_no_crop_at_all_is_an_error(readable, config, tmp_path, serial):
    if readable:
        drawn_videos.write(tmp_path / "in/a.avi", [canvas()])
    else:
        (tmp_path / "in").mkdir()
        (tmp_path / "in/a.avi").touch()
    reason = "no face" if readable else "unreadable video"
    with pytest.raises(UserError, match=rf"found none \(1 x {reason}\), listed in"):
        prepare(config, tmp_path / "in", tmp_path / "out")
    assert [row[2] for row in reasons(tmp_path / "out")] == [reason]


def test_a_video_that_takes_its_reader_down(config, tree, tmp_path):
    drawn_videos.write(tree / "dark.avi", [canvas(colour=(9, 9, 9))])
    config.workers = 2
    found = prepare(config, tree, tmp_path / "out", drawn_videos.Murderous)
    assert found.unreadable == 1 and found.crops == 8
    [row] = table(tmp_path / "out/rejected.csv")
    assert row["video"] == "dark.avi"
    assert row["detail"] == "reading it ended with SIGSEGV"
    assert not (tmp_path / "out/.incomplete").exists()


# Mistakes.


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("detector", "stubs", "expected 'stub'"),
        ("faces", "smallest", "expected 'largest' or 'all'"),
        ("every", 0, "a whole number, 1 or more"),
        ("max_frames", -1, "a whole number, 0 or more"),
        ("margin", -0.1, "a number, 0 to 10"),
        ("margin", float("nan"), "a number, 0 to 10"),
        ("min_size", 0, "a whole number, 1 or more"),
        ("min_confidence", -1.0, "a number, 0 or more"),
        ("workers", -1, "a whole number, 0 or more"),
        ("source_by", "(", "regular expression"),
        ("source_by", "x(y)", "no match in 'fake/000_003.avi'"),
    ],
)
def test_values_that_do_not_fit(field, value, message, config, tree, tmp_path):
    config[field] = value
    with pytest.raises(UserError) as error:
        prepare(config, tree, tmp_path / "out")
    assert message in str(error.value) and field in str(error.value)
    assert not (tmp_path / "out").exists()


def test_inputs_that_do_not_fit(config, tree, tmp_path):
    (tmp_path / "empty").mkdir()
    for source, message in (
        (tmp_path / "nowhere", "found nothing"),
        (tmp_path / "empty", "found 0 files of other kinds"),
        (tree / "notes.txt", "found 1 file of other kinds"),
    ):
        with pytest.raises(UserError, match=message):
            prepare(config, source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_without_pyav_it_says_what_to_install(config, tree, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UserError, match=r"^videos need PyAV; give `pip install av`$"):
        prepare(config, tree, tmp_path / "out")


def test_an_output_that_is_a_file(config, tree, tmp_path, serial):
    (tmp_path / "out").touch()
    with pytest.raises(UserError, match=r"expected to write face crops to .*another"):
        prepare(config, tree, tmp_path / "out")


@pytest.mark.parametrize(
    ("names", "folders"), [(("a.mp4", "a.avi"), "a/"), (("a.mp4", "a/b.mp4"), "a/b/")]
)
def test_videos_whose_crops_would_go_to_one_folder(names, folders, config, tmp_path):
    for name in names:
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).touch()
    with pytest.raises(UserError, match="rename one of them") as error:
        prepare(config, tmp_path / "in", tmp_path / "out")
    assert all(name in str(error.value) for name in (*names, folders))


def test_a_folder_that_is_somebody_elses(config, tree, tmp_path, serial):
    mine = tmp_path / "out/real/a/003/mine.png"
    mine.parent.mkdir(parents=True)
    mine.touch()
    for replace in (False, True):
        with pytest.raises(UserError, match="did not make, such as real"):
            prepare(config, tree, tmp_path / "out", replace=replace)
        with pytest.raises(UserError, match="also an input"):
            prepare(config, tree, tree, replace=replace)
    assert not serial
    # A folder that appears beside crops of this command.
    prepare(config, tree, tmp_path / "other")
    shutil.copy(tmp_path / "other/preparation.json", tmp_path / "out")
    with pytest.raises(UserError, match="003, or one that this command has made"):
        prepare(config, tree, tmp_path / "out")
    assert mine.exists()


def test_crops_by_other_rules_are_replaced_on_request_alone(
    config, tree, tmp_path, serial
):
    out = tmp_path / "out"
    prepare(config, tree, out)
    before = sorted(p.relative_to(out) for p in out.rglob("*.png"))
    number = len(serial)
    config.every = 2 * config.every
    with pytest.raises(UserError, match=r"prepared otherwise .*--replace"):
        prepare(config, tree, out)
    assert sorted(p.relative_to(out) for p in out.rglob("*.png")) == before
    prepare(config, tree, out, replace=True)
    assert len(serial) == 2 * number
    assert len(list(out.rglob("*.png"))) < len(before)
