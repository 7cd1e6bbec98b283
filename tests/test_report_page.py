"""The report in headless Chromium: at two widths, by keyboard, on paper."""

import browser
import numpy as np
import pytest
from PIL import Image
from test_report import made as made

pytestmark = pytest.mark.skipif(
    browser.find() is None,
    reason="no Chromium: apt-get install chromium (.ci/run does)",
)


@pytest.fixture(scope="module")
def shown(made):
    chromium = browser.Browser(browser.find())
    try:
        yield chromium, made.workdir / "report.html"
    finally:
        chromium.close()


@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_is_said_loaded_or_cut_off(shown, width, tmp_path):
    chromium, path = shown
    chromium.messages.clear()
    chromium.fetched.clear()
    chromium.open(path, width)
    assert chromium.messages == []
    others = [url for url in chromium.fetched if not url.startswith("data:")]
    assert others == [path.as_uri()]
    assert chromium.value("document.documentElement.scrollWidth") <= width
    # All pictures are there, in their own place.
    assert chromium.value("[...document.images].every(i => i.naturalWidth > 0)")
    assert chromium.value(
        "[...document.images].every(i => i.getBoundingClientRect().right <= innerWidth)"
    )
    (tmp_path / "report.png").write_bytes(chromium.screenshot())
    with Image.open(tmp_path / "report.png") as picture:
        assert picture.width == width
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    # Dark text and the orange and blue squares on white.
    assert (pixels.min(axis=-1) == 255).mean() > 0.5
    for colour in ((0xD5, 0x5E, 0x00), (0x00, 0x72, 0xB2), (0x1A, 0x1A, 0x1A)):
        assert (np.abs(pixels - colour).max(axis=-1) < 8).sum() > 20


def test_by_keyboard(shown):
    chromium, path = shown
    chromium.open(path, 360)
    chromium.press("Tab")
    assert chromium.value("document.activeElement.className") == "skip"
    chromium.press("Tab")
    assert chromium.value("document.activeElement.tagName") == "SUMMARY"
    opened = "document.activeElement.parentElement.open"
    assert chromium.value(opened) is False
    chromium.press("Enter")
    assert chromium.value(opened) is True
    assert chromium.value("document.documentElement.scrollWidth") <= 360


def test_on_paper(shown):
    chromium, path = shown
    chromium.open(path, 1280)
    chromium.send("Emulation.setEmulatedMedia", media="print")
    try:
        seen = "e => e.checkVisibility()"
        assert not chromium.value(f"({seen})(document.querySelector('nav'))")
        # What only opens on a screen is in the definitions, and the config is open.
        assert chromium.value(f"({seen})(document.querySelector('dl'))")
        assert chromium.value(
            "document.querySelector('.record pre').getBoundingClientRect().height > 50"
        )
        assert chromium.pdf().startswith(b"%PDF")
    finally:
        chromium.send("Emulation.setEmulatedMedia", media="")
