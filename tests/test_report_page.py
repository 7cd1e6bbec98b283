"""The report in headless Chromium: at two widths, by keyboard, on paper."""

import io

import numpy as np
import pytest
from PIL import Image
from test_report import made as made


@pytest.fixture
def address(made):
    return (made.workdir / "report.html").as_uri()


@pytest.fixture
def page(chromium):
    context = chromium.new_context(viewport={"width": 360, "height": 740})
    yield context.new_page()
    context.close()


@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_is_said_loaded_or_cut_off(page, address, width):
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.set_viewport_size({"width": width, "height": 740})
    page.goto(address)
    # Pictures are drawn, and a policy's complaints are told.
    page.evaluate("Promise.all([...document.images].map(i => i.decode()))")
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [address]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    # All pictures are there, in their own place.
    assert page.evaluate("[...document.images].every(i => i.naturalWidth > 0)")
    assert page.evaluate(
        "[...document.images].every(i => i.getBoundingClientRect().right <= innerWidth)"
    )
    with Image.open(io.BytesIO(page.screenshot())) as picture:
        assert picture.width == width
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    # Dark text and the orange and blue squares on white.
    assert (pixels.min(axis=-1) == 255).mean() > 0.5
    for colour in ((0xD5, 0x5E, 0x00), (0x00, 0x72, 0xB2), (0x1A, 0x1A, 0x1A)):
        assert (np.abs(pixels - colour).max(axis=-1) < 8).sum() > 20


def test_by_keyboard(page, address):
    page.goto(address)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.tagName") == "SUMMARY"
    opened = "document.activeElement.parentElement.open"
    assert page.evaluate(opened) is False
    page.keyboard.press("Enter")
    assert page.evaluate(opened) is True
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_on_paper(page, address):
    page.goto(address)
    page.emulate_media(media="print")
    seen = "e => e.checkVisibility()"
    assert not page.locator("nav").evaluate(seen)
    # What only opens on a screen is in the definitions, and the config is open.
    assert page.locator("dl").first.evaluate(seen)
    config = page.locator(".record pre").first
    assert config.bounding_box()["height"] > 50
    assert page.pdf().startswith(b"%PDF")
