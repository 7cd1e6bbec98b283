"""A disk that is full while images are inspected or prepared: a small tmpfs."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from configs import base

ROOT = Path(__file__).parents[1]
# What a user needs to make a file system in a namespace of the process's own.
_MOUNT = ["unshare", "--map-root-user", "--mount", "sh", "-c"]


def can_mount(folder):
    try:
        command = [*_MOUNT, f"mount -t tmpfs none '{folder}'"]
        return not subprocess.run(command, capture_output=True).returncode
    except FileNotFoundError:
        return False


@pytest.fixture
def data(tmp_path):
    if not can_mount(tmp_path):
        pytest.skip("needs a user namespace to mount a tmpfs in")
    rng = np.random.default_rng(0)
    for name in ("real", "fake"):
        (tmp_path / "faces" / name).mkdir(parents=True)
        for i in range(12):
            noise = rng.integers(0, 256, (96, 96, 3), np.uint8)
            Image.fromarray(noise).save(tmp_path / "faces" / name / f"{i:02d}.png")
    (tmp_path / "cache").mkdir()
    data = base.get_config().data
    data.name, data.dir = "folder", str(tmp_path / "faces")
    data.cache_dir = str(tmp_path / "cache")
    data.fractions.update(train=0.5, validation=0, test=0.5, finetune=0)
    return data


def run(data, kilobytes, script):
    """Runs a script whose cache is on a disk of that size; returns its stdout."""
    script = f"""
import os, ml_collections
from pathlib import Path
from fdftnet_jax import datasets
from fdftnet_jax.errors import UserError
data = ml_collections.ConfigDict({data.to_dict()})
cache = Path(data.cache_dir)
def failure():
    try:
        datasets.prepare(data)
    except UserError as error:
        print(error)
    else:
        print("no error")
def read():
    print(len(list(datasets.prepare(data).source("all"))))
def fill(free):
    left = os.statvfs(cache)
    (cache / "filling").write_bytes(bytes(left.f_bavail * left.f_frsize - free))
{script}"""
    mount = f"mount -t tmpfs -o size={kilobytes}k none '{data.cache_dir}'"
    done = subprocess.run(
        [*_MOUNT, f'{mount} && exec "$0" -c "$1"', sys.executable, script],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert not done.returncode, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout.splitlines()


def test_full_while_preparing(data):
    # 24 pictures of 27 kB, which noise does not let PNG compress.
    out = run(
        data,
        400,
        """
failure()
print(len(list(cache.rglob("dataset_info.json"))))
os.system(f"mount -o remount,size=4m {cache}")
read()
print(len(list(cache.rglob("incomplete.*"))))
""",
    )
    error, finished, number, leftovers = out
    assert error.startswith("cannot write the prepared images to ")
    assert "No space left on device, 0." in error and "MB are free" in error
    assert error.endswith("choose another config.data.cache_dir")
    assert (finished, number, leftovers) == ("0", "24", "0")


def test_full_while_inspecting(data):
    out = run(
        data,
        64,
        """
fill(0)
failure()
print(len(list(cache.rglob("*.json"))))
(cache / "filling").unlink()
os.system(f"mount -o remount,size=4m {cache}")
read()
""",
    )
    assert out[0].startswith("cannot write what is in the images to ")
    assert "No space left on device, 0.0 MB are free" in out[0]
    assert out[1:] == ["0", "24"]


def test_an_earlier_entry_stays_readable(data):
    out = run(
        data,
        4000,
        """
read()
fill(100_000)
data.fractions.update(train=0.4, test=0.6)
failure()
data.fractions.update(train=0.5, test=0.5)
read()
fill(0)
read()
""",
    )
    assert out[0] == out[2] == out[3] == "24"
    assert out[1].startswith("cannot write the prepared images to ")
