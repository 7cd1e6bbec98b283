"""Videos: their tracks, what decides, and those that cannot be read to their end."""

import functools
import os
import signal
import subprocess
import sys
import threading
import time
import types

import drawn_videos
import numpy as np
import pytest
from drawn_videos import BLUE, RED, canvas, rectangle
from hypothesis import given
from hypothesis import strategies as st
from scipy import special

from fdftnet_jax.data.preprocess import Preprocessing
from fdftnet_jax.errors import UserError
from fdftnet_jax.faces import detection, videos
from fdftnet_jax.faces.choice import FaceRules
from fdftnet_jax.prediction import faces, sampling, video

RULES = FaceRules("stub", "all", margin=0, min_size=24, min_confidence=0.5)
SIZE = 8


def redness(views):
    """Log odds of [b, v, size, size, 3] views: positive for red, negative for blue."""
    assert views.dtype == np.uint8 and views.shape[2:] == (SIZE, SIZE, 3)
    difference = views[..., 0].astype(float) - views[..., 2]
    return difference.mean((1, 2, 3)) / 50


def in_process(task, seconds, stop):
    return sampling.samples(task)


def score(path, rules=RULES, **options):
    options = {"every": 1, "max_frames": 0, "reader": in_process} | options
    preprocessing = options.pop("preprocessing", Preprocessing(size=SIZE))
    detector = types.SimpleNamespace(preprocessing=preprocessing, logits=redness)
    return video.score_video(str(path), detector, rules=rules, **options)


@pytest.fixture(autouse=True)
def stub(monkeypatch):
    monkeypatch.setitem(detection.DETECTORS, "stub", drawn_videos.Stub)


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """Blue stays for 12 frames at 8 a second, red comes for four of them, later two."""
    frames = []
    for i in range(12):
        image = rectangle(90 - i, 50, 50, 50, BLUE)
        if i in (2, 3, 4, 5, 10, 11):
            rectangle(10 + i, 10, 40, 40, RED, image)
        frames.append(image)
    return drawn_videos.write(
        tmp_path_factory.mktemp("people") / "a.mp4", frames, rate=8
    )


def test_each_face_is_a_track(people):
    found = score(people)
    blue, red, again = found.tracks
    np.testing.assert_array_equal(blue.frames, np.arange(12))
    np.testing.assert_array_equal(red.frames, [2, 3, 4, 5])
    np.testing.assert_array_equal(again.frames, [10, 11])
    for track in found.tracks:
        np.testing.assert_allclose(track.times, track.frames / 8, atol=1e-3)
        assert track.logit == pytest.approx(track.logits.mean())
        assert track.deviation == pytest.approx(track.logits.std(ddof=1))
    np.testing.assert_allclose(
        red.boxes, [(10 + i, 10, 40, 40) for i in range(2, 6)], atol=2
    )
    assert (blue.logits < -3).all() and (red.logits > 3).all()
    assert (found.frames, found.seconds) == (12, pytest.approx(11 / 8))
    assert found.notes == () and found.reason == ""


def test_the_most_fake_face_that_is_seen_long_enough_decides(people):
    found = score(people)
    assert found.deciding == 1 and found.logit == found.tracks[1].logit
    assert [found.counts(i) for i in range(3)] == [True, True, False]
    # The other way round, it is the blue one.
    found = score(people, score=lambda views: -redness(views))
    assert found.deciding == 0 and found.notes == ()
    # Every fourth frame has red in two frames, one after the other.
    found = score(people, every=4)
    assert [track.logits.size for track in found.tracks] == [3, 1]
    assert found.deciding == 0


def test_it_is_the_mean_of_a_track_that_decides(people):
    """One crop of the blue face looks more fake than all of the red one."""

    def score_of(views):
        blue = redness(views) < 0
        logits = np.where(blue, -20.0, 3.0)
        logits[blue.argmax()] = 100
        return logits

    found = score(people, score=score_of)
    assert found.tracks[0].logits.max() == 100 and found.tracks[0].logit < 0
    assert (found.deciding, found.logit) == (1, 3)


def test_where_no_face_is_seen_long_all_may_decide(people):
    found = score(people, max_frames=2)
    assert found.frames == 2 and {track.logits.size for track in found.tracks} == {1, 2}
    assert found.tracks[found.deciding].logits.size == 1 and found.logit > 3
    assert found.notes == ("no face is seen in 3 sampled frames",)


def test_the_mean_is_of_log_odds():
    logits = np.array([-1.0, 0.5, 40.0])
    track = video.Track(*[np.zeros(3)] * 3, logits)
    assert special.expit(track.logit) > 0.99 > special.expit(logits).mean()


def test_whole_frames_are_one_track(people):
    found = score(people, rules=None)
    [track] = found.tracks
    assert track.logits.size == 12
    np.testing.assert_array_equal(track.boxes, [(0, 0, 160, 120)] * 12)


def test_views_are_scored_in_batches_and_windows_are_averaged(people):
    sizes = []

    def counting(views):
        sizes.append(views.shape[:2])
        return redness(views)

    preprocessing = Preprocessing(view="crops", size=SIZE, grid=3)
    found = score(people, score=counting, preprocessing=preprocessing)
    # 18 crops of nine windows; at most 64 views.
    assert sizes == [(7, 9), (7, 9), (4, 9)]
    for frame in videos.read(people):
        for face in faces.find(frame.pixels, RULES)[0]:
            [logit] = redness(preprocessing(face.crop)[None])
            assert logit in np.concatenate([track.logits for track in found.tracks])


def test_sparse_samples_are_told(tmp_path):
    path = drawn_videos.write(tmp_path / "a.avi", drawn_videos.moving(12), rate=2)
    assert score(path).notes == ()
    [note] = score(path, every=3).notes
    assert note == "sampled frames are 1.5 s apart: a track may be of several people"
    assert len(score(path, every=11).notes) == 2
    assert score(path, rules=None, every=3).notes == ()


def test_seldom_seen_faces_are_told(tmp_path):
    frames = [*drawn_videos.moving(3), *[canvas()] * 4]
    path = drawn_videos.write(tmp_path / "a.avi", frames)
    assert score(path).notes == ("no face in 4 of 7 sampled frames",)
    path = drawn_videos.write(tmp_path / "b.avi", frames[:6])
    assert score(path).notes == ()


# Faces followed from frame to frame.

LEFT, RIGHT = (10, 10, 40, 40), (100, 20, 50, 50)


def followed(*frames):
    follower = video.Follower()
    return [follower.follow(list(boxes)) for boxes in frames]


def moved(box, x, y=0):
    return box[0] + x, box[1] + y, *box[2:]


def test_faces_keep_their_tracks_whatever_their_order():
    found = followed(
        [LEFT, RIGHT], [moved(RIGHT, 9), moved(LEFT, 0, 9)], [LEFT], [LEFT, RIGHT]
    )
    assert found == [[0, 1], [1, 0], [0], [0, 1]]


def test_a_face_elsewhere_is_another():
    # Shares of the union of 0.2, and a little less.
    [_, same] = followed([(0, 0, 60, 60)], [(40, 0, 60, 60)])
    [_, other] = followed([(0, 0, 60, 60)], [(41, 0, 60, 60)])
    assert same == [0] and other == [1]


def test_a_track_ends_after_a_gap():
    missed = [[]] * (video.GAP - 1)
    assert followed([LEFT], *missed, [LEFT])[-1] == [0]
    assert followed([LEFT], *missed, [], [LEFT])[-1] == [1]
    # It is the last box that counts.
    assert followed([LEFT], [moved(LEFT, 20)], [], [moved(LEFT, 40)])[-1] == [0]


def test_the_best_pairs_are_chosen_together():
    """The first box fits both tracks, better the one that is all the second fits."""
    a, b = (0, 0, 100, 100), (60, 0, 100, 100)
    first, second = (25, 0, 100, 100), (0, 0, 100, 50)
    (fits_a, fits_b), (only_a, none) = video.overlap([first, second], [a, b])
    assert fits_a > only_a > fits_b > 0.2 > none
    assert followed([a, b], [first, second])[-1] == [1, 0]
    assert followed([b, a], [second, first])[-1] == [1, 0]


@given(st.lists(st.tuples(*[st.integers(0, 9)] * 2, *[st.integers(1, 9)] * 2)))
def test_overlaps_are_those_of_the_pixels(boxes):
    drawn = np.zeros((len(boxes), 18, 18), bool)
    for mask, (x, y, width, height) in zip(drawn, boxes, strict=True):
        mask[y : y + height, x : x + width] = True
    shares = video.overlap(boxes, boxes)
    assert shares.shape == (len(boxes),) * 2
    for i, a in enumerate(drawn):
        for j, b in enumerate(drawn):
            assert shares[i, j] == pytest.approx((a & b).sum() / (a | b).sum())


# What cannot be read, or shows nobody.


def test_a_video_without_faces_has_a_reason(tmp_path):
    frames = [canvas()] * 3 + [rectangle(30, 30, 15, 40)] * 2
    found = score(drawn_videos.write(tmp_path / "a.avi", frames))
    assert found.reason == "5 frames sampled: 3 x no face found, 2 x face too small"
    assert found.logit is None and found.deciding is None and found.tracks == ()


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("a.mp4", b"", "empty"),
        ("a.mp4", b"no video\n" * 1000, "moov atom not found"),
        ("a.avi", b"no video\n" * 1000, "not a video that is read here"),
    ],
)
def test_a_file_that_is_no_video(name, data, reason, tmp_path):
    (tmp_path / name).write_bytes(data)
    for rules in (RULES, None):
        found = score(tmp_path / name, rules=rules)
        assert found.reason == f"unreadable video: {reason}"
        assert found.logit is None and not found.tracks


def test_a_video_that_ends_early_is_scored_as_far_as_it_goes(tmp_path):
    path = drawn_videos.write(tmp_path / "a.avi", drawn_videos.moving(30))
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    found = score(path)
    assert 10 < found.frames < 28 and found.logit > 3
    note = f"read in part: video ends early: after {found.frames} frames ("
    assert found.notes[0].startswith(note)


def test_damaged_frames_are_no_evidence(tmp_path):
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (48, 64, 3), np.uint8) for _ in range(40)]
    path = drawn_videos.write(tmp_path / "a.mp4", noise)
    data = bytearray(path.read_bytes())
    start = len(data) // 3
    data[start : start + 200] = rng.bytes(200)
    path.write_bytes(data)
    found = score(path, rules=None)
    [track] = found.tracks
    damaged = 40 - track.logits.size
    assert damaged
    assert found.notes == (f"damaged: {damaged} of 40 sampled frames",)


def test_a_detector_that_gives_no_number_gives_no_score(people):
    found = score(people, score=lambda views: redness(views) * np.nan)
    assert found.reason == video.NOT_FINITE and found.logit is None


# The process that reads.


def after_frames(end, task):
    """Two samples, and then?"""
    yield from list(sampling.samples(task))[:2]
    end()


def die():
    os.kill(os.getpid(), signal.SIGSEGV)


def wait():
    time.sleep(600)


@pytest.fixture
def process(monkeypatch):
    """Reads two frames in a process that then does as it is told."""

    def told(end):
        work = functools.partial(after_frames, end)
        monkeypatch.setattr(sampling, "samples", work)
        return sampling.read

    return told


@pytest.fixture
def clip(tmp_path):
    frames = [drawn_videos.face(40 + i, 60, 90, canvas(240, 320)) for i in range(4)]
    return drawn_videos.write(tmp_path / "a.avi", frames)


def test_a_process_reads_the_same(clip):
    rules = faces.rules_of(None)
    found = score(clip, rules=rules, reader=sampling.read)
    same = score(clip, rules=rules)
    assert found.tracks and found.frames == 4
    for track, other in zip(found.tracks, same.tracks, strict=True):
        np.testing.assert_array_equal(track.logits, other.logits)
        np.testing.assert_array_equal(track.boxes, other.boxes)


def test_a_process_that_reads_starts_without_the_network():
    """Otherwise each would start seconds later, and be larger."""
    code = "import sys, fdftnet_jax.prediction.sampling as _; print(*sys.modules)"
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    loaded = set(ended.stdout.split())
    assert "cv2" in loaded and not loaded & {"jax", "flax", "matplotlib", "tensorflow"}


def test_a_video_that_takes_its_reader_down(clip, process):
    found = score(clip, rules=None, reader=process(die))
    assert found.frames == 2 and found.logit is not None
    reason = "unreadable video: reading it ended with SIGSEGV"
    assert found.notes[0] == f"read in part: {reason}"


def test_a_video_that_takes_too_long(clip, process):
    start = time.monotonic()
    found = score(clip, rules=None, reader=process(wait), seconds=1.5)
    assert time.monotonic() - start < 60
    told = found.reason or found.notes[0].removeprefix("read in part: ")
    assert told == "reading takes too long: stopped after 1.5 s"


def test_reading_that_is_stopped(clip, process):
    stop = threading.Event()

    threading.Timer(0.5, stop.set).start()
    found = score(clip, rules=None, reader=process(wait), stop=stop)
    assert (found.reason or found.notes[0].removeprefix("read in part: ")) == "stopped"


def test_what_is_wrong_with_every_video_is_raised(clip, monkeypatch):
    def missing():
        raise UserError("expected the packages mtcnn and tensorflow")

    monkeypatch.setitem(detection.DETECTORS, "missing", missing)
    with pytest.raises(UserError, match="expected the packages"):
        score(clip, rules=FaceRules("missing"))
