"""Systems that lack what POSIX or the packages for training have."""

import importlib.util
import json
import os
import subprocess
import sys
import types

import drawn_videos
import pytest
from PIL import Image

from configs import base
from fdftnet_jax import datasets, files
from fdftnet_jax.errors import UserError

# What there is not on Windows.
_ABSENT = "array_record fcntl grain orbax pwd grp resource tensorflow_datasets termios"
_PREDICT = f"""
import multiprocessing.popen_spawn_posix, signal, subprocess, sys, types
sys.modules["msvcrt"] = types.SimpleNamespace(locking=lambda *_: None, LK_NBLCK=2)
for name in {_ABSENT!r}.split():
    sys.modules[name] = None
del signal.pthread_sigmask
from fdftnet_jax.cli import main
if __name__ == "__main__":
    sys.exit(main())
"""


def test_predict_needs_nothing_that_trains(tmp_path):
    drawn_videos.encode(tmp_path / "a.mp4", drawn_videos.textured(30))
    Image.effect_noise((64, 64), 80).convert("RGB").save(tmp_path / "b.jpg")
    (tmp_path / "main.py").write_text(_PREDICT)
    command = [sys.executable, tmp_path / "main.py", "predict", "toy", tmp_path]
    command += ["--faces", "whole", "--json", tmp_path / "out.json"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    rows = json.loads((tmp_path / "out.json").read_text())["results"]
    assert [row["verdict"] in ("real", "fake") for row in rows] == [True, True]


def test_a_system_without_the_package_of_the_records_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr("platform.system", lambda: "Windows")
    data = base.get_config().data
    data.name, data.cache_dir = "toy", str(tmp_path)
    with pytest.raises(UserError, match=r"for Windows on .*; train and evaluate on"):
        datasets.prepare(data)


def test_locks_of_windows(tmp_path, monkeypatch):
    held: set[int] = set()

    def locking(descriptor, mode, size):
        """One byte at the position of the file, as `msvcrt` documents it."""
        assert (mode, size) == (2, 1)
        place = os.fstat(descriptor).st_ino, os.lseek(descriptor, 0, os.SEEK_CUR)
        if place in held:
            raise PermissionError(13, "Permission denied")
        held.add(place)

    monkeypatch.setattr(files, "fcntl", None)
    module = types.SimpleNamespace(locking=locking, LK_NBLCK=2)
    monkeypatch.setitem(sys.modules, "msvcrt", module)
    path = tmp_path / "lock"
    with files.lock(path, blocking=False):
        assert path.read_text() == f"{os.getpid()}\n"
        with (
            pytest.raises(BlockingIOError, match=str(os.getpid())),
            files.lock(path, blocking=False),
        ):
            pass
