"""Makes the pictures of docs/serve.md: the page of the toy detector, in Chromium.

    python docs/serve_pictures.py

The pictures that are judged are drawn, as the toy's are.
"""

import io
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright import sync_api as playwright

from fdftnet_jax.data import toy

OUT = Path(__file__).parent / "images"
WIDTH = 960


def draw(folder: Path) -> list[Path]:
    """Draws pictures: fake, real, and one that tells nothing."""
    family = toy.FAMILIES[0]
    Image.fromarray(toy.fake_image(family, 7, 1)).save(folder / "portrait 1.png")
    Image.fromarray(toy.real_image(7, 2)).save(folder / "portrait 2.jpg", quality=95)
    Image.new("RGB", (96, 96), "#2f6f6f").save(folder / "portrait 3.png")
    return sorted(folder.iterdir())


def save(screenshot: bytes, name: str) -> None:
    """Saves a screenshot with as few colours as it shows, in a small file."""
    with Image.open(io.BytesIO(screenshot)) as image:
        few = image.convert("RGB").quantize(128, dither=Image.Dither.NONE)
    OUT.mkdir(exist_ok=True)
    few.save(OUT / name, optimize=True)


def main() -> None:
    """Serves the toy detector, and takes the pictures."""
    command = [sys.executable, "-m", "fdftnet_jax.cli", "serve", "toy", "--no-open"]
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(
            [*command, "--port", "0"], stderr=subprocess.PIPE, text=True
        ) as server,
        playwright.sync_playwright() as found,
    ):
        assert server.stderr is not None
        said = ""
        while "http" not in said:
            said += server.stderr.readline()
        address = re.findall(r"http://\S+", said)[0]
        chromium = found.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        page = chromium.new_page(viewport={"width": WIDTH, "height": 900})
        page.goto(address)
        page.set_input_files("#files", [str(path) for path in draw(Path(folder))])
        playwright.expect(page.locator(".card")).to_have_count(3)
        page.locator("#status").evaluate("e => (e.textContent = '')")
        page.locator("#results").scroll_into_view_if_needed()
        save(page.locator("#results").screenshot(), "serve-results.png")
        page.get_by_text("Look closer").first.click()
        playwright.expect(page.locator(".inside dl")).to_be_visible()
        save(page.locator(".card").first.screenshot(), "serve-closer.png")
        chromium.close()
        server.terminate()


if __name__ == "__main__":
    main()
