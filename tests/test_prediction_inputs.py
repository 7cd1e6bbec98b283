"""What the arguments of `fdftnet predict` stand for, and in which order."""

import io
import os

import drawn_videos
import pytest
from PIL import Image

from fdftnet_jax import files
from fdftnet_jax.prediction import inputs
from fdftnet_jax.prediction.inputs import FOLDER, IMAGE, VIDEO, Item


@pytest.fixture
def tree(tmp_path):
    for name in ("b.jpg", "a.PNG", "B.png", "c/z.webp", "c/a.mp4", "d.txt", ".h.png"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    return tmp_path


def names(items, root):
    return [os.path.relpath(item.path, root) for item in items]


def test_a_folder_is_its_images_and_videos_by_the_bytes_of_their_names(tree):
    skipped = inputs.Skipped()
    found = list(inputs.expand([str(tree)], skipped=skipped))
    # Capitals come first in ASCII; a folder stands among the files.
    assert names(found, tree) == ["B.png", "a.PNG", "b.jpg", "c/a.mp4", "c/z.webp"]
    assert [item.kind for item in found] == [IMAGE, IMAGE, IMAGE, VIDEO, IMAGE]
    assert not any(item.reason for item in found)
    assert skipped == inputs.Skipped(other=1, hidden=1)


def test_the_order_of_the_arguments_is_kept_and_nothing_is_merged(tree):
    given = [str(tree / "b.jpg"), str(tree / "c"), str(tree / "b.jpg")]
    found = names(inputs.expand(given), tree)
    assert found == ["b.jpg", "c/a.mp4", "c/z.webp", "b.jpg"]


def test_a_file_that_is_named_is_tried_whatever_it_is_called(tree):
    for name in ("d.txt", ".h.png"):
        (found,) = inputs.expand([str(tree / name)])
        assert found == Item(str(tree / name), IMAGE)


def test_pictures_and_videos_are_found_by_their_content(tree):
    drawn_videos.encode(tree / "film.mkv", drawn_videos.moving(2)).rename(tree / "film")
    Image.new("RGB", (40, 40)).save(tree / "c" / "picture.dat", "JPEG")
    (tree / "program.ts").write_text("export const a = 1;\n")
    skipped = inputs.Skipped()
    found = {
        os.path.relpath(item.path, tree): item.kind
        for item in inputs.expand([str(tree)], skipped=skipped)
    }
    assert found["film"] == VIDEO and found["c/picture.dat"] == IMAGE
    assert "program.ts" not in found and skipped.other == 2


def test_every_argument_has_an_item(tree, tmp_path):
    (tmp_path / "empty").mkdir()
    given = [str(tree / "none.png"), str(tree / "*.gif"), str(tmp_path / "empty")]
    given += ["", "a\0b", "x" * 5000]
    found = list(inputs.expand(given))
    assert [item.path for item in found] == given
    assert all(item.reason for item in found)
    assert found[0].reason == os.strerror(2)
    assert found[2].kind == FOLDER


def test_a_pattern_is_its_matches_in_order(tree):
    for name in ("x[1].png", "x1.png"):
        (tree / name).touch()
    found = names(inputs.expand([str(tree / "**" / "*.[pw]*")]), tree)
    assert found == ["B.png", "c/z.webp", "x1.png", "x[1].png"]
    # A file that is called like a pattern is that file.
    assert names(inputs.expand([str(tree / "x[1].png")]), tree) == ["x[1].png"]


def test_links_that_go_round_in_circles(tree):
    os.symlink(tree, tree / "c" / "round")
    os.symlink("self.png", tree / "self.png")
    os.symlink(tree / "c", tree / "zz")
    skipped = inputs.Skipped()
    found = list(inputs.expand([str(tree)], skipped=skipped))
    assert names(found, tree) == [
        *("B.png", "a.PNG", "b.jpg", "c/a.mp4", "c/z.webp", "self.png")
    ]
    assert skipped.visited == 2
    # Given twice, it is visited twice.
    assert len(list(inputs.expand([str(tree)] * 2))) == 12


def test_a_folder_that_cannot_be_read_is_an_item_and_the_others_are_read(
    tree, monkeypatch
):
    scandir = os.scandir

    def forbidden(path):
        if os.path.basename(path) == "c":
            raise PermissionError(13, os.strerror(13))
        return scandir(path)

    # (Permissions do not bind the super-user.)
    monkeypatch.setattr(os, "scandir", forbidden)
    found = list(inputs.expand([str(tree)]))
    assert names(found, tree) == ["B.png", "a.PNG", "b.jpg", "c"]
    assert found[-1] == Item(str(tree / "c"), FOLDER, os.strerror(13))


def test_what_the_command_writes_is_not_read(tree):
    own = {files.identity(tree / "c")}
    skipped = inputs.Skipped()
    found = names(inputs.expand([str(tree)], own=own, skipped=skipped), tree)
    assert found == ["B.png", "a.PNG", "b.jpg"]
    assert skipped.own == 1


def test_a_list_on_standard_input(tree):
    given = [
        *(os.fsencode(tree / "b.jpg"), b"no \xff", os.fsencode(tree / "c")),
        b"line\nbreak",
    ]
    data = io.BytesIO(b"\0".join(given))
    listed = inputs.read_list(data, null=True, recursive=True)
    found = list(inputs.expand(["-"], listed))
    paths = [os.fsencode(item.path) for item in found]
    within = [os.fsencode(tree / name) for name in ("c/a.mp4", "c/z.webp")]
    assert paths == [*given[:2], *within, *given[3:]]
    (found,) = inputs.expand(["-"], inputs.read_list(io.BytesIO(b"")))
    assert found.reason


def test_names_on_one_line_and_no_two_the_same():
    strange = [
        "a",
        "a\n",
        "a\\n",
        "a\\\n",
        "\udcff",
        "\\xff",
        "\x1b[31m",
        "é",
        "\u202e",
    ]
    shown = [files.printable(name) for name in strange]
    assert len(set(shown)) == len(strange)
    for text in shown:
        assert text.isprintable()
        text.encode()
    assert files.printable("ü/a b.jpg") == "ü/a b.jpg"
    assert files.printable("a\nb\udcff") == "a\\nb\\xff"
