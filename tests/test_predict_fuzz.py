"""Damaged files of every kind: the row says what the strict readers say, always."""

import faulthandler
import tempfile
from pathlib import Path

import drawn_videos
import hypothesis
import numpy as np
import pytest
import test_reader_fuzz as fuzz
from hypothesis import strategies as st
from stand_in import StandIn, predict, rows

import fdftnet_jax
from fdftnet_jax.data import images
from fdftnet_jax.faces import videos
from fdftnet_jax.prediction import video

SECONDS = 60
DETECTOR = StandIn()
DAMAGE = st.lists(fuzz.MUTATIONS, min_size=0, max_size=3)
# Files of a folder: which file, how it is damaged, and under which suffix it goes.
SUFFIXES = st.sampled_from([".jpg", ".png", ".gif", ".webp", ".mp4"])
PICTURES = st.tuples(st.sampled_from(sorted(fuzz.FILES)), DAMAGE, SUFFIXES)


@pytest.fixture(autouse=True)
def no_hang():
    """Ends the process where a command does not come back."""
    faulthandler.dump_traceback_later(SECONDS, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture(autouse=True, scope="module")
def stand_in():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fdftnet_jax, "load", lambda path, program: DETECTOR)
        yield


def damaged(data, mutations):
    for mutation in mutations:
        data = fuzz.mutate(data, mutation)
    return data


def predicted(contents):
    """The rows of files of these (content, suffix), and the files, in a folder."""
    with tempfile.TemporaryDirectory() as folder:
        for number, (data, suffix) in enumerate(contents):
            Path(folder, f"{number:04d}{suffix}").write_bytes(data)
        out = Path(folder, "out")
        code = predict(folder, "--csv", out, "--workers", "2")
        _, found = rows(out)
        assert len(found) == len(contents)
        assert code == (0 if any(row["score"] for row in found) else 3)
        for number, row in enumerate(found):
            yield row, Path(folder, f"{number:04d}{contents[number][1]}")


def check(row, expected):
    """Compares a row with a logit, or with the reason for which there is none."""
    if isinstance(expected, str):
        assert row["verdict"] == "undecided" and not row["score"]
        assert row["reason"] == expected
    else:
        assert float(row["logit"]) == pytest.approx(expected, rel=1e-6, abs=1e-6)
        assert row["verdict"] == ("fake" if expected >= DETECTOR.threshold else "real")
        assert not row["reason"]


def expected_of(path):
    try:
        return DETECTOR.expected(images.decode(path))
    except images.ImageError as error:
        return " ".join(error.reason.split())


@hypothesis.settings(max_examples=30, derandomize=True, deadline=None, database=None)
@hypothesis.given(st.lists(PICTURES, min_size=1, max_size=20))
def test_damaged_pictures(chosen):
    contents = [
        # Not every video that is none is worth the process that finds it out.
        (data, ".jpg" if suffix == ".mp4" and not is_picture(data) else suffix)
        for data, suffix in (
            (damaged(fuzz.FILES[name], mutations), suffix)
            for name, mutations, suffix in chosen
        )
    ]
    for row, path in predicted(contents):
        check(row, expected_of(path))


def is_picture(data):
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        return images.format_of(file.name) is not None


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    folder = tmp_path_factory.mktemp("films")
    canvases = [drawn_videos.canvas(48, 64, (6 * i, 90, 80)) for i in range(31)]
    # (Frames of one colour are not judged.)
    frames = [drawn_videos.rectangle(20, 10, 9, 9, image=c) for c in canvases]
    return {
        suffix: drawn_videos.write(folder / f"film{suffix}", frames).read_bytes()
        for suffix in (".avi", ".mp4")
    }


@pytest.mark.slow
@hypothesis.settings(max_examples=4, derandomize=True, deadline=None, database=None)
@hypothesis.given(
    st.lists(
        st.tuples(st.sampled_from([".avi", ".mp4"]), DAMAGE), min_size=2, max_size=5
    )
)
def test_damaged_videos(films, chosen):
    contents = [(damaged(films[suffix], how), suffix) for suffix, how in chosen]
    for row, path in predicted(contents):
        if images.format_of(path):
            # What was spliced onto it.
            check(row, expected_of(path))
            continue
        assert row["kind"] == "video"
        try:
            frames = list(videos.read(path, video.EVERY, video.MAX_FRAMES))
        except videos.VideoError:
            assert row["verdict"] == "undecided" and row["reason"]
            continue
        whole = [frame for frame in frames if frame.pixels is not None]
        if not whole:
            assert row["verdict"] == "undecided" and row["reason"]
            continue
        logits = [DETECTOR.expected(frame.pixels) for frame in whole]
        check(row, float(np.mean(logits)))
        assert int(row["frames"]) == len(whole)
        assert bool(row["notes"]) or (len(whole) == len(frames) >= video.LEAST_FRAMES)
