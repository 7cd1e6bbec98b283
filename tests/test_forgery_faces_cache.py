"""Preparations that are interrupted, run beside each other, or cannot be written."""

import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from prepared_folders import entries, run, start

from fdftnet_jax import datasets
from fdftnet_jax.data import caches, images
from fdftnet_jax.errors import UserError


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("scanned", [False, True])
def test_an_interrupted_preparation_is_not_taken_for_a_finished_one(
    folder, monkeypatch, interruption, scanned
):
    if scanned:
        # Then it is the writing of other splits' records that is interrupted.
        datasets.prepare(folder)
        folder.fractions.update(train=0.4, test=0.6)
    encode_png = images.encode_png
    calls = []

    def interrupted(image):
        calls.append(image)
        if len(calls) == 20:
            raise interruption
        return encode_png(image)

    with monkeypatch.context() as patch:
        patch.setattr(images, "encode_png", interrupted)
        with pytest.raises(interruption):
            datasets.prepare(folder)
    assert len(entries(folder)) == scanned
    assert len(datasets.prepare(folder).source("all")) == 24
    # TFDS makes a folder for downloads, of which there are none.
    left = {path.name for path in Path(folder.cache_dir).iterdir()} - {"downloads"}
    assert left == {"forgery_faces", "inspections"}


def test_what_a_killed_preparation_leaves_is_not_taken_for_a_set(folder):
    # A killed process cannot tidy up. This one dies after the first split is written.
    script = """
png = folder.Folder.png
folder.Folder.png = lambda self, split, i, pictures: (
    os.kill(os.getpid(), 9) if split == "test" else png(self, split, i, pictures)
)
datasets.prepare(data)
"""
    assert run(script, folder)[0] == -9
    cache = Path(folder.cache_dir)
    assert list(cache.glob("**/*.array_record*")) and list(cache.rglob("incomplete.*"))
    dataset = datasets.prepare(folder)
    assert len(list(dataset.source("all"))) == 24
    assert not list(cache.rglob("incomplete.*"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"fake/gan/03\.png: empty; replace"),
        (None, r"fake/gan/03\.png: No such file"),
        (
            images.encode_png(np.zeros((9, 9, 3), np.uint8)),
            r"fake/gan/03\.png to stay as it is while it is read, found another",
        ),
    ],
)
def test_a_file_that_changes_after_the_scan(
    folder, tmp_path, monkeypatch, content, message
):
    path = tmp_path / "faces/fake/gan/03.png"
    before = path.read_bytes()
    lock = threading.Lock()

    def change(pictures, digest):
        """Finds no picture kept, as where the scan remembered them."""
        with lock:
            if content is None:
                path.unlink(missing_ok=True)
            elif path.read_bytes() == before:
                path.write_bytes(content)

    with monkeypatch.context() as patch:
        patch.setattr(caches.Pictures, "get", change)
        with pytest.raises(UserError, match=message):
            datasets.prepare(folder)
    path.write_bytes(before)
    assert len(datasets.prepare(folder).source("all")) == 24


def test_a_second_process_waits_for_the_first(folder, tmp_path):
    """And finds the images ready."""
    slow = f"""
import time
png = folder.Folder.png
def slow(self, split, i, pictures):
    sys.stderr.write("preparing\\n")
    while not os.path.exists({str(tmp_path / "go")!r}):
        time.sleep(0.01)
    return png(self, split, i, pictures)
folder.Folder.png = slow
"""
    use = "print(len(datasets.prepare(data).source('all')))"
    first = start(slow + use, folder)
    try:
        assert first.stderr.readline() == "preparing\n"
        second = start(use, folder)
        said = second.stderr.readline()
    finally:
        (tmp_path / "go").touch()
        prepared, found = first.communicate()[0], second.communicate()[0]
    assert prepared == found == "24\n"
    assert said == (
        f"waiting for process {first.pid}, which prepares the same images\n"
    )


def test_a_cache_that_cannot_be_written(folder, tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(UserError, match=r"choose another config\.data\.cache_dir"):
        datasets.prepare(folder)


def test_default_cache(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    folder.cache_dir = ""
    datasets.prepare(folder)
    assert len(list((tmp_path / "xdg/fdftnet_jax").glob("**/dataset_info.json"))) == 1
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    datasets.prepare(folder)
    assert list((tmp_path / "home/.cache/fdftnet_jax").glob("**/dataset_info.json"))


def test_prints_nothing_away_from_a_terminal_and_needs_no_tensorflow(folder):
    script = """
for _ in range(2):
    datasets.prepare(data).source("all")[0]
assert "tensorflow" not in sys.modules
"""
    assert run(script, folder) == (0, "", "")


def test_a_terminal_sees_progress(folder, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    datasets.prepare(folder)
    out, err = capsys.readouterr()
    assert "train: 100%" in err and "test: 100%" in err and not out
