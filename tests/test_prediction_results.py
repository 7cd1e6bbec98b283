"""Verdicts and rows, and the files and the table that they are written to."""

import csv
import io
import json
import math
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import stand_in

from fdftnet_jax.errors import UserError
from fdftnet_jax.prediction import results, video, writers
from fdftnet_jax.prediction.results import Row
from fdftnet_jax.verdicts import FAKE, REAL, UNDECIDED


def probability(z):
    return 1 / (1 + math.exp(-(z / stand_in.TEMPERATURE + stand_in.SHIFT)))


@pytest.mark.parametrize("calibrated", [True, False])
@pytest.mark.parametrize("threshold", [None, 0.0, 0.3, 1.0])
def test_the_verdict_is_by_the_probability_or_else_by_the_score(calibrated, threshold):
    judge = results.Judge(stand_in.StandIn(calibrated=calibrated), threshold)
    for z in (-800.0, -1.7, 0.49, 0.5, 0.51, 800.0):
        row = judge.row("a", "image", z)
        score = 1 / (1 + math.exp(-z)) if z > -700 else 0.0
        assert row.score == pytest.approx(score, abs=1e-12)
        compared = row.score
        if calibrated:
            assert row.probability == pytest.approx(probability(z), abs=1e-12)
            compared = row.probability
        else:
            assert row.probability is None
        fake = z >= 0.5 if threshold is None else compared >= threshold
        assert row.verdict == (FAKE if fake else REAL)
    assert judge.of == ("probability" if calibrated else "score")
    if threshold is None:
        own = probability(0.5) if calibrated else 1 / (1 + math.exp(-0.5))
        assert judge.threshold == pytest.approx(own)


@pytest.mark.parametrize("calibrated", [True, False])
def test_between_two_thresholds_it_is_too_close_to_call(calibrated):
    detector = stand_in.StandIn(calibrated=calibrated, lower=-1.0)
    judge = results.Judge(detector)
    verdicts = {-1.01: REAL, -1.0: UNDECIDED, 0.49: UNDECIDED, 0.5: FAKE}
    for z, verdict in verdicts.items():
        row = judge.row("a", "image", z)
        assert (row.verdict, row.logit) == (verdict, z)
        assert row.score == pytest.approx(1 / (1 + math.exp(-z)))
        assert row.reason == "too close to call" * (verdict == UNDECIDED)
    expected = [probability(z) for z in (-1.0, 0.5)]
    if not calibrated:
        expected = [1 / (1 + math.exp(-z)) for z in (-1.0, 0.5)]
    assert [judge.lower, judge.threshold] == pytest.approx(expected)
    # A threshold of the user's is the only one.
    judge = results.Judge(detector, 0.45)
    verdicts = [judge.row("a", "image", z).verdict for z in (-0.9, 0.4)]
    assert judge.lower == judge.threshold == 0.45
    assert verdicts == [REAL, FAKE]


def test_a_picture_is_real_only_where_every_face_is():
    judge = results.Judge(stand_in.StandIn(lower=-1.0))
    boxes = [(1, 2, 30, 40), (5, 6, 20, 20)]
    for logits, verdicts in (
        ([-2.0, -3.0], [REAL, REAL, REAL]),
        ([-2.0, 0.0], [UNDECIDED, REAL, UNDECIDED]),
        ([0.0, 2.0], [FAKE, UNDECIDED, FAKE]),
    ):
        rows = judge.picture("a", "image", boxes, logits)
        assert [row.verdict for row in rows] == verdicts


@pytest.mark.parametrize("threshold", [-0.1, 1.5, math.nan, math.inf])
def test_a_threshold_that_is_no_probability(threshold):
    with pytest.raises(UserError, match="--threshold"):
        results.Judge(stand_in.StandIn(), threshold)


def test_a_picture_is_as_fake_as_its_most_fake_looking_face():
    judge = results.Judge(stand_in.StandIn())
    boxes = [(1, 2, 30, 40), (5, 6, 20, 20), (7, 8, 9, 9)]
    rows = judge.picture("a", "image", boxes, [-1.0, 2.0, 0.0])
    assert [row.face for row in rows] == [None, 0, 1, 2]
    assert [row.verdict for row in rows] == [FAKE, REAL, FAKE, REAL]
    assert rows[0]._replace(face=1) == rows[2]
    assert results.deciding(rows) == 1
    (alone,) = judge.picture("a", "image", boxes[:1], [-1.0])
    assert alone.face is None
    assert (alone.x, alone.y, alone.width, alone.height) == boxes[0]
    (whole,) = judge.picture("a", "image", [None], [-1.0])
    assert whole.width is None


def track(logits, box):
    number = len(logits)
    return video.Track(
        np.arange(number) * 10,
        np.arange(number) * 0.4,
        np.array([box] * number) + np.arange(number)[:, None] % 3,
        np.array(logits, np.float64),
    )


def test_a_video_is_too_close_to_call_by_the_mean_of_its_frames():
    found = video.VideoResult(
        frames=3,
        seconds=0.8,
        tracks=(track([-4.0, 0.0, 4.0], (1, 2, 3, 4)),),
        deciding=0,
        reason="",
        notes=(),
    )
    (row,) = results.Judge(stand_in.StandIn(lower=-1.0)).video("a", "video", found)
    assert (row.verdict, row.reason, row.frames) == (UNDECIDED, "too close to call", 3)


def test_a_video_is_as_fake_as_the_track_that_decides():
    long, short = track([0.0, 2.0, 4.0], (10, 20, 30, 40)), track([9.0], (1, 2, 3, 4))
    found = video.VideoResult(
        frames=5,
        seconds=1.6,
        tracks=(short, long),
        deciding=1,
        reason="",
        notes=("a note", "another"),
    )
    rows = results.Judge(stand_in.StandIn()).video("a", "video", found)
    whole, first, second = rows
    assert whole.logit == pytest.approx(2.0) and whole.frames == 3
    assert whole.deviation == pytest.approx(2.0)
    assert whole.notes == "a note; another"
    assert (whole.x, whole.y, whole.width, whole.height) == (11, 21, 31, 41)
    assert first.frames == 1 and first.deviation is None and first.notes
    assert whole == second._replace(face=None, notes=whole.notes)
    # Not the surer one of the short track.
    assert results.deciding(rows) == 1
    broken = video.VideoResult(0, 0.0, (), None, "no frames", ())
    (row,) = results.Judge(stand_in.StandIn()).video("a", "video", broken)
    assert row == Row("a", "video", reason="no frames")


ROWS = [
    [Row("a\nb\udcff", "image", reason="no face found")],
    [
        Row("b,\"c'", "image", None, 1, 2, 3, 4, 0.25, math.log(1 / 3), 0.4, REAL),
        Row("b,\"c'", "image", 0, 1, 2, 3, 4, 0.25, math.log(1 / 3), 0.4, REAL),
    ],
]


def test_csv(tmp_path):
    path = tmp_path / "out.csv"
    path.write_text("of an earlier command")
    writer = writers.CsvFile(str(path), replace=True)
    for number, rows in enumerate(ROWS, 1):
        writer.add(rows)
        # Nothing that is known waits in memory.
        lines = path.with_name("out.csv.partial").read_text().splitlines()
        assert len(lines) == 1 + sum(map(len, ROWS[:number]))
    assert path.read_text() == "of an earlier command"
    writer.close({}, complete=True)
    assert not path.with_name("out.csv.partial").exists()
    with path.open(newline="") as file:
        first, second, third = csv.DictReader(file)
    # Its bytes, as the address of a file.
    assert first["path"] == f"file://{os.getcwd()}/a%0Ab%FF"
    assert first["verdict"] == "undecided"
    assert not first["score"] and first["reason"] == "no face found"
    assert second["path"] == "b,\"c'" and not second["face"]
    assert float(second["logit"]) == pytest.approx(math.log(1 / 3), rel=1e-8)
    assert third["face"] == "0" and float(third["score"]) == 0.25


@pytest.mark.parametrize("complete", [True, False])
@pytest.mark.parametrize("rows", [ROWS, []])
def test_json_is_one_document_at_every_end(tmp_path, complete, rows):
    path = tmp_path / "out.json"
    writer = writers.JsonFile(str(path), {"schema_version": 1, "a": {"b": None}})
    for each in rows:
        writer.add(each)
    writer.close({"inputs": len(rows)}, complete=complete)
    assert path.exists() is complete
    found = json.loads(Path(writer.place).read_text())
    assert found["a"] == {"b": None}
    assert found["summary"] == {"inputs": len(rows), "complete": complete}
    assert [r["face"] for r in found["results"]] == [r.face for e in rows for r in e]
    assert all(set(record) == set(Row._fields) for record in found["results"])


def test_a_place_that_cannot_be_written_to(tmp_path):
    (tmp_path / "folder").mkdir()
    for name in ("none/out.csv", "folder", "a\0b"):
        with pytest.raises(UserError, match=r"cannot write --csv .*; give"):
            writers.CsvFile(str(tmp_path / name))


def test_two_commands_do_not_write_one_file(tmp_path):
    first = writers.CsvFile(str(tmp_path / "out.csv"))
    first.add(ROWS[0])
    with pytest.raises(UserError, match="another process"):
        writers.CsvFile(str(tmp_path / "out.csv"))
    first.close({}, complete=True)
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 2
    again = writers.CsvFile(str(tmp_path / "out.csv"), replace=True)
    again.close({}, complete=True)


def test_a_full_disk_is_one_line():
    with pytest.raises(UserError, match="cannot write the results"):
        writers.CsvFile("/dev/full")


class Terminal(io.StringIO):
    def isatty(self):
        return True


LONG = "folder/" * 20 + "image.jpg"


@pytest.mark.parametrize("columns", [40, 80, 100])
def test_the_table_fits_a_terminal(columns, monkeypatch):
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = []
    table = writers.Table(calibrated=True, say=lines.append)
    table.add([Row(LONG, "image", reason="some reason " * 9)])
    table.add([Row(LONG, "image", None, 1, 2, 3, 4, 0.25, -1.1, 0.4, REAL)])
    table.add([Row("a.jpg", "image", reason="empty")])
    assert all(len(line) < columns for line in lines)
    assert lines[2].endswith("ge.jpg") and "…" in lines[2]
    assert lines[3].endswith("a.jpg  (empty)") or columns < 50
    starts = {re.match(r"\S+ +\S+ +\S+ +", line).end() for line in lines}
    assert len(starts) == 1


def test_the_table_says_what_the_mean_of_a_video_is_of():
    lines = []
    table = writers.Table(calibrated=False, say=lines.append)
    video_row = Row("v.mp4", "video", score=0.25, logit=-1.1, verdict=REAL)
    table.add([video_row._replace(frames=24, deviation=0.714)])
    table.add([video_row._replace(frames=1)])
    assert [line.partition("  (")[2] for line in lines[1:]] == [
        "24 frames, deviation 0.71)",
        "1 frame)",
    ]


def test_the_table_says_that_it_is_too_close_to_call():
    lines = []
    table = writers.Table(calibrated=False, say=lines.append)
    row = Row("v.mp4", "video", score=0.25, logit=-1.1, reason="too close to call")
    table.add([row._replace(frames=1)])
    start, _, note = lines[1].partition("  (")
    assert start.split() == ["undecided", "0.2500", "v.mp4"]
    assert note == "too close to call; 1 frame)"


def test_the_table_is_not_cut_for_a_program():
    lines = []
    table = writers.Table(calibrated=False, say=lines.append)
    reason = "some reason " * 9
    table.add([Row(LONG, "image", reason=reason)])
    table.add(ROWS[1] * 2)
    assert LONG in lines[1] and reason in lines[1]
    assert "P(fake)" not in lines[0] and lines[2].count("0.") == 1
