"""Preparations that are interrupted, run beside each other, or cannot be written."""

import sys
from pathlib import Path

import numpy as np
import pytest
from prepared_folders import run, start

from fdftnet_jax.data import forgery_faces, images, inspection
from fdftnet_jax.errors import UserError


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit])
def test_an_interrupted_preparation_is_not_taken_for_a_finished_one(
    folder, monkeypatch, interruption
):
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
            forgery_faces.prepare(folder)
    assert len(forgery_faces.prepare(folder).source("all")) == 24


def test_what_a_killed_preparation_leaves_is_not_taken_for_a_set(folder):
    # A killed process cannot tidy up. This one dies after the first split is written.
    script = """
config = forgery_faces.FolderConfig
image = config.image
config.image = lambda self, split, i: (
    os.kill(os.getpid(), 9) if split == "test" else image(self, split, i)
)
forgery_faces.prepare(data)
"""
    assert run(script, folder)[0] == -9
    cache = Path(folder.cache_dir)
    assert list(cache.glob("**/*.array_record*")) and list(cache.rglob("incomplete.*"))
    dataset = forgery_faces.prepare(folder)
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
def test_a_file_that_changes_after_the_inspection(
    folder, tmp_path, monkeypatch, content, message
):
    path = tmp_path / "faces/fake/gan/03.png"
    before = path.read_bytes()
    inspect = inspection.inspect

    def and_change(*arguments):
        findings = inspect(*arguments)
        path.unlink() if content is None else path.write_bytes(content)
        return findings

    with monkeypatch.context() as patch:
        patch.setattr(inspection, "inspect", and_change)
        with pytest.raises(UserError, match=message):
            forgery_faces.prepare(folder)
    path.write_bytes(before)
    assert len(forgery_faces.prepare(folder).source("all")) == 24


def test_a_second_process_waits_for_the_first(folder, tmp_path):
    """And finds the images ready."""
    slow = f"""
import time
image = forgery_faces.FolderConfig.image
def slow(self, split, i):
    sys.stderr.write("preparing\\n")
    while not os.path.exists({str(tmp_path / "go")!r}):
        time.sleep(0.01)
    return image(self, split, i)
forgery_faces.FolderConfig.image = slow
"""
    use = "print(len(forgery_faces.prepare(data).source('all')))"
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
        forgery_faces.prepare(folder)


def test_default_cache(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    folder.cache_dir = ""
    forgery_faces.prepare(folder)
    assert len(list((tmp_path / "xdg/fdftnet_jax").glob("**/dataset_info.json"))) == 1
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    forgery_faces.prepare(folder)
    assert list((tmp_path / "home/.cache/fdftnet_jax").glob("**/dataset_info.json"))


def test_prints_nothing_away_from_a_terminal_and_needs_no_tensorflow(folder):
    script = """
for _ in range(2):
    forgery_faces.prepare(data).source("all")[0]
assert "tensorflow" not in sys.modules
"""
    assert run(script, folder) == (0, "", "")


def test_a_terminal_sees_progress(folder, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    forgery_faces.prepare(folder)
    out, err = capsys.readouterr()
    assert "train: 100%" in err and "test: 100%" in err and not out
