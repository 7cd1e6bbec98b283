"""No command destroys what is there, or reads what it was not given."""

import csv
import io
import json
import os
import subprocess
import sys
import urllib.parse
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from stand_in import StandIn, predict, rows

import fdftnet_jax
from fdftnet_jax import files
from fdftnet_jax.data import images
from fdftnet_jax.errors import UserError
from fdftnet_jax.prediction import inputs, outputs, writers
from fdftnet_jax.prediction.results import Row

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture
def evidence(tmp_path, monkeypatch):
    """Three photographs, and a command that must not open one too early."""
    monkeypatch.setattr(fdftnet_jax, "load", lambda path, program: StandIn())
    folder = tmp_path / "in"
    folder.mkdir()
    for number, name in enumerate(("a.png", "b.png", "c.png")):
        pixels = np.full((40, 40, 3), 60 * number, np.uint8)
        pixels[:4] = 200
        Image.fromarray(pixels).save(folder / name)
    return folder


@pytest.fixture
def nothing_is_read(monkeypatch):
    def read(*_):
        raise AssertionError("read too early")

    monkeypatch.setattr(images, "read", read)
    monkeypatch.setattr(fdftnet_jax, "load", read)


def contents(folder):
    return {
        path.relative_to(folder): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("flag", ["--csv", "--json"])
@pytest.mark.parametrize("rest", [["b.png"], ["b.png", "c.png"], ["."]])
def test_results_do_not_replace_a_photograph(
    evidence, nothing_is_read, monkeypatch, flag, rest
):
    """`--csv *.png` makes the first photograph the output."""
    monkeypatch.chdir(evidence)
    before = contents(evidence)
    with pytest.raises(UserError, match=rf"{flag} a.png exists; .*--replace"):
        predict(flag, "a.png", *rest)
    assert contents(evidence) == before


@pytest.mark.parametrize("given", ["a.png", ".", "*.png", "../in/a.png", "-"])
def test_an_input_is_not_replaced_even_on_request(
    evidence, nothing_is_read, monkeypatch, given
):
    monkeypatch.chdir(evidence)
    stdin = SimpleNamespace(buffer=io.BytesIO(b"b.png\na.png\n"))
    monkeypatch.setattr(sys, "stdin", stdin)
    os.link("a.png", "hard.csv")
    os.symlink("a.png", "soft.csv")
    before = contents(evidence)
    for name in ("a.png", "hard.csv", "soft.csv"):
        stdin.buffer.seek(0)
        with pytest.raises(UserError, match=r"is also an input"):
            predict("--csv", name, "--replace", given)
    assert contents(evidence) == before


def test_the_detector_and_an_unfinished_name_are_inputs_too(evidence, monkeypatch):
    monkeypatch.chdir(evidence)
    Path("mine").write_bytes(b"a detector")
    with pytest.raises(UserError, match="also an input"):
        predict("a.png", "--csv", "mine", "--replace", detector="mine")
    os.rename("b.png", "out.csv.partial")
    before = contents(evidence)
    with pytest.raises(UserError, match="also an input"):
        predict("out.csv.partial", "--csv", "out.csv", "--replace")
    with pytest.raises(UserError, match="holds something else"):
        predict("a.png", "--csv", "out.csv")
    os.rename("out.csv.partial", "c.csv")
    os.symlink("c.csv", "out.csv.partial")
    for options in ([], ["--replace"]):
        with pytest.raises(UserError, match="is a link"):
            predict("a.png", "--csv", "out.csv", *options)
    os.unlink("out.csv.partial")
    os.rename("c.csv", "out.csv.partial")
    assert contents(evidence) == before


def test_results_are_replaced_on_request_and_what_a_stopped_command_left_always(
    evidence, tmp_path
):
    out = tmp_path / "out.csv"
    out.write_text("of last week")
    assert predict(evidence, "--csv", out, "--replace") == 0
    whole = out.read_text()
    assert len(rows(out)[0]) == 3
    out.unlink()
    (tmp_path / "out.csv.partial").write_text(whole[: len(whole) // 2])
    assert predict(evidence, "--csv", out) == 0
    assert out.read_text() == whole


@pytest.mark.parametrize("links", [True, False])
def test_a_file_that_appears_meanwhile_is_kept(tmp_path, monkeypatch, links):
    if not links:

        def refused(*_):
            raise PermissionError(1, "no hard links here")

        monkeypatch.setattr(os, "link", refused)
    out = tmp_path / "out.csv"
    writer = writers.CsvFile(str(out))
    writer.add([Row("a", "image")])
    out.write_text("somebody else's")
    with pytest.raises(UserError, match=r"complete in .*out.csv.partial"):
        writer.close({}, complete=True)
    assert out.read_text() == "somebody else's"
    assert len((tmp_path / "out.csv.partial").read_text().splitlines()) == 2
    with pytest.raises(FileExistsError):
        files.write_atomic(out, "ours", replace=False)
    assert sorted(os.listdir(tmp_path)) == ["out.csv", "out.csv.partial"]
    files.write_atomic(tmp_path / "new", "ours", replace=False)
    assert (tmp_path / "new").read_text() == "ours"


@pytest.mark.parametrize("flag", ["--explain", "--plots"])
def test_a_folder_with_files_of_others_takes_no_figures(
    evidence, nothing_is_read, tmp_path, flag
):
    before = contents(evidence)
    for options in ([], ["--replace"]):
        with pytest.raises(UserError, match=r"did not make, such as a\.png"):
            predict(evidence / "a.png", flag, evidence, *options)
    assert contents(evidence) == before
    figures = tmp_path / "figures"
    figures.mkdir()
    (figures / "a.mp4-0123456789ab.svg").write_text("a figure of an earlier command")
    with pytest.raises(UserError, match="--replace"):
        predict(evidence, flag, figures)
    with pytest.raises(UserError, match="is also an input"):
        predict(figures, flag, figures, "--replace")


def test_figures_go_to_an_empty_folder_and_over_figures_on_request(evidence, tmp_path):
    figures = tmp_path / "figures"
    figures.mkdir()
    (figures / ".DS_Store").touch()
    assert predict(evidence, "--plots", figures) == 0
    (figures / "a.mp4-0123456789ab.svg").write_text("a figure of an earlier command")
    assert predict(evidence, "--plots", figures, "--replace") == 0


def test_folders_of_results_hold_no_other_files(tmp_path):
    patterns = ("*/config.json",)
    for name in ("gone", "empty"):
        files.check_folder(tmp_path / name, "--workdir", patterns)
        (tmp_path / "empty" / "seed0").mkdir(parents=True, exist_ok=True)
    (tmp_path / "empty" / "seed0" / "a.jpg").touch()
    with pytest.raises(UserError, match=r"such as a\.jpg"):
        files.check_folder(tmp_path / "empty", "--workdir", patterns)
    files.check_folder(tmp_path / "empty", "--workdir", patterns, replace=True)
    (tmp_path / "empty" / "seed0" / "config.json").touch()
    files.check_folder(tmp_path / "empty", "--workdir", patterns)
    with pytest.raises(UserError, match="no folder"):
        files.check_folder(tmp_path / "empty" / "seed0" / "a.jpg", "--workdir", ())


NAMES = ["b.png", "ü 人.png", "a\u202f1.png"]
TEXT = "\n".join(NAMES) + "\n"


@pytest.mark.parametrize(
    "data",
    [
        TEXT.encode(),
        TEXT.encode("utf-8-sig"),
        TEXT.encode("utf-16"),
        b"\xfe\xff" + TEXT.encode("utf-16-be"),
        TEXT.replace("\n", "\r\n").encode(),
        TEXT.replace("\n", "\r\n").encode("utf-16"),
        f"\n\r\n{TEXT}\n".removesuffix("\n").encode(),
    ],
    ids=["utf-8", "bom", "utf-16", "big-endian", "crlf", "powershell", "empty lines"],
)
def test_a_list_is_text_whatever_wrote_it(data):
    assert inputs.read_list(io.BytesIO(data)) == NAMES


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (TEXT.encode("utf-16-le"), 2),
        ("a.png\n".encode("utf-16-le"), 1),
        (TEXT.encode("utf-16")[:-1], 3),
        (TEXT.encode("utf-32"), 1),
        ("a.png\né.png\n".encode("latin-1"), 2),
        (b"a.png\0b.png\0", 1),
    ],
    ids=["no mark", "no mark, ascii", "cut", "utf-32", "latin-1", "nul"],
)
def test_what_is_no_text_is_an_error_before_anything_is_read(
    data, line, evidence, nothing_is_read, monkeypatch
):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))
    with pytest.raises(UserError, match=f"on line {line};"):
        predict("-")


def test_names_between_nuls_are_bytes(tmp_path):
    names = [b"a\nb.png", b"\xff\r", "ü".encode()]
    data = b"\0".join([*names, b""])
    found = inputs.read_list(io.BytesIO(data), null=True)
    assert [os.fsencode(name) for name in found] == names


@pytest.mark.parametrize("line", ["/", ".", "in", "in/"])
def test_a_listed_folder_is_not_walked_unasked(
    line, evidence, nothing_is_read, monkeypatch
):
    monkeypatch.chdir(evidence.parent)
    data = f"in/a.png\n{line}\n".encode()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))
    with pytest.raises(UserError, match=rf"line 2 .*folder {line}; .*--recursive"):
        predict("-")


def test_a_listed_folder_is_walked_on_request(evidence, tmp_path, monkeypatch):
    data = f"{evidence}\n".encode()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))
    assert predict("-", "--recursive", "--csv", tmp_path / "out") == 0
    assert len(rows(tmp_path / "out")[0]) == 3
    for flag in ("--null", "--recursive"):
        with pytest.raises(UserError, match="standard input"):
            predict(evidence, flag)


STRANGE = [
    *("a\u202f1.png", "a\u00a0.png", "全角\u3000.png", "a\u200d\u200c.png", "\\.png"),
    *("a\nb.png", "a\rb.png", "q\",'.png", " .png", "\u202eb.png", "a\u2028b.png"),
    *("=1+1.png", "+1.png", "-1.png", "@a.png", "file:x.png", "\x1b[31m.png"),
    *(os.fsdecode(b"latin \xe9.png"), os.fsdecode(b"\xff%41.png"), "%41.png", "\ufeff"),
]


def as_documented(text):
    """A path of the results, read by the rule of `predict --help`."""
    if text.startswith("file:"):
        return os.fsdecode(urllib.parse.unquote_to_bytes(text.removeprefix("file://")))
    return text


@pytest.mark.parametrize("flag", ["--csv", "--json"])
def test_a_path_in_the_results_opens_the_file(evidence, monkeypatch, tmp_path, flag):
    monkeypatch.chdir(tmp_path)
    for name in STRANGE:
        with open(name, "wb") as file:
            file.write((evidence / "a.png").read_bytes())
    listed = b"\0".join(os.fsencode(name) for name in STRANGE)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(listed)))
    (tmp_path / "results").mkdir()
    assert predict("-", "--null", flag, "results/out") == 0
    data = Path("results/out").read_bytes()
    if flag == "--csv":
        found = list(csv.DictReader(io.StringIO(data.decode(), newline="")))
    else:
        found = json.loads(data.decode())["results"]
    paths = [row["path"] for row in found]
    assert len(paths) == len(STRANGE)
    for path, name in zip(paths, STRANGE, strict=True):
        assert os.path.samefile(as_documented(path), name)
        assert not path.startswith(("=", "+", "-", "@"))
    plain = [name for name in STRANGE if name.isascii() and name[0] not in "=+-@f"]
    assert set(plain) <= set(paths)


def test_text_is_no_formula_and_numbers_stay_numbers(tmp_path):
    out = tmp_path / "out.csv"
    writer = writers.CsvFile(str(out))
    row = Row("a", "image", logit=-2.5, reason="=HYPERLINK(1)", notes="-1 \udcff")
    writer.add([row])
    writer.close({}, complete=True)
    with out.open(newline="", encoding="utf-8") as file:
        (found,) = csv.DictReader(file)
    assert found["logit"] == "-2.5"
    assert found["reason"] == "'=HYPERLINK(1)" and found["notes"].startswith("'-1")


@pytest.mark.parametrize("closed", ["1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_closed_streams_are_no_error(evidence, tmp_path, closed):
    out, codes = tmp_path / "out.csv", tmp_path / "codes"
    # (Each of the commands is one that a process could begin with.)
    commands = [
        *([evidence, "--csv", out], [evidence], [tmp_path / "gone"]),
        [evidence, "--csv", out],
    ]
    listed = [["predict", "detector", *map(str, command)] for command in commands]
    code = (
        "import pathlib, fdftnet_jax; from stand_in import StandIn\n"
        "fdftnet_jax.load = lambda path, program: StandIn()\n"
        "from fdftnet_jax import cli\n"
        f"codes = [cli.main(arguments) for arguments in {listed}]\n"
        f"pathlib.Path({str(codes)!r}).write_text(str(codes))\n"
    )
    subprocess.run(
        ["sh", "-c", f'"$@" {closed}', "sh", sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'tests'}"},
        check=True,
    )
    assert codes.read_text() == "[0, 0, 3, 2]"
    # What libraries write to a closed stream does not end up in the results.
    assert len(rows(out)[0]) == 3


def test_file_names_are_plain_and_their_own():
    odd = ["a.jpg", "b/a.jpg", "../a.jpg", "", "人.jpg", "\udcff.jpg", ".x", "a" * 999]
    odd += ["A.jpg", "a b.jpg", "a_b.jpg", "-rf", "a\nb.jpg", "CON"]
    names = [outputs.figure_name(name, ".png") for name in odd]
    assert len({name.lower() for name in names}) == len(odd)
    for name in names:
        assert name.isascii() and len(name) < 90 and name[0] not in ".-"
        assert not set(name) & set("/\\ :\n") and name.endswith(".png")
    assert names[0].startswith("a.jpg-")
    # Of the same name always the same.
    assert outputs.figure_name("a.jpg", ".png") == names[0]
