"""The page of `fdftnet serve` in headless Chromium, as a person uses it."""

import base64
import csv
import io
import json
import re
import threading
import time

import drawn_videos
import numpy as np
import pytest
from PIL import Image
from stand_in import rows

import fdftnet_jax
from fdftnet_jax import cli
from fdftnet_jax.data import toy
from fdftnet_jax.faces import detection
from fdftnet_jax.verdicts import Thresholds

pytestmark = pytest.mark.slow

REASON = "needs fdftnet_jax[serve], httpx and playwright"
playwright = pytest.importorskip("playwright.sync_api", reason=REASON)
served_by = pytest.importorskip("served", reason=REASON)
corrections = pytest.importorskip("fdftnet_jax.serving.corrections", reason=REASON)

# Puts files on the page as a drag from the desktop does.
DROP = """([name, type, data]) => {
  const bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], name, {type}));
  const event = KIND === "paste"
    ? new ClipboardEvent("paste", {clipboardData: transfer, bubbles: true})
    : new DragEvent("drop", {dataTransfer: transfer, bubbles: true, cancelable: true});
  document.getElementById("form").dispatchEvent(event);
}"""
ODD = '=one, "colour".png'
NARROW = {"width": 360, "height": 740}
# (The video may have been read by an earlier test, and is remembered then.)
WAITING = re.compile("^Judging: [01] of 3$")


@pytest.fixture(scope="module")
def detector():
    return fdftnet_jax.load("toy")


@pytest.fixture(scope="module")
def served(detector, tmp_path_factory):
    kept = corrections.Corrections(str(tmp_path_factory.mktemp("kept")))
    with served_by.serving(detector, kept=kept) as found:
        yield found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    Image.fromarray(toy.fake_image(toy.FAMILIES[0], 7, 0)).save(folder / "fake.png")
    Image.fromarray(toy.real_image(7, 0)).save(folder / "real.png")
    Image.new("RGB", (64, 64), "red").save(folder / ODD)
    drawn_videos.encode(folder / "video.mp4", drawn_videos.textured(40))
    return folder


@pytest.fixture
def page(chromium, served):
    with opened(chromium, served) as page:
        yield page


class opened:  # noqa: N801
    """A page whose console said nothing, and that loaded nothing from elsewhere."""

    def __init__(self, chromium, served, *, silent=True, **options):
        self._context = chromium.new_context(accept_downloads=True, **options)
        self._page = self._context.new_page()
        self._served = served
        self._silent = silent
        self._said, self._asked = [], []

    def __enter__(self):
        self._page.on("console", lambda message: self._said.append(message.text))
        self._page.on("pageerror", lambda error: self._said.append(str(error)))
        self._page.on("request", lambda request: self._asked.append(request.url))
        self._page.set_default_timeout(20000)
        self._page.goto(self._served.address)
        return self._page

    def __exit__(self, kind, error, _):
        self._context.close()
        if kind is None:
            assert self._said == [] or not self._silent
            own = (self._served.address, "blob:", "data:")
            assert [url for url in self._asked if not url.startswith(own)] == []


def choose(page, *paths):
    page.set_input_files("#files", [str(path) for path in paths])


def judged(page, count):
    """The cards, once there are so many."""
    playwright.expect(page.locator(".card")).to_have_count(count)
    return page.locator(".card")


def test_files_that_are_chosen_have_a_card_each(page, folder):
    choose(page, *sorted(folder.iterdir()))
    cards = judged(page, 4)
    card = {
        name: cards.filter(has=page.get_by_role("heading", name=name))
        for name in ("fake", "real", "one,")
    }
    video = cards.filter(has_text="video.mp4")
    playwright.expect(card["fake"].locator(".verdict")).to_have_text("Fake")
    playwright.expect(card["real"].locator(".verdict")).to_have_text("Real")
    playwright.expect(card["one,"].locator(".verdict")).to_have_text("Undecided")
    playwright.expect(card["one,"].locator(".reason")).to_contain_text("one colour")
    playwright.expect(card["fake"].locator(".sentence")).to_contain_text(
        "are fake, if 50 of 100 are to begin with"
    )
    playwright.expect(card["one,"].locator(".sentence")).to_be_hidden()
    playwright.expect(video.locator(".notes-of")).to_contain_text("4 frames")
    playwright.expect(page.locator("#status")).to_contain_text("4 of 4 judged")
    assert page.locator("#status").get_attribute("role") == "status"
    playwright.expect(page.locator("#work")).to_be_hidden()


@pytest.mark.parametrize("kind", ["drop", "paste"])
def test_files_that_are_dropped_or_pasted(page, folder, kind):
    data = base64.b64encode((folder / "fake.png").read_bytes()).decode()
    script = DROP.replace("KIND", json.dumps(kind))
    page.evaluate(script, ["a.png", "image/png", data])
    playwright.expect(judged(page, 1).locator(".verdict")).to_have_text("Fake")


def test_what_is_saved_is_what_predict_writes(
    page, folder, detector, tmp_path, monkeypatch
):
    choose(page, *sorted(folder.iterdir()))
    judged(page, 4)
    saved = {}
    page.select_option("#sort", "name")
    for kind in ("csv", "json"):
        with page.expect_download() as download:
            page.click(f"#{kind}")
        saved[kind] = download.value.path().read_text()
        assert download.value.suggested_filename == f"results.{kind}"

    monkeypatch.setattr(fdftnet_jax, "load", lambda path, program: detector)
    monkeypatch.chdir(folder)
    for kind in saved:
        command = ["predict", "toy", ".", f"--{kind}", str(tmp_path / kind)]
        parsed = cli.parser().parse_args(command)
        assert parsed.run(parsed) == 0
    expected = {
        row["path"].removeprefix("./"): row for row in rows(tmp_path / "csv")[0]
    }
    table = csv.DictReader(io.StringIO(saved["csv"], newline=""))
    assert table.fieldnames == list(next(iter(expected.values())))
    found = {row["path"].removeprefix("./"): row for row in table}
    assert found.keys() == expected.keys()
    for name, row in found.items():
        for column, value in row.items():
            other = expected[name][column]
            if column in ("score", "logit", "probability", "deviation") and value:
                assert float(value) == pytest.approx(float(other), rel=1e-5)
            elif column != "path":
                assert value == other
    assert found[ODD]["path"] == f"./{ODD}"
    document = json.loads(saved["json"])
    other = json.loads((tmp_path / "json").read_text())
    assert list(document) == list(other)
    assert document["summary"] == other["summary"]
    assert document["detector"] == other["detector"]


def test_cards_are_sorted_and_filtered(page, folder):
    choose(page, folder / "real.png", folder / "fake.png", folder / ODD)
    judged(page, 3)

    def shown():
        return page.locator(".card:visible h3").all_text_contents()

    page.select_option("#sort", "fake")
    assert shown() == ["fake.png", "real.png", ODD]
    page.select_option("#sort", "real")
    assert shown() == ["real.png", "fake.png", ODD]
    page.get_by_label("Undecided").check()
    assert shown() == [ODD]
    assert page.locator("#filter label").all_inner_texts() == [
        *("All 3", "Fake 1", "Real 1", "Undecided 1")
    ]
    page.click("#clear")
    playwright.expect(page.locator("#results")).to_be_hidden()


def test_a_wrong_verdict_is_kept_and_taken_back(page, folder, served):
    choose(page, folder / "fake.png", folder / ODD)
    cards = judged(page, 2)
    kept = served.server.corrections
    playwright.expect(cards.filter(has_text="one").locator("button")).to_have_count(0)
    page.get_by_role("button", name="This is wrong: it is real").click()
    playwright.expect(cards.filter(has_text="fake.png")).to_contain_text("Kept as real")
    playwright.expect(page.locator("#teach")).to_contain_text("fdftnet adapt --correct")
    assert kept.count() == {"real": 1, "fake": 0}
    page.get_by_role("button", name="Undo").click()
    playwright.expect(page.locator("#teach")).to_be_hidden()
    assert kept.count() == {"real": 0, "fake": 0}


def test_right_verdicts_are_kept_beside_wrong_ones(page, folder, served):
    choose(page, folder / "fake.png", folder / "real.png")
    cards = judged(page, 2)
    cards.filter(has_text="fake.png").get_by_text("This is wrong").click()
    playwright.expect(page.locator("#one-sided")).to_contain_text(
        "Keep some pictures of the same kind that are fake"
    )
    page.get_by_role("button", name="Undo").click()
    cards.filter(has_text="fake.png").get_by_text("This is right").click()
    playwright.expect(page.locator("#one-sided")).to_contain_text("that are real")
    cards.filter(has_text="real.png").get_by_text("This is right").click()
    playwright.expect(page.locator("#one-sided")).to_be_hidden()
    playwright.expect(page.locator("#teach")).to_contain_text("1 real and 1 fake")
    assert served.server.corrections.count() == {"real": 1, "fake": 1}
    for undo in page.get_by_role("button", name="Undo").all()[::-1]:
        undo.click()
    playwright.expect(page.locator("#teach")).to_be_hidden()


def opened_card(page):
    """The card, opened, once it is there."""
    page.get_by_text("Look closer").click()
    playwright.expect(page.locator(".inside dl")).to_be_visible()
    return page.locator(".card")


def test_an_opened_card_shows_what_the_network_saw(page, folder, detector):
    choose(page, folder / "fake.png")
    judged(page, 1)
    card = opened_card(page)
    playwright.expect(card.locator(".inside")).to_contain_text("64 x 64 pixels")
    playwright.expect(card.locator(".heat")).to_have_count(2)
    # As large as the view that it lies over.
    for heat in card.locator(".heat").all():
        below = heat.locator("xpath=preceding-sibling::img")
        assert heat.bounding_box() == below.bounding_box()
        assert float(heat.evaluate("e => getComputedStyle(e).opacity")) == 0.6
    strength = card.get_by_label("Strength of the maps")
    strength.focus()
    page.keyboard.press("End")
    opacity = "e => getComputedStyle(e).opacity"
    assert card.locator(".heat").first.evaluate(opacity) == "1"
    page.keyboard.press("Home")
    assert card.locator(".heat").last.evaluate(opacity) == "0"
    playwright.expect(card).to_contain_text("Fake is no proof")


def test_a_report_is_saved_and_fits_one_sheet(page, folder, chromium, tmp_path):
    choose(page, folder / "fake.png")
    said = judged(page, 1).locator(".sentence").inner_text()
    opened_card(page)
    with page.expect_download() as download:
        page.get_by_role("button", name="Save a report").click()
    assert download.value.suggested_filename == "fake-report.html"
    path = tmp_path / "report.html"
    download.value.save_as(path)
    context = chromium.new_context(viewport=NARROW)
    report, told = context.new_page(), []
    report.on("console", lambda message: told.append(message.text))
    report.goto(path.as_uri())
    assert told == []
    assert report.evaluate("document.documentElement.scrollWidth") <= 360
    assert report.locator("header").get_by_text(said).is_visible()
    report.wait_for_function("[...document.images].every(i => i.naturalWidth > 0)")
    sheets = re.findall(rb"/Type /Page\b", report.pdf(format="A4"))
    context.close()
    assert len(sheets) == 1


def test_a_video_has_a_timeline_that_leads_to_its_frames(page, folder):
    choose(page, folder / "video.mp4")
    judged(page, 1)
    card = opened_card(page)
    playwright.expect(card.locator(".timeline")).to_be_visible()
    page.wait_for_function("document.querySelector('.timeline').naturalWidth > 0")
    jump = card.get_by_role("button", name="Show the most fake frame")
    (seconds,) = re.findall(r"at (\d\.\d) s", jump.inner_text())
    jump.click()
    time = page.evaluate("document.querySelector('video').currentTime")
    assert time == pytest.approx(float(seconds), abs=0.05)


def test_a_file_that_is_gone_cannot_be_shown_closer(chromium, served, folder, tmp_path):
    gone = tmp_path / "gone.png"
    gone.write_bytes((folder / "fake.png").read_bytes())
    # (The browser complains of the file, too.)
    with opened(chromium, served, silent=False) as page:
        choose(page, gone)
        judged(page, 1)
        gone.unlink()
        page.get_by_text("Look closer").click()
        inside = page.locator(".inside")
        playwright.expect(inside).to_contain_text("has been moved or changed")
        playwright.expect(inside.get_by_role("button")).to_have_text("Try again")


def test_how_far_a_video_is(page, detector, monkeypatch, tmp_path):
    go, compute = threading.Event(), detector.logits

    def slow(views):
        assert go.wait(20)
        return compute(views)

    monkeypatch.setattr(detector, "logits", slow)
    choose(page, drawn_videos.encode(tmp_path / "long.mp4", drawn_videos.textured(50)))
    playwright.expect(page.locator("#working")).to_contain_text(
        "long.mp4, frame 41 of about 50"
    )
    go.set()
    judged(page, 1)


def test_by_keyboard_alone(page, folder, served):
    # From now on, no dialog of the system opens.
    page.on("filechooser", lambda chooser: None)
    keys = page.keyboard
    keys.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    focused = "document.activeElement.id || document.activeElement.textContent"
    for _ in range(10):
        keys.press("Tab")
        if page.evaluate(focused) == "files":
            break
    playwright.expect(page.locator("#files")).to_be_focused()
    with page.expect_file_chooser() as chooser:
        keys.press("Enter")
    chooser.value.set_files([str(folder / "fake.png"), str(folder / "real.png")])
    judged(page, 2)
    visited = []
    while not visited or visited[-1] != "All about this detector":
        keys.press("Tab")
        visited.append(page.evaluate(f"({focused}).trim()"))
        assert len(visited) < 40
        if visited[-1] == "This is wrong: it is real":
            keys.press("Enter")
            playwright.expect(page.get_by_role("button", name="Undo")).to_be_focused()
            keys.press("Space")
            playwright.expect(
                page.get_by_role("button", name="This is wrong: it is real")
            ).to_be_focused()
            assert sum(served.server.corrections.count().values()) == 0
    assert {"sort", "csv", "json", "clear"} <= set(visited)
    assert "This is wrong: it is fake" in visited


def test_what_waits_can_be_cancelled(page, folder, served, detector, monkeypatch):
    go, compute = threading.Event(), detector.logits

    def slow(views):
        assert go.wait(20)
        return compute(views)

    monkeypatch.setattr(detector, "logits", slow)
    choose(page, folder / "fake.png", folder / "real.png", folder / "video.mp4")
    playwright.expect(page.locator("#working")).to_have_text(WAITING)
    page.click("#cancel")
    playwright.expect(page.locator("#status")).to_contain_text("Cancelled")
    playwright.expect(page.locator("#files")).to_be_focused()
    go.set()
    choose(page, folder / "fake.png")
    judged(page, 1)
    playwright.expect(page.locator("#status")).to_contain_text("1 of 1 judged")


def test_a_page_that_is_loaded_anew_while_it_works(
    page, folder, served, detector, monkeypatch
):
    """What nobody waits for any more is given up, and the new page works."""
    go, compute = threading.Event(), detector.logits

    def slow(views):
        assert go.wait(20)
        return compute(views)

    monkeypatch.setattr(detector, "logits", slow)
    choose(page, folder / "fake.png", folder / "real.png", folder / "video.mp4")
    playwright.expect(page.locator("#working")).to_have_text(WAITING)
    page.reload()
    playwright.expect(page.locator(".card")).to_have_count(0)
    go.set()
    choose(page, folder / "fake.png")
    judged(page, 1)
    playwright.expect(page.locator("#status")).to_contain_text("1 of 1 judged")
    folder, end = served.server.store.folder, time.monotonic() + 20
    while requests := [path for path in folder.iterdir() if path.is_dir()]:
        assert time.monotonic() < end, requests
        time.sleep(0.05)


@pytest.mark.parametrize("dark", [False, True])
def test_on_a_telephone_nothing_is_cut_off(chromium, served, folder, dark):
    scheme = "dark" if dark else "light"
    with opened(chromium, served, viewport=NARROW, color_scheme=scheme) as page:
        name = "a_long_name_without_any_space" * 4 + ".png"
        data = (folder / "fake.png").read_bytes()
        page.set_input_files(
            "#files",
            [
                {"name": name, "mimeType": "image/png", "buffer": data},
                {"name": "v.mp4", "mimeType": "video/mp4", "buffer": b"no video"},
            ],
        )
        judged(page, 2)
        page.get_by_text("All about this detector").click()
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        page.wait_for_function("[...document.images].every(i => i.naturalWidth > 0)")
        shot = Image.open(io.BytesIO(page.screenshot())).convert("L")
        assert (
            (np.asarray(shot) < 64).mean() > 0.5
            if dark
            else (np.asarray(shot) > 192).mean() > 0.5
        )


def test_on_paper_cards_stand_alone(page, folder):
    choose(page, folder / "fake.png", folder / "real.png")
    judged(page, 2)
    page.emulate_media(media="print", color_scheme="dark")
    for unprinted in ("#form", "#filter", "#csv", ".wrong >> nth=0", "#cancel"):
        playwright.expect(page.locator(unprinted)).to_be_hidden()
    playwright.expect(page.locator("#meaning")).to_be_visible()
    assert page.evaluate("""() => [...document.querySelectorAll(".stage")].every(
      stage => stage.getBoundingClientRect().bottom
        >= stage.querySelector("img").getBoundingClientRect().bottom)""")
    background = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(background) == "rgb(255, 255, 255)"


def test_faces_are_framed_where_they_are(chromium, folder, monkeypatch):
    monkeypatch.setitem(detection.DETECTORS, "stub", drawn_videos.Stub)
    detector = fdftnet_jax.load("toy")
    rules = {"detector": "stub", "margin": 0.3, "min_size": 20, "min_confidence": 0.5}
    rules |= {"detector_version": "1", "faces": "all"}
    detector.card = {**detector.card, "faces": rules}
    # All that this network says is too close to call.
    detector.thresholds = Thresholds(-1000.0, 1000.0)
    image = drawn_videos.rectangle(20, 30, 40, 40)
    image = drawn_videos.rectangle(90, 50, 48, 48, drawn_videos.BLUE, image)
    saved = folder / "faces.png"
    Image.fromarray(image).save(saved)
    with (
        served_by.serving(detector) as served,
        opened(chromium, served) as page,
    ):
        choose(page, saved)
        card = judged(page, 1)
        playwright.expect(card.locator(".reason")).to_have_text("too close to call")
        playwright.expect(card.locator(".faces li")).to_have_count(2)
        playwright.expect(card.locator(".face")).to_have_count(2)
        places = page.evaluate("""() => {
          const whole = document.querySelector(".frame img").getBoundingClientRect();
          return [...document.querySelectorAll(".face")].map(face => {
            const box = face.getBoundingClientRect();
            return [box.x - whole.x, box.y - whole.y, box.width, box.height].map(
              value => value * 160 / whole.width);
          });
        }""")
    assert np.allclose(places, [(90, 50, 48, 48), (20, 30, 40, 40)], atol=1)


def test_a_token_in_the_address_opens_the_page(chromium, detector, folder):
    with served_by.serving(detector, token=served_by.TOKEN) as served:
        context = chromium.new_context()
        page = context.new_page()
        assert page.goto(served.address).status == 401
        page.goto(f"{served.address}/?token={served_by.TOKEN}")
        assert page.url == f"{served.address}/"
        choose(page, folder / "fake.png")
        judged(page, 1)
        context.close()
