"""Commands, flags, fields and links in the Markdown files are those of the code.

A block of shell commands without a comment above it is really run. One that needs data
or takes long has `<!-- needs data -->` or `<!-- takes long -->` above it, and is parsed
by the command's own parser. Run as a program, this file does either in one process.
"""

import ast
import contextlib
import io
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest import mock

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
# Older entries of the changelog name what is gone.
CURRENT = [page for page in PAGES if page.name != "CHANGELOG.md"]
MARKS = ("<!-- needs data -->", "<!-- takes long -->")
SHELL = ("sh", "bash", "shell", "console")
EXPERIMENTS = sorted(
    path.stem
    for path in (ROOT / "experiments").glob("*.py")
    if '__name__ == "__main__"' in path.read_text()
)
# Programs of others that the pages use: their arguments are not looked at.
OTHERS = (".", "curl", "find", "git", "pip")
FENCE = re.compile(
    r"^(?P<above>[^\n]*)\n```(?P<language>\w*)\n(?P<text>.*?)^```$", re.M | re.S
)


def blocks(page, languages):
    """(line above the block, its text) of each fenced block in one of the languages."""
    return [
        (match["above"], match["text"])
        for match in FENCE.finditer(page.read_text())
        if match["language"] in languages
    ]


def commands(text):
    """The commands of a block, one a line, without comments and continuations."""
    lines = text.replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.strip() and line[0] != "#"]


def all_commands(marked):
    """(page, command) of the blocks that are marked as not to be run, or the others."""
    return [
        (page.name, command)
        for page in PAGES
        for above, text in blocks(page, SHELL)
        if (above in MARKS) == marked
        for command in commands(text)
    ]


def slug(heading):
    """The anchor that code hosts give a heading."""
    words = re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower())
    return words.strip().replace(" ", "-")


def prose(page):
    """A page without its fenced blocks."""
    return FENCE.sub("", page.read_text())


def this_program(task, given, directory):
    """Runs this file in a process of its own and returns its answer."""
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "PYTHONWARNINGS": "default",
    }
    done = subprocess.run(
        [sys.executable, __file__, task],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        cwd=directory,
        env=environment,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def parsed():
    """What the parsers say of every marked command, and the flags that they know."""
    found = all_commands(marked=True)
    answer = this_program("parse", [command for _, command in found], ROOT)
    return found, answer


def test_the_readme_has_at_most_150_lines():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_shell_commands_stand_in_fenced_blocks():
    """So that none of them escapes these tests."""
    for page in CURRENT:
        indented = re.findall(
            r"^(?: {4}|\t)\s*(?:\$ )?((?:make|fdftnet|python|pip) .*)",
            prose(page),
            re.M,
        )
        assert not indented, f"{page.name}: {indented}"
        assert "\n```\n" not in re.sub(
            r"```\w+\n.*?\n```\n", "", page.read_text() + "\n", flags=re.S
        )


def test_marked_commands_are_those_of_the_parsers(parsed):
    found, answer = parsed
    assert len(found) > 20
    wrong = [
        f"{page}: {command}\n    {error}"
        for (page, command), error in zip(found, answer["errors"], strict=True)
        if error
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.slow
def test_commands_without_a_mark_run(tmp_path):
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (96, 96), "white")
    ImageDraw.Draw(picture).ellipse((20, 30, 70, 80), fill="navy")
    picture.save(tmp_path / "picture.png")
    found = [command for _, command in all_commands(marked=False)]
    found = list(dict.fromkeys(found))
    assert "fdftnet show toy" in found
    examples = [
        text
        for page in PAGES
        for _, text in blocks(page, ("python",))
        if "load(" in text
    ]
    answer = this_program("run", {"commands": found, "python": examples}, tmp_path)
    assert answer["outputs"].keys() == set(found)
    for command, (code, output) in answer["outputs"].items():
        assert code == 0, f"{command}: {output}"
        said = "drawn pictures" if " show " in command else "picture.png"
        assert said in output or "--json" in command, f"{command}: {output}"
    assert json.loads((tmp_path / "results.json").read_text())
    assert [0 <= score <= 1 for scores in answer["scores"] for score in scores] == [
        True
    ]


def test_python_in_the_pages_is_python():
    found = [text for page in PAGES for _, text in blocks(page, ("python",))]
    assert len(found) >= 2
    for text in found:
        ast.parse(text)


def test_flags_and_fields_in_the_text_exist(parsed):
    known = parsed[1]
    for page in CURRENT:
        for code in re.findall(r"`([^`\n]+)`", prose(page)):
            for flag in re.findall(r"(?<![\w-])--(\w[\w-]*)", code):
                assert flag == "config" or flag in known["flags"], (
                    f"{page.name}: {code}"
                )
            for field in re.findall(
                r"(?<![\w/])config\.([a-z_]\w*(?:\.[a-z_]\w*)*)", code
            ):
                assert field in known["fields"], f"{page.name}: {code}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_resolve(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"\n", " ", prose(page))):
        if re.match(r"https?://|mailto:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.is_relative_to(ROOT) and file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", prose(file), re.M)
            assert anchor in [slug(heading) for heading in headings], target


def test_every_page_can_be_reached_from_the_readme():
    readme = (ROOT / "README.md").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert f"(docs/{page.name}" in readme, page.name


@pytest.mark.parametrize(
    "command",
    [
        "make dmo",
        "fdftnet predict toy a.png --fast",
        "fdftnet sho toy",
        "python -m experiments.pretain",
        "python -m experiments.evaluate --workdir=a --splt=test",
        "python -m experiments.evaluate --workdir=a --split=tset",
        "python -m experiments.evaluate --split=test",
        "python -m experiments.pretrain --workdir=a --config.data.dri=PATH",
        "python -m experiments.pretrain --workdir=a --config=configs/pre.py",
        "python -m experiments.pretrain --workdir=a --config=configs/pretrain.py:vgg",
        "python -m experiments.pretrain --workdir=a --config.epochs=many",
        "python -m experiments.pretrain data --workdir=a",
        "srun --ntasks=2 python -m experiments.finetune --workdir=a --spread",
        "rm -rf runs",
    ],
)
def test_a_wrong_command_would_be_noticed(wrong, command):
    assert wrong[command]


@pytest.fixture(scope="module")
def wrong():
    """What is said of the wrong commands above, by one process."""
    mark = test_a_wrong_command_would_be_noticed.pytestmark[0]
    given = mark.args[1]
    return dict(zip(given, this_program("parse", given, ROOT)["errors"], strict=True))


# ---- What the process of its own does.


class _ParsedError(Exception):
    """The arguments were right: nothing more of the command is run."""


def _parse_experiment(name, arguments):
    """Lets an experiment parse its arguments as in earnest; returns its flags."""
    from absl import app, flags
    from absl.testing import flagsaver

    def parse_only(main, argv=None, flags_parser=None):
        rest = flags_parser(sys.argv)
        if len(rest) > 1:
            raise SystemExit(f"unexpected argument {rest[1]}")
        raise _ParsedError

    known = []
    with (
        flagsaver.flagsaver(),
        mock.patch.object(sys, "argv", [f"experiments/{name}.py", *arguments]),
        mock.patch.object(app, "run", parse_only),
    ):
        try:
            runpy.run_module(f"experiments.{name}", run_name="__main__")
        except _ParsedError:
            known = list(flags.FLAGS)
    return known


def _parse(command):
    """Raises SystemExit where a command is wrong."""
    from fdftnet_jax import cli

    inner = re.search(r'"([^"]*python -m [^"]*)"', command)
    words = shlex.split(inner[1] if inner else command, comments=True)
    if "|" in words:
        words = words[words.index("|") + 1 :]
    if "python" in words:
        _, dash_m, module, *arguments = words[words.index("python") :]
        package, _, name = module.partition(".")
        if dash_m != "-m" or package != "experiments" or name not in EXPERIMENTS:
            raise SystemExit(f"no experiment {module}")
        _parse_experiment(name, arguments)
    elif words[0] == "fdftnet":
        cli.parser().parse_args(words[1:])
    elif words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
        wrong = [word for word in words[1:] if word not in targets]
        if wrong:
            raise SystemExit(f"no target {wrong[0]}")
    elif words[0] not in OTHERS:
        raise SystemExit(f"{words[0]} is neither ours nor expected")


def _fields(config, prefix=""):
    """Names of all fields and sections of a config."""
    found = []
    for name, value in config.items():
        found.append(prefix + name)
        if hasattr(value, "items"):
            found += _fields(value, f"{prefix}{name}.")
    return found


def _parse_all(given):
    """What is wrong with each command ('' for nothing), and all flags and fields."""
    from configs import base, compare, grid, prepare_faces, table5
    from fdftnet_jax import cli

    errors = []
    for command in given:
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
                _parse(command)
            errors.append("")
        except SystemExit as error:
            errors.append(said.getvalue() or str(error))
    required = {
        "evaluate": ["--workdir=a"],
        "finetune": ["--workdir=a"],
        "pretrain": ["--workdir=a"],
        "prepare_faces": ["--input=a", "--output=b"],
    }
    flags = {"help", "version"}
    for name in EXPERIMENTS:
        found = _parse_experiment(name, required.get(name, []))
        assert found, name
        flags |= {*found, *(f"no{flag}" for flag in found)}
    for action in cli.parser()._actions:
        for command in getattr(action, "choices", None) or {}:
            subparser = action.choices[command]
            flags |= {name.lstrip("-") for name in subparser._option_string_actions}
    configs = [base, compare, grid, prepare_faces, table5]
    fields = {field for config in configs for field in _fields(config.get_config())}
    return {"errors": errors, "flags": sorted(flags), "fields": sorted(fields)}


def _run_all(given):
    """Exit code and output of each command of `fdftnet`, and the scores of examples."""
    from fdftnet_jax import cli

    outputs = {}
    for command in given["commands"]:
        program, *arguments = shlex.split(command)
        if program != "fdftnet":
            outputs[command] = (1, "neither marked nor a command of fdftnet")
            continue
        # (A file, as a terminal is one: with a number.)
        with tempfile.TemporaryFile("w+") as said:
            with contextlib.redirect_stdout(said):
                code = cli.main(arguments)
            said.seek(0)
            outputs[command] = (code, said.read())
    scores = []
    for text in given["python"]:
        names = {}
        exec(text, names)
        scores.append([float(score) for score in names["scores"]])
    return {"outputs": outputs, "scores": scores}


if __name__ == "__main__":
    task = {"parse": _parse_all, "run": _run_all}[sys.argv[1]]
    print(json.dumps(task(json.load(sys.stdin))))
