"""The command `fdftnet`: help at once, one line for a mistake, exit codes."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import exported
import pytest

from fdftnet_jax import cli
from fdftnet_jax.detector import file
from fdftnet_jax.errors import UserError

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def run(tmp_path_factory, finetuned):
    workdir = tmp_path_factory.mktemp("cli") / "adapted"
    return shutil.copytree(finetuned, workdir)


def test_export_and_show(run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["export", str(run), "face.safetensors", "--name", "mine"]
    assert cli.main([*arguments, "--licence", "Research only."]) == 0
    assert "fdftnet show face.safetensors" in capsys.readouterr().out
    assert cli.main(["show", "face.safetensors"]) == 0
    text = capsys.readouterr().out
    assert text.splitlines()[0] == "mine"
    assert max(map(len, text.splitlines())) <= 80
    for part in (
        *("FDFtNet on small, N = 1, M = 1", "resized to 32x32", "0 real, 1 fake"),
        *(
            "split finetune, at most 12 of each class",
            "equal error rates",
            "Research only.",
        ),
    ):
        assert part in " ".join(text.split())
    assert cli.main(["show", "--json", "face.safetensors"]) == 0
    shown = json.loads(capsys.readouterr().out)
    contents = file.read("face.safetensors")
    assert shown == {"sha256": contents.digest, **contents.card}
    assert contents.digest in " ".join(text.split())
    # A second time, only where it may be replaced.
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: the detector face.safetensors exists; give another")
    assert cli.main([*arguments, "--replace"]) == 0

    def change(_, card):
        del card["checkpoint"]

    exported.rewritten("face.safetensors", "b.safetensors", change)
    capsys.readouterr()
    assert cli.main(["show", "b.safetensors"]) == 2
    assert "does not hold a detector that works (KeyError" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: COMMAND; see fdftnet --help"),
        (["shwo"], "invalid choice: 'shwo'"),
        (["show"], "required: detector; see fdftnet show --help"),
        (["show", "x", "--jsn"], "unrecognized arguments: --jsn"),
    ],
)
def test_wrong_arguments_are_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line


def test_mistakes_are_one_line_and_code_2(capsys, tmp_path):
    for arguments in (
        ["show", str(tmp_path / "missing")],
        ["export", str(tmp_path), str(tmp_path / "a.safetensors")],
    ):
        assert cli.main(arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ") and line.count(";") + line.count(":") > 1
        with pytest.raises(UserError):
            cli.main([*arguments, "--debug"])


@pytest.mark.parametrize(("number", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_signals(number, code, capsys, monkeypatch):
    def stopped(_):
        os.kill(os.getpid(), getattr(signal, number))

    monkeypatch.setattr(cli, "_show", stopped)
    assert cli.main(["show", "a"]) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"stopped by {number}")


def test_help_fits_a_screen_and_starts_nothing(tmp_path):
    code = (
        "import sys\n"
        "from fdftnet_jax import cli\n"
        "try:\n"
        "    cli.main(sys.argv[1:])\n"
        "finally:\n"
        "    heavy = {'jax', 'numpy', 'cv2', 'PIL', 'scipy'} & set(sys.modules)\n"
        "    assert not heavy, heavy\n"
    )
    for arguments in ([], ["export"], ["show"], ["predict"]):
        ended = subprocess.run(
            [sys.executable, "-c", code, *arguments, "--help"],
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), "COLUMNS": "80"},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr
        lines = ended.stdout.splitlines()
        assert max(map(len, lines)) <= 80
        assert len(lines) <= (75 if arguments == ["predict"] else 24)
