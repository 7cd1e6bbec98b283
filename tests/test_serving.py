"""`fdftnet serve`: the results of `predict`, and nothing for those who may not ask."""

import base64
import dataclasses
import hashlib
import html
import io
import json
import os
import re
import shlex
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time

import cv2
import drawn_videos
import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image
from stand_in import StandIn, predict

import fdftnet_jax
from fdftnet_jax import cli
from fdftnet_jax.data import toy
from fdftnet_jax.errors import UserError
from fdftnet_jax.prediction import explain, video
from fdftnet_jax.prediction.run import NOTHING_JUDGED
from fdftnet_jax.serving import guard, run

REASON = "needs fdftnet_jax[serve] and httpx"
httpx = pytest.importorskip("httpx", reason=REASON)
served_by = pytest.importorskip("served", reason=REASON)
serving_load = pytest.importorskip("serving_load", reason=REASON)
corrections = pytest.importorskip("fdftnet_jax.serving.corrections", reason=REASON)
uploads = pytest.importorskip("fdftnet_jax.serving.uploads", reason=REASON)
serving, TOKEN = served_by.serving, served_by.TOKEN


@pytest.fixture(scope="module")
def detector():
    return fdftnet_jax.load("toy")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Good, odd and bad files; below it a folder, and links that lead out."""
    outside = tmp_path_factory.mktemp("outside")
    folder = tmp_path_factory.mktemp("root")
    for number in range(5):
        family = toy.FAMILIES[number % len(toy.FAMILIES)]
        pixels = toy.fake_image(family, 7, number)
        Image.fromarray(pixels).save(folder / f"fake{number}.png")
        Image.fromarray(toy.real_image(7, number)).save(folder / f"real{number}.jpg")
    whole = (folder / "real0.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.jpg").write_text("no picture")
    (folder / "=1+1.jpg").write_bytes(whole)
    Image.new("RGB", (64, 64), "red").save(folder / "one colour.png")
    Image.new("RGB", (9, 9)).save(folder / "small.png")
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
    frames[0].save(folder / "moves.gif", save_all=True, append_images=frames[1:])
    drawn_videos.encode(folder / "video.mp4", drawn_videos.textured(40))
    (folder / "cut.mp4").write_bytes((folder / "video.mp4").read_bytes()[:900])
    (folder / "named.jpg").write_bytes((folder / "video.mp4").read_bytes())
    (folder / "below").mkdir()
    (folder / "below" / "a.png").write_bytes((folder / "fake0.png").read_bytes())
    (outside / "secret.png").write_bytes((folder / "fake0.png").read_bytes())
    (folder / "link.png").symlink_to(outside / "secret.png")
    (folder / "below" / "b.png").symlink_to(outside / "secret.png")
    (folder / "elsewhere").symlink_to(outside)
    return folder


@pytest.fixture(scope="module")
def served(detector, folder):
    with serving(detector, root=str(folder)) as found:
        yield found


@pytest.fixture
def picture(folder):
    return ("picture.png", (folder / "fake1.png").read_bytes())


def post(served, *sent, **options):
    found = [("files", each) for each in sent]
    return served.client.post("/v1/predict", files=found, **options)


def same(answer, expected):
    """Rows are the same but for the last digits of numbers."""
    assert len(answer) == len(expected)
    for row, other in zip(answer, expected, strict=True):
        assert row.keys() == other.keys()
        for name, value in row.items():
            if isinstance(value, float):
                assert value == pytest.approx(other[name], rel=1e-5, abs=1e-6), name
            else:
                assert value == other[name], name


def names(folder):
    return sorted(p.name for p in folder.iterdir() if p.is_file() and p.stem != "link")


def test_each_file_is_judged_as_predict_judges_it(
    served, detector, folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(fdftnet_jax, "load", lambda path, program: detector)
    monkeypatch.chdir(folder)
    found = names(folder)
    expected = []
    for number, name in enumerate(found):
        code = predict(name, "--json", tmp_path / f"{number}.json")
        assert code in (0, NOTHING_JUDGED)
        expected.append(json.loads((tmp_path / f"{number}.json").read_text()))
    rows = [row for document in expected for row in document["results"]]
    assert {row["verdict"] for row in rows} == {"real", "fake", "undecided"}

    sent = [(name, (folder / name).read_bytes()) for name in found]
    answer = post(served, *sent).json()
    same(answer["results"], rows)
    same(
        served.client.post("/v1/predict", json={"paths": found}).json()["results"], rows
    )
    assert served.uploads == []

    # One document of all of them has the same parts, too.
    predict(*found, "--json", tmp_path / "all.json")
    document = json.loads((tmp_path / "all.json").read_text())
    assert list(answer) == list(document)
    for part in ("schema_version", "fdftnet_jax", "detector", "threshold", "faces"):
        assert answer[part] == document[part]
    assert answer["summary"] == document["summary"]


def test_many_at_once_have_the_scores_that_each_has_alone(served, folder):
    found = [folder / name for name in names(folder) if "fake" in name] * 4
    alone = {p: post(served, (p.name, p.read_bytes())).json()["results"] for p in found}
    answers = {}

    def ask(number, path):
        answers[number] = post(served, (path.name, path.read_bytes())).json()["results"]

    threads = [threading.Thread(target=ask, args=pair) for pair in enumerate(found)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answers[number] for number in range(len(found))] == [
        alone[path] for path in found
    ]


def test_a_load_of_pictures_of_all_sizes(served, detector, tmp_path, monkeypatch):
    paths = serving_load.write_pictures(tmp_path, 12, 300_000)
    monkeypatch.setattr(fdftnet_jax, "load", lambda path, program: detector)
    predict(*paths, "--json", tmp_path / "rows.json")
    rows = json.loads((tmp_path / "rows.json").read_text())["results"]
    expected = {os.path.basename(row["path"]): row for row in rows}
    assert {row["verdict"] for row in rows} >= {"fake", "undecided"}
    serving_load.load(served.address, paths, expected, 36, clients=8)
    assert served.uploads == []


def test_damaged_files_have_verdicts(served):
    counts = serving_load.post_mutants(served.address, 270)
    assert counts["unexpected"] == 0 and counts["undecided"] > 100


@pytest.mark.long
def test_a_server_that_is_left_and_stopped_loses_nothing(tmp_path):
    paths = serving_load.write_pictures(tmp_path, 12, 2_000_000)
    expected = serving_load.expected_rows(paths)
    with serving_load.process() as server:
        serving_load.hang_up(server, paths[-1].read_bytes(), 6)

        def restart():
            server.stop()
            server.start()

        serving_load.load(server.address, paths, expected, 36, meanwhile=restart)


def test_folders_below_the_root_are_read_as_predict_reads_them(served):
    answer = served.client.post("/v1/predict", json={"paths": ["below"]}).json()
    first, second = answer["results"]
    assert (first["path"], first["verdict"]) == ("below/a.png", "fake")
    assert (second["path"], second["verdict"]) == ("below/b.png", "undecided")
    assert "outside" in second["reason"]
    missing = served.client.post("/v1/predict", json={"paths": ["none.png"]}).json()
    assert missing["results"][0]["reason"] == "No such file or directory"


def closer(served, name, data):
    return served.client.post("/v1/explain", files={"file": (name, data)})


def pixels_of(data_uri):
    kind, data = data_uri.split(",")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))), kind


def test_a_picture_is_shown_as_the_network_saw_it(served, detector):
    large = Image.fromarray(toy.real_image(7, 1)).resize((200, 150))
    exif = Image.Exif()
    exif[0x013B] = "an artist"
    exif.get_ifd(0x8825)[1] = "N"
    file = io.BytesIO()
    large.save(file, "JPEG", quality=80, subsampling="4:2:2", exif=exif)
    found = closer(served, "a.jpg", file.getvalue()).json()
    assert found["sha256"] == hashlib.sha256(file.getvalue()).hexdigest()
    assert found["facts"] == {
        "format": "JPEG",
        "size": "200 x 150 pixels",
        "compression": "JPEG, quality about 80, colours 4:2:2",
        "bytes": f"{len(file.getvalue()):,}",
    }
    (face,) = found["faces"]
    view, kind = pixels_of(face["view"])
    assert kind == "data:image/png;base64"
    decoded = np.asarray(Image.open(file).convert("RGB"))
    np.testing.assert_array_equal(view, detector.preprocessing(decoded))
    titles = [found["title"] for found in face["maps"]]
    assert titles == ["FTT attention", "Grad-CAM, MBblock"]
    rows, _ = explain.panels(detector, view)
    for each, panel in zip(face["maps"], rows[0][1:], strict=True):
        colours, _ = pixels_of(each["picture"])
        expected = mpl.colormaps["inferno"](
            cv2.resize(panel.heat / panel.bright, (256, 256)), bytes=True
        )[..., :3]
        assert np.abs(colours.astype(int) - expected).mean() < 3
    assert served.uploads == []


def test_of_several_windows_the_most_fake_one_is_shown(folder):
    detector = fdftnet_jax.load("toy")
    detector.preprocessing = dataclasses.replace(
        detector.preprocessing, view="crops", grid=2
    )
    image = toy.real_image(7, 2)
    image = np.concatenate([image, toy.fake_image(toy.FAMILIES[0], 7, 1)], axis=1)
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    with serving(detector) as served:
        (face,) = closer(served, "a.png", file.getvalue()).json()["faces"]
    view, _ = pixels_of(face["view"])
    windows = detector.preprocessing(image)
    most = int(np.argmax([detector.logits(window[None])[0] for window in windows]))
    np.testing.assert_array_equal(view, windows[most])
    assert face["note"].startswith(f"seen: window {most + 1} of {len(windows)}")


def test_a_video_is_read_once_and_has_a_timeline(served, folder, monkeypatch):
    data = (folder / "video.mp4").read_bytes()
    post(served, ("a.mp4", data))
    monkeypatch.setattr(video, "score_video", None)
    found = closer(served, "b.mp4", data).json()
    kind, svg = found["timeline"].split(",")
    assert kind == "data:image/svg+xml;base64"
    svg = base64.b64decode(svg).decode()
    assert "P(fake)" in svg and "whole frames: " in svg
    assert found["facts"] == {
        "format": "QuickTime / MOV",
        "size": "64 x 48 pixels",
        "compression": "h264",
        "length": "4.0 s, about 40 frames, 10 a second",
        "bytes": f"{len(data):,}",
    }
    assert found["faces"] == []
    ((number, seconds),) = [moment.values() for moment in found["moments"]]
    assert number == 0 and seconds in (0, 1, 2, 3)


def test_a_video_that_nobody_remembers_is_read_again(detector, folder):
    with serving(detector) as served:
        data = (folder / "video.mp4").read_bytes()
        assert closer(served, "b.mp4", data).json()["timeline"]


@pytest.mark.parametrize("name", ["cut.jpg", "empty.png", "small.png", "cut.mp4"])
def test_what_could_not_be_judged_has_facts_at_most(served, folder, name):
    data = (folder / name).read_bytes()
    found = closer(served, name, data).json()
    assert found["faces"] == [] and found["timeline"] == ""
    assert found["facts"]["bytes"] == f"{len(data):,}"
    report = served.client.post("/v1/report", files={"file": (name, data)})
    assert "Undecided" in report.text


def test_a_program_alone_has_no_maps(picture, monkeypatch):
    detector = fdftnet_jax.load("toy")

    def model():
        raise UserError("the network cannot be rebuilt")

    explain._model.cache_clear()
    monkeypatch.setattr(detector, "model", model)
    with serving(detector) as served:
        found = closer(served, *picture).json()
    assert found["faces"][0]["maps"] == [] and "no maps" in found["note"]


def test_a_report_says_what_was_judged_by_what(served, detector):
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x013B] = "an artist"
    Image.fromarray(toy.fake_image(toy.FAMILIES[0], 7, 1)).save(file, "PNG", exif=exif)
    name = "<img src=x>.png"
    answer = served.client.post("/v1/report", files={"file": (name, file.getvalue())})
    (row,) = post(served, ("a.png", file.getvalue())).json()["results"]
    text = html.unescape(answer.text)
    assert answer.headers["content-disposition"].startswith("attachment")
    for part in (
        *("Fake", hashlib.sha256(file.getvalue()).hexdigest(), detector.digest, name),
        *(f"{row['score']:.4f}", f"calibrated P(fake) {row['probability']:.4f}"),
        *("fake from P(fake) 0.7672 on", "50 of 100 are fake to begin with"),
        *("toy detector", "is no proof", "64 x 64 pixels", "as the network saw it"),
        time.strftime("%Y-%m-%d"),
    ):
        assert part in text, part
    assert "an artist" not in text
    assert name not in answer.text
    assert set(re.findall(r'(?:src|href)="([a-z]+:)', answer.text)) == {"data:"}
    assert "default-src 'none'" in answer.text


def test_how_far_a_video_is(folder):
    detector = Waiting()
    with serving(detector) as served:

        def progress(ticket):
            return served.client.get("/v1/progress", params={"ticket": ticket}).json()

        detector.go.clear()
        sent = ("a.mp4", (folder / "video.mp4").read_bytes())
        thread = threading.Thread(
            target=post, args=(served, sent), kwargs={"params": {"ticket": "mine"}}
        )
        thread.start()
        detector.begun.wait(20)
        # Of 40 frames, the last that is looked at is that of number 30.
        assert progress("mine") == {"frame": 31, "total": 40}
        nothing = {"frame": 0, "total": 0}
        assert progress("other") == progress("") == nothing
        detector.go.set()
        thread.join()
        assert progress("mine") == nothing


@pytest.mark.parametrize(
    "path",
    [
        *("../outside0/secret.png", "/etc/passwd", "link.png", "elsewhere/secret.png"),
        *("below/../../x", "elsewhere/none.png", "..", "below/b.png"),
    ],
)
def test_nothing_outside_of_the_root_is_read(served, path):
    answer = served.client.post("/v1/predict", json={"paths": ["fake0.png", path]})
    assert answer.status_code == 403
    assert list(answer.json()) == ["error"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        *((b"", 400), (b"{", 400), (b"[]", 400), (b'{"paths": []}', 400)),
        *((b'{"paths": [1]}', 400), (b'{"paths": ["a\\u0000"]}', 400)),
        *((b'{"paths": ["\\ud800"]}', 400), (b"[" * 10000, 400), (b" " * 2**21, 413)),
    ],
)
def test_json_that_is_none(served, body, status):
    headers = {"content-type": "application/json"}
    answer = served.client.post("/v1/predict", content=body, headers=headers)
    assert answer.status_code == status and "error" in answer.json()


def test_without_a_root_no_path_is_read(detector, folder):
    with serving(detector) as served:
        body = {"paths": [str(folder / "fake0.png")]}
        assert served.client.post("/v1/predict", json=body).status_code == 403


def test_the_other_addresses(served, detector):
    get = served.client.get
    assert get("/healthz").text == "ok" and get("/readyz").text == "ready"
    card = get("/v1/detector").json()
    assert card == {"sha256": detector.digest, **detector.card}
    described = get("/openapi.json").json()
    assert described["openapi"] == "3.1.0"
    for path, methods in described["paths"].items():
        for method in methods:
            # Each address that is described is there.
            assert served.client.request(method, path).status_code not in (404, 405)
    assert get("/nothing").json() == {"error": "Not Found"}
    assert get("/v1/predict").status_code == 405
    assert get("/static/../app.py").status_code == 404
    assert get("/static/%2e%2e/app.py").status_code == 404


@pytest.mark.parametrize("path", ["/", "/static/page.js", "/nothing", "/v1/detector"])
def test_every_answer_forbids_what_it_does_not_need(served, path):
    headers = served.client.get(path).headers
    assert headers["content-security-policy"].startswith("default-src 'none'")
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert "access-control-allow-origin" not in headers
    assert "server" not in headers


@pytest.mark.parametrize(
    ("host", "right"),
    [
        *(("localhost:1", True), ("127.0.0.1", True), ("[::1]:8765", True)),
        *(("evil.example", False), ("localhost.evil.example", False), ("", False)),
        *(("127.0.0.1.evil.example", False), ("[", False), ("evil@localhost", False)),
    ],
)
def test_a_page_with_a_name_that_leads_here_learns_nothing(served, host, right):
    answer = served.client.get("/v1/detector", headers={"host": host})
    assert answer.status_code == (200 if right else 421)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"origin": "ADDRESS"}, 200),
        ({"sec-fetch-site": "same-origin"}, 200),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "http://localhost:1"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": ""}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
    ],
)
def test_pages_of_others_send_nothing(served, picture, headers, status):
    headers = {k: v.replace("ADDRESS", served.address) for k, v in headers.items()}
    assert post(served, picture, headers=headers).status_code == status


def test_a_token_is_wanted_of_all_but_probes(detector, picture):
    with serving(detector, token=TOKEN) as served:
        get = served.client.get
        assert get("/healthz").status_code == get("/readyz").status_code == 200
        for path in ("/", "/v1/detector", "/openapi.json", "/static/page.js", "/x"):
            assert get(path).status_code == 401, path
        assert post(served, picture).status_code == 401
        for wrong in (f"Bearer {TOKEN}x", "Bearer", f"Basic {TOKEN}", "Bearer \xe9"):
            headers = {"authorization": wrong.encode("latin-1")}
            assert get("/v1/detector", headers=headers).status_code == 401
        assert get("/?token=wrong").status_code == 401
        headers = {"authorization": f"Bearer {TOKEN}"}
        assert post(served, picture, headers=headers).status_code == 200
        assert get("/?token=wrong", headers=headers).status_code == 303

        answer = get("/", params={"token": TOKEN})
        assert answer.status_code == 303 and answer.headers["location"] == "/"
        cookie = answer.headers["set-cookie"]
        assert TOKEN not in cookie
        assert "HttpOnly" in cookie and "samesite=strict" in cookie.lower()
        assert get("/").status_code == 200
        assert post(served, picture).status_code == 200
        # The cookie does not open the door to other pages.
        assert post(served, picture, headers={"origin": "http://x"}).status_code == 403


def test_others_are_let_in_with_a_token_alone():
    for host in ("127.0.0.1", "localhost", "::1", "127.1.2.3"):
        guard.Guard(host)
    for host in ("0.0.0.0", "::", "192.168.0.2", "machine"):
        with pytest.raises(UserError, match="--token"):
            guard.Guard(host)
        guard.Guard(host, TOKEN)
    for token in ("", "short", "ä" * 20, "line\n" * 5):
        with pytest.raises(UserError, match="16 characters"):
            guard.Guard("127.0.0.1", token)


def test_limits_of_what_is_sent(detector, picture):
    limits = uploads.Limits(size=20000, number=2, total=30000)
    with serving(detector, limits=limits) as served:
        large = ("large.png", bytes(25000))
        answer = post(served, large)
        assert answer.status_code == 413 and "MiB" in answer.json()["error"]

        def parts():
            yield b'--x\r\nContent-Disposition: form-data; name="files"; '
            yield b'filename="a"\r\n\r\n' + bytes(25000) + b"\r\n--x--\r\n"

        headers = {"content-type": "multipart/form-data; boundary=x"}
        answer = served.client.post("/v1/predict", content=parts(), headers=headers)
        assert answer.status_code == 413
        assert post(served, picture, picture, picture).status_code == 413
        assert post(served, picture, picture).status_code == 200
        form = {"files": picture}
        answer = served.client.post(
            "/v1/predict", files=form, data={"label": "a" * 2000}
        )
        assert answer.status_code == 413
        served.server.store._bytes = 29999
        assert post(served, picture).status_code == 503
        assert served.uploads == []


@pytest.mark.parametrize(
    ("kind", "body", "status"),
    [
        ("multipart/form-data; boundary=x", b"--x--\r\n", 400),
        ("multipart/form-data; boundary=x", b"nothing", 400),
        ("multipart/form-data", b"", 415),
        ("text/plain", b"a", 415),
        ("", b"", 415),
    ],
)
def test_forms_that_are_none(served, kind, body, status):
    headers = {"content-type": kind}
    answer = served.client.post("/v1/predict", content=body, headers=headers)
    assert answer.status_code == status and "error" in answer.json()


@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        ("../../etc/a.png", "a.png"),
        ("C:\\pictures\\a.png", "a.png"),
        ("..", "unnamed"),
        ("a\x1b[2J.png", "a[2J.png"),
        ("<b>.png", "<b>.png"),
    ],
)
def test_a_name_is_only_a_name(sent, shown):
    assert uploads.base_name(sent) == shown


def test_uploads_are_private_and_deleted(folder, picture):
    detector = Waiting()
    with serving(detector) as served:
        detector.go.clear()
        thread = threading.Thread(target=post, args=(served, picture))
        thread.start()
        detector.begun.wait(10)
        (own,) = served.uploads
        for path in (own, own.parent):
            assert stat.S_IMODE(path.stat().st_mode) == 0o700
        assert [p.name for p in own.iterdir()] == ["0.png"]
        detector.go.set()
        thread.join()
        assert served.uploads == []
        store = served.server.store.folder
    assert not store.exists()


class Waiting(StandIn):
    """Judges nothing while `go` is not set; `begun` says that it would."""

    def __init__(self):
        super().__init__()
        self.go, self.begun = threading.Event(), threading.Event()
        self.go.set()

    def logits(self, views):
        if not self.go.is_set():
            self.begun.set()
        assert self.go.wait(20)
        return super().logits(views)


def test_a_full_queue_says_when_to_come_again(picture):
    detector = Waiting()
    with serving(detector, capacity=2) as served:
        assert post(served, picture, picture, picture).status_code == 503
        detector.go.clear()
        first = threading.Thread(target=post, args=(served, picture, picture))
        first.start()
        detector.begun.wait(10)
        answer = post(served, picture)
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) > 0
        assert served.client.get("/readyz").status_code == 503
        assert served.client.get("/healthz").status_code == 200
        detector.go.set()
        first.join()
        assert post(served, picture).status_code == 200
        assert served.client.get("/readyz").status_code == 200


def test_who_leaves_makes_room(picture):
    detector = Waiting()
    with serving(detector, capacity=2, readers=1) as served:
        detector.go.clear()
        stays = threading.Thread(target=post, args=(served, picture))
        stays.start()
        detector.begun.wait(10)
        with pytest.raises(httpx.ReadTimeout):
            post(served, picture, timeout=0.3)
        # Nobody waits for the second file any more; the first is still in work.
        served_by.wait_until(lambda: served.server.engine.ready)
        served_by.wait_until(lambda: len(served.uploads) == 1)
        detector.go.set()
        stays.join()
        assert post(served, picture, picture).status_code == 200


def test_a_server_that_stops_says_so(picture):
    detector = Waiting()
    with serving(detector) as served:
        detector.go.clear()
        answers = []
        thread = threading.Thread(target=lambda: answers.append(post(served, picture)))
        thread.start()
        detector.begun.wait(10)
        served.server.engine.stopping = True
        time.sleep(0.8)
        detector.go.set()
        thread.join()
        assert answers[0].status_code == 503
        assert served.client.get("/readyz").status_code == 503


def test_an_unexpected_error_says_nothing_of_the_machine(picture, capfd):
    class Broken(StandIn):
        broken = False

        def logits(self, views):
            if self.broken:
                raise RuntimeError("at /home/somebody")
            return super().logits(views)

    detector = Broken()
    with serving(detector) as served:
        detector.broken = True
        # (The server closes such a connection.)
        answer = post(served, picture, headers={"connection": "close"})
        assert answer.status_code == 500
        assert "somebody" not in answer.text and "Traceback" not in answer.text
        assert answer.headers["x-content-type-options"] == "nosniff"
        detector.broken = False
        assert post(served, picture).status_code == 200
    assert "at /home/somebody" in capfd.readouterr().err


def test_old_uploads_are_deleted(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    store = uploads.Store()
    for name, age in (("old", 3700), ("young", 10)):
        (store.folder / name).mkdir()
        then = time.time() - age
        os.utime(store.folder / name, (then, then))
    store.delete_old()
    assert {p.name for p in store.folder.iterdir()} == {"young", "lock"}

    # Of a server that was killed, and of one that lives.
    killed = tmp_path / "fdftnet-serve-killed"
    killed.mkdir()
    (killed / "lock").touch()
    (killed / "0.png").touch()
    then = time.time() - 100
    for path in (killed, store.folder):
        os.utime(path, (then, then))
    another = uploads.Store()
    assert not killed.exists() and store.folder.exists()
    another.close()
    store.close()
    assert list(tmp_path.iterdir()) == []


def test_corrections(detector, folder, tmp_path):
    kept = corrections.Corrections(str(tmp_path / "wrong ones"))
    data = (folder / "fake1.png").read_bytes()
    with serving(detector, kept=kept) as served:

        def correct(label, sent=("../a b.png", data)):
            return served.client.post(
                "/v1/corrections", data={"label": label}, files={"file": sent}
            )

        answer = correct("real").json()
        assert re.fullmatch(r"real/a_b-[0-9a-f]{12}\.png", answer["path"])
        assert answer["kept"] == {"real": 1, "fake": 0}
        assert (tmp_path / "wrong ones" / answer["path"]).read_bytes() == data
        # Who says otherwise later is believed; the same again changes nothing.
        moved = [correct("fake").json() for _ in range(2)][1]
        assert moved == {
            "path": answer["path"].replace("real", "fake", 1),
            "kept": {"real": 0, "fake": 1},
        }
        # The suffix says what it is.
        assert correct("fake", ("image", data)).json()["path"].endswith(".png")
        assert correct("", ("image", data)).json()["kept"] == {"real": 0, "fake": 1}
        assert correct("fake", ("a.png", b"text")).status_code == 400
        assert correct("../x").status_code == correct("none").status_code == 400
        assert served.uploads == []
        page = served.client.get("/").text
        assert "fdftnet adapt --corrections &#39;" in page
        command = kept.command("face.safetensors")
    arguments = cli.parser().parse_args(shlex.split(command)[1:])
    assert arguments.corrections == str(tmp_path / "wrong ones")
    with serving(detector) as served:
        assert served.client.post("/v1/corrections").status_code == 404


def test_the_page_says_what_it_is(served):
    page = served.client.get("/").text
    assert "No detector of real faces ships" in page and "fdftnet adapt" in page
    assert "What a verdict does not mean" in page
    outside = re.findall(r"(?:src|href)=\"(?!static/|#|data:,)", page)
    assert outside == [] and "<style" not in page and "style=" not in page


@pytest.mark.slow
def test_the_command(tmp_path, folder):
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    command = [sys.executable, "-m", "fdftnet_jax.cli", "serve", "--no-open"]
    with subprocess.Popen(
        [*command, "--port", "0"], stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            said = ""
            while "http" not in said:
                line = process.stderr.readline()
                assert line, said
                said += line
            address = re.search(r"http://127\.0\.0\.1:\d+/", said)[0]
            form = {"files": ("a.png", (folder / "fake1.png").read_bytes())}
            answer = httpx.post(f"{address}v1/predict", files=form, trust_env=False)
            assert answer.json()["results"][0]["verdict"] == "fake"
            assert list(tmp_path.glob("fdftnet-serve-*"))
            process.send_signal(signal.SIGTERM)
            rest = process.stderr.read()
            assert process.wait(20) == 128 + signal.SIGTERM
        finally:
            process.kill()
    assert rest.startswith("stopped by SIGTERM") and rest.count("\n") == 1
    assert not list(tmp_path.glob("fdftnet-serve-*"))


def test_mistakes_in_the_command(tmp_path, monkeypatch):
    def serve(*arguments):
        parsed = cli.parser().parse_args(["serve", "--no-open", *arguments])
        return parsed.run(parsed)

    with run.listen("127.0.0.1", 0) as listening:
        port = str(listening.getsockname()[1])
        with pytest.raises(UserError, match=rf"port {port} .*; give another --port"):
            serve("--port", port)
    with pytest.raises(UserError, match="give another --port"):
        serve("--port", "99999")
    with pytest.raises(UserError, match="--root"):
        serve("--root", str(tmp_path / "none"))
    with pytest.raises(UserError, match="--token"):
        serve("--host", "0.0.0.0")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'fdftnet_jax\[serve\]'"):
        serve()
