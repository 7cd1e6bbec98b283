"""`fdftnet predict` as a whole, with a detector that is known in closed form."""

import io
import json
import os
import re
import signal
import struct
import sys
import zlib
from types import SimpleNamespace

import drawn_videos
import numpy as np
import pictures
import pytest
from PIL import Image
from scipy import special
from stand_in import StandIn, predict, rows

import fdftnet_jax
from fdftnet_jax.data import images
from fdftnet_jax.errors import Interrupted, UserError
from fdftnet_jax.faces import detection
from fdftnet_jax.prediction import video, writers


@pytest.fixture
def use(monkeypatch):
    """Makes a stand-in the detector of the commands."""

    def use(**options):
        detector = StandIn(**options)
        monkeypatch.setattr(
            fdftnet_jax, "load", lambda path, program: detector, raising=False
        )
        return detector

    return use


def paint(folder, number, start=0):
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(start)
    for i in range(number):
        pixels = rng.integers(0, 256, 3) * np.ones((34, 36, 3))
        pixels[:4] = 128  # Of more than one colour.
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{start + i:04d}.png")
    return folder


@pytest.mark.parametrize(
    "options", [{}, {"calibrated": False}, {"view": "crops", "grid": 2, "size": 4}]
)
def test_every_picture_has_the_score_that_the_reader_s_pixels_have(
    tmp_path, use, options
):
    detector = use(**options)
    folder = paint(tmp_path / "in", 2 * video.BATCH + 7)
    assert predict(folder, "--csv", tmp_path / "out.csv") == 0
    found, whole = rows(tmp_path / "out.csv")
    assert found == whole
    paths = sorted(folder.iterdir())
    assert [row["path"] for row in found] == [str(path) for path in paths]
    for row, path in zip(found, paths, strict=True):
        z = detector.expected(images.decode(path))
        assert float(row["logit"]) == pytest.approx(z, abs=1e-7)
        assert float(row["score"]) == pytest.approx(special.expit(z), abs=1e-7)
        assert row["verdict"] == ("fake" if z >= 0.5 else "real")
        probability = detector.probability(z)
        if probability is None:
            assert row["probability"] == ""
        else:
            assert float(row["probability"]) == pytest.approx(probability, abs=1e-7)
    views = 4 if options.get("grid") else 1
    batches = [shape[:2] for shape in detector.batches if len(shape) == 5]
    assert set(batches) == {(video.BATCH // views, views)}


def test_the_same_files_give_the_same_bytes(tmp_path, use):
    folder = paint(tmp_path / "in", 80)
    (folder / "0007.png").write_bytes(b"no picture")
    texts = []
    for workers in (1, 1, 4):
        use()
        out = tmp_path / f"{len(texts)}.json"
        assert predict(folder, "--json", out, "--workers", workers) == 0
        texts.append(out.read_text())
    assert texts[0] == texts[1] == texts[2]


def huge_png():
    def chunk(kind, data):
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    header = struct.pack(">IIBBBBB", 10**5, 10**5, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(bytes(10**6)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


RED, BLUE = (200, 10, 10), (10, 10, 200)
# Name -> content, and the verdict or a part of the reason.
HOSTILE = {
    b"16-bit.png": (pictures.rgb16_png((60000, 0, 0)), "nothing to judge"),
    b"animated.gif": (pictures.animation("GIF"), "several frames"),
    b"animated.webp": (pictures.animation("WEBP"), "several frames"),
    b"cmyk.jpg": (pictures.flag("CMYK", (0, 200, 200, 0), "JPEG"), "fake"),
    b"cut.jpg": (pictures.encode(pictures.photograph(), "JPEG")[:600], "truncated"),
    b"empty.jpg": (b"", "empty"),
    b"garbage.png": (b"\x89PNG\r\n\x1a\n" + b"?" * 99, ""),
    b"huge.png": (huge_png(), "pixels"),
    b"jpeg.png": (pictures.flag("RGB", RED, "JPEG"), "fake"),
    b"latin \xe9.png": (pictures.flag("RGB", BLUE), "real"),
    b"line\nbreak.png": (pictures.flag("RGB", RED), "fake"),
    b"png.mp4": (pictures.flag("RGB", RED), "fake"),
    b"text.jpg": (b"just text", "not in an image format"),
    b"video.mp4": (b"\0\0\0\x18ftypisom" + b"?" * 99, "unreadable video"),
    b"zeros.webp": (bytes(99), "not in an image format"),
}


def test_hostile_files_are_scored_rightly_or_have_a_reason(tmp_path, use, capsys):
    use()
    folder = os.fsencode(tmp_path / "in")
    os.mkdir(folder)
    for name, (data, _) in HOSTILE.items():
        with open(os.path.join(folder, name), "wb") as file:
            file.write(data)
    # Opening it would wait for ever.
    os.mkfifo(os.path.join(folder, b"pipe.png"))
    os.symlink("turns.png", os.path.join(folder, b"turns.png"))
    os.symlink(folder, os.path.join(folder, b"zz.jpg"))
    out = tmp_path / "out.csv"
    assert predict(os.fsdecode(folder), "--csv", out) == 0
    expected = {
        **{name: verdict for name, (_, verdict) in HOSTILE.items()},
        b"pipe.png": "not a regular file",
        b"turns.png": os.strerror(40).lower(),
    }
    _, found = rows(out)
    assert len(found) == len(expected)
    for row, name in zip(found, sorted(expected), strict=True):
        path = os.fsdecode(os.path.join(folder, name))
        assert row["path"] == writers.path_text(path)
        if expected[name] in ("real", "fake"):
            assert (row["verdict"], row["reason"]) == (expected[name], "")
        else:
            assert row["verdict"] == "undecided" and not row["score"]
            assert expected[name] in row["reason"].lower()
    told = capsys.readouterr().err
    assert "1 link to a folder" in told and "\n  and 2 more" in told


def test_where_nothing_is_decided_the_exit_code_says_so(tmp_path, use, capsys):
    use()
    (tmp_path / "none.png").write_bytes(b"")
    assert predict(tmp_path / "none.png", tmp_path / "gone", tmp_path) == 3
    text = capsys.readouterr()
    assert text.out.count("undecided") == 3
    assert "none.png: empty" in text.err and "gone: No such file" in text.err
    paint(tmp_path, 1)
    assert predict(tmp_path) == 0


def test_what_is_too_close_to_call_has_been_judged(tmp_path, use, capsys):
    """It is undecided with a score, and is no file that could not be read."""
    use(lower=-100.0)
    blue, red = (30, 30, 200), (200, 30, 30)
    for name, colour in (("a", blue), ("b", red), ("c", blue)):
        image = drawn_videos.canvas(40, 40, colour)
        image[:4] = 128
        Image.fromarray(image).save(tmp_path / f"{name}.png")
    (tmp_path / "d.png").write_bytes(b"")
    out = tmp_path / "out.csv"
    assert predict(tmp_path, "--csv", out) == 0
    _, found = rows(out)
    assert [row["verdict"] for row in found] == [
        "undecided",
        "fake",
        *["undecided"] * 2,
    ]
    assert [row["reason"] for row in found] == [
        *("too close to call", "", "too close to call", "empty")
    ]
    assert [bool(row["score"]) for row in found] == [True, True, True, False]
    told = capsys.readouterr().err
    assert re.search("fake from .*, real below .*, too close to call between", told)
    assert "4 inputs: 0 real, 1 fake, 3 undecided (2 too close to call)" in told
    _, _, named = told.partition("could not be judged:\n")
    assert named.count("\n") == 1 and "d.png: empty" in named
    # Read and scored: that is no failure.
    assert predict(tmp_path / "a.png") == 0
    assert predict(tmp_path / "a.png", tmp_path / "d.png") == 0
    assert predict(tmp_path / "d.png") == 3
    given = ("--threshold", "0.5", "--json", tmp_path / "out.json")
    assert predict(tmp_path / "a.png", *given) == 0
    document = json.loads((tmp_path / "out.json").read_text())
    assert document["threshold"] == {"of": "probability", "value": 0.5}
    assert [row["verdict"] for row in document["results"]] == ["real"]
    assert document["summary"]["too_close"] == 0


def test_a_list_on_standard_input(tmp_path, use, monkeypatch):
    use()
    folder = paint(tmp_path / "in", 3)
    listed = b"%b\n%b\n" % tuple(
        os.fsencode(folder / n) for n in ("0002.png", "0000.png")
    )
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(listed)))
    assert predict("-", folder / "0001.png", "--csv", tmp_path / "out") == 0
    found = [os.path.basename(row["path"]) for row in rows(tmp_path / "out")[0]]
    assert found == ["0002.png", "0000.png", "0001.png"]


def test_the_threshold_and_what_it_is_of_are_said(tmp_path, use, capsys):
    folder = paint(tmp_path / "in", 1)
    use(toy=True)
    predict(folder, "--threshold", "0", "--json", tmp_path / "o")
    assert "toy" in capsys.readouterr().err
    found = json.loads((tmp_path / "o").read_text())
    assert found["schema_version"] == 2
    assert found["threshold"] == {"of": "probability", "value": 0}
    assert found["detector"]["toy"] is True and found["faces"] == "whole"
    assert [row["verdict"] for row in found["results"]] == ["fake"]
    use(notes=["the threshold calls no image of validation fake"])
    predict(folder)
    assert "\ncalibration: the threshold calls no image" in capsys.readouterr().err
    use(calibrated=False)
    predict(folder)
    text = capsys.readouterr()
    assert "not calibrated" in text.err and "toy" not in text.err
    assert "P(fake)" not in text.out


@pytest.mark.parametrize(
    "arguments",
    [
        ("--csv", "{tmp}/none/out.csv"),
        ("--json", "{tmp}"),
        ("--plots", "{tmp}/in/0000.png"),
        ("--explain", "{tmp}/in/0000.png/a"),
        ("--threshold", "2"),
        ("--workers", "-1"),
    ],
)
def test_mistakes_are_told_before_anything_is_scored(tmp_path, use, arguments):
    detector = use()
    folder = paint(tmp_path / "in", 1)
    arguments = [argument.format(tmp=tmp_path) for argument in arguments]
    with pytest.raises(UserError, match=r"; (give|leave)"):
        predict(folder, *arguments)
    assert not detector.batches


@pytest.mark.parametrize("where", ["--csv", "--json"])
def test_what_was_scored_before_ctrl_c_is_kept(tmp_path, use, monkeypatch, where):
    detector = use()
    folder = paint(tmp_path / "in", 3 * video.BATCH)
    logits = detector.logits

    def interrupted(views):
        if len(detector.batches) == 2:
            raise Interrupted(signal.SIGTERM, "stopped")
        return logits(views)

    monkeypatch.setattr(detector, "logits", interrupted)
    out = tmp_path / "out"
    with pytest.raises(
        Interrupted, match=f"after {2 * video.BATCH} inputs.*partial"
    ) as e:
        predict(folder, where, out)
    assert e.value.exit_code == 143
    assert not out.exists()
    partial = tmp_path / "out.partial"
    if where == "--csv":
        assert len(rows(partial)[0]) == 2 * video.BATCH
    else:
        found = json.loads(partial.read_text())
        assert found["summary"]["complete"] is False
        assert len(found["results"]) == 2 * video.BATCH


@pytest.fixture
def stub(monkeypatch):
    monkeypatch.setitem(detection.DETECTORS, "stub", drawn_videos.Stub)
    return {"detector": "stub", "margin": 0.0, "min_size": 27, "min_confidence": 0.5}


def test_faces_are_scored_one_by_one(tmp_path, use, stub):
    detector = use(faces=stub)
    frame = drawn_videos.rectangle(10, 20, 32, 32, drawn_videos.BLUE)
    drawn_videos.rectangle(80, 50, 28, 28, drawn_videos.RED, frame)
    small = drawn_videos.rectangle(10, 20, 26, 26)
    none = drawn_videos.canvas()
    none[:4] //= 2
    for name, image in (("a", frame), ("b", small), ("c", none)):
        Image.fromarray(image).save(tmp_path / f"{name}.png")
    out = tmp_path / "out.csv"
    assert predict(tmp_path, "--csv", out) == 0
    found, whole = rows(out)
    assert [row["face"] for row in found] == ["", "0", "1", "", ""]
    assert [row["verdict"] for row in found] == ["fake", "real", "fake"] + [
        "undecided"
    ] * 2
    assert "too small" in whole[1]["reason"] and "no face" in whole[2]["reason"]
    sides = [[int(r[k]) for k in ("x", "y", "width", "height")] for r in found[:3]]
    assert sides == [[80, 50, 28, 28], [10, 20, 32, 32], [80, 50, 28, 28]]
    red = detector.expected(np.full((9, 9, 3), drawn_videos.RED, np.uint8))
    assert float(whole[0]["logit"]) == pytest.approx(red)
    # As it is, the same picture is one.
    assert predict(tmp_path, "--csv", out, "--faces", "whole", "--replace") == 0
    found, whole = rows(out)
    assert found == whole and not any(row["width"] for row in found)


def test_videos_among_the_pictures(tmp_path, use):
    use()
    canvas = drawn_videos.canvas(48, 64, (200, 20, 20))
    # (Frames of one colour are not judged.)
    red = [drawn_videos.rectangle(20, 10, 9, 9, (150, 20, 20), canvas)] * 40
    drawn_videos.write(tmp_path / "b.avi", red)
    whole = (tmp_path / "b.avi").read_bytes()
    (tmp_path / "c.avi").write_bytes(whole[: len(whole) // 2])
    paint(tmp_path, 2)
    plots, out = tmp_path / "in" / "plots", tmp_path / "out.csv"
    assert predict(tmp_path, "--csv", out, "--plots", plots) == 0
    _, found = rows(out)
    assert [os.path.basename(row["path"]) for row in found] == [
        *("0000.png", "0001.png", "b.avi", "c.avi")
    ]
    assert found[2]["kind"] == "video" and found[2]["verdict"] == "fake"
    assert int(found[2]["frames"]) == 4 and found[2]["notes"] == ""
    assert float(found[2]["deviation"]) == pytest.approx(0, abs=0.01)
    # What is missing is said, whatever is made of the rest.
    assert found[3]["notes"] or found[3]["reason"]
    drawn = sorted(os.listdir(plots))
    assert len(drawn) == sum(row["verdict"] != "undecided" for row in found[2:])
