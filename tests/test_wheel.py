"""The built wheel does all that the command promises, without a checkout.

It is installed into an environment of its own, which finds the dependencies in that of
the tests, and is used there as a user does: from a folder of their own, by commands.
"""

import csv
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from fdftnet_jax.data import toy

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
# What setuptools sees of a checkout: more than the wheel is to hold.
SOURCES = ("configs", "experiments", "fdftnet_jax", "tests", "setup.cfg")
SOURCES += ("pyproject.toml", "README.md", "LICENSE")
# Of a class: `adapt` wants 40 or more.
EACH = 48
# What `adapt` writes.
ENDS = (".safetensors", ".report.html")
# What this process has from its own start or from conftest, and a user has not.
OURS = ("JAX_", "XLA_", "TF_", "PYTHON", "PYTEST", "COV", "OPENBLAS_")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of a copy: `build/` of the checkout may hold files long deleted."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, folder / "source" / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, folder / "source" / name)
    _pip("wheel", "--no-deps", "--wheel-dir", folder, folder / "source")
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def programs(wheel, tmp_path_factory):
    """The folder of programs of a fresh environment with the wheel in it."""
    folder = tmp_path_factory.mktemp("installed") / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    _pip("--python", python, "install", "--no-deps", "--no-index", wheel)
    # A folder named so is searched last, and the .pth files in it are not read: an
    # editable install of the package stays unknown.
    (packages,) = folder.glob("lib/python*/site-packages")
    known = sorted({sysconfig.get_path(name) for name in ("purelib", "platlib")})
    (packages / "dependencies.pth").write_text("\n".join(known) + "\n")
    return python.parent


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Folders of two forgeries, each with real/ and fake/."""
    folder = tmp_path_factory.mktemp("pictures")
    for number, family in enumerate(toy.FAMILIES):
        for index in range(number * EACH, (number + 1) * EACH):
            of_class = {
                "real": toy.real_image(0, index),
                "fake": toy.fake_image(family, 0, index),
            }
            for name, pixels in of_class.items():
                path = folder / family / name / f"{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
    return folder


@pytest.fixture(scope="module")
def user(programs, tmp_path_factory):
    """Runs a program of the installation where there is nothing but the user's files.

    Called with a program and its arguments; returns what it printed. `user.folder` is
    the working directory.
    """
    folder = tmp_path_factory.mktemp("user")
    home = tmp_path_factory.mktemp("home")
    environment = _environment() | {"JAX_PLATFORMS": "cpu"}
    environment |= {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache")}

    def run(program, *arguments, code=0):
        done = subprocess.run(
            [programs / program, *arguments],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=1200,
        )
        said = f"{program} {arguments}:\n{done.stdout}\n{done.stderr}"
        assert done.returncode == code, said
        assert "Traceback" not in done.stderr, said
        return done.stdout

    run.folder = folder
    return run


def _pip(*arguments):
    command = [sys.executable, "-I", "-m", "pip", "--quiet", *arguments]
    subprocess.run(command, check=True, env=_environment())


def _environment():
    return {k: v for k, v in os.environ.items() if not k.startswith(OURS)}


def _files(folder):
    return {path.name for path in folder.iterdir()}


def test_it_holds_the_package_and_its_files_alone(wheel):
    with zipfile.ZipFile(wheel) as content:
        names = content.namelist()
    assert "fdftnet_jax/detector/toy.safetensors" in names
    tops = {name.split("/")[0].partition("-")[0] for name in names}
    assert tops == {"fdftnet_jax"}


def test_the_package_is_that_of_the_wheel(user, programs):
    """Neither the checkout nor an editable install is found."""
    program = (
        "import importlib.util as u, json, fdftnet_jax\n"
        "names = ('configs', 'experiments', 'tests')\n"
        "found = [name for name in names if u.find_spec(name)]\n"
        "print(json.dumps([fdftnet_jax.__file__, fdftnet_jax.__version__, found]))"
    )
    path, version, found = json.loads(user("python", "-c", program))
    assert Path(path).is_relative_to(programs.parent)
    assert not Path(path).resolve().is_relative_to(ROOT)
    assert user("fdftnet", "--version").split() == ["fdftnet", version]
    assert found == []


def test_the_toy_detector_is_there(user, pictures):
    picture = next(pictures.glob("*/real/*.png"))
    assert "toy" in user("fdftnet", "show", "toy")
    assert picture.name in user("fdftnet", "predict", "toy", picture)


@pytest.fixture(scope="module")
def small(user, tmp_path_factory):
    """The package's own toy detector, whose network compiles in seconds, as a file."""
    program = "from fdftnet_jax.detector import file\nprint(file.locate('toy'))"
    path = tmp_path_factory.mktemp("small") / "old.safetensors"
    shutil.copy(user("python", "-c", program).strip(), path)
    return path


def test_from_two_folders_to_verdicts(user, pictures, small):
    """Adapt, use, correct, adapt again from what was made, and check all of it."""
    first, second = (pictures / family for family in toy.FAMILIES)
    new = ("--real", first / "real", "--fake", first / "fake", "--from", small)
    once = ("--epochs", "1")
    printed = user("fdftnet", "adapt", *new, *once, "--out", "new.safetensors")
    assert "AUROC" in printed and "fdftnet show new.safetensors" in printed
    assert _files(user.folder) == {"new.safetensors", "new.report.html"}
    report = (user.folder / "new.report.html").read_text()
    assert "Report on a forgery detector" in report and "</html>" in report
    assert first.name in user("fdftnet", "show", "new.safetensors")

    user("fdftnet", "predict", "new.safetensors", first / "real", "--csv=results.csv")
    with (user.folder / "results.csv").open(newline="") as table:
        rows = list(csv.DictReader(table))
    names = [path.name for path in (first / "real").iterdir()]
    assert sorted(Path(row["path"]).name for row in rows) == sorted(names)
    assert {row["verdict"] for row in rows} <= {"real", "fake"}
    assert all(0 <= float(row["score"]) <= 1 for row in rows)

    rows = [{**row, "label": "real" if i < 3 else ""} for i, row in enumerate(rows)]
    with (user.folder / "results.csv").open("w", newline="") as table:
        writer = csv.DictWriter(table, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    newer = ("--real", second / "real", "--fake", second / "fake", *once)
    known = ("--from", "new.safetensors", "--old", first, "--force")
    wrong = ("--corrections", "results.csv")
    printed = user(
        "fdftnet", "adapt", *newer, *known, *wrong, "--out", "newer.safetensors"
    )
    assert f"{second.name} (new)" in printed and f"{first.name} (old)" in printed
    told = json.loads(user("fdftnet", "show", "--json", "newer.safetensors"))
    assert [a["corrections"] for a in told["adaptations"]] == [0, 3]
    assert "as its file states" in user("fdftnet", "check", "newer.safetensors", second)

    # Nothing else was written beside the user's files.
    made = {f"{name}{end}" for name in ("new", "newer") for end in ENDS}
    assert _files(user.folder) == made | {"results.csv"}


@pytest.mark.long
def test_from_published_weights(user, pictures):
    """They are of a package that is installed, too; its network takes minutes."""
    folder = pictures / toy.FAMILIES[0]
    given = ("--real", folder / "real", "--fake", folder / "fake", "--epochs", "1")
    user("fdftnet", "adapt", *given, "--out", "large.safetensors")
    assert "efficientnet_lite0" in user("fdftnet", "show", "large.safetensors")
