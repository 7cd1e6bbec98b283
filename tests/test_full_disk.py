"""A disk that fills up while a run saves: a small tmpfs in a namespace of its own."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import small_runs

from fdftnet_jax import files
from fdftnet_jax.checkpoint import Checkpoints
from fdftnet_jax.errors import UserError

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent


def mounted(size, folder, command):
    """Runs a shell command with a tmpfs of `size` bytes mounted on `folder`."""
    folder.mkdir(exist_ok=True)
    mount = f"mount -t tmpfs -o size={size} tmpfs {folder}"
    unshare = ["unshare", "--mount", "--map-root-user", "--user", "sh", "-ec"]
    if (
        not shutil.which("unshare")
        or subprocess.run(
            [*unshare, mount], capture_output=True, check=False
        ).returncode
    ):
        pytest.skip("needs the right to mount a tmpfs (user namespaces)")
    return subprocess.run(
        [*unshare, f"{mount}\n{command}"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": f"{HERE.parent}{os.pathsep}{HERE}"},
    )


@pytest.mark.parametrize("free", [0, 20_000, 60_000])
def test_a_disk_that_fills_up_while_a_run_saves(free, tmp_path, cache_dir):
    """The second epoch's checkpoint does not fit; the first one stays readable."""
    disk, code = tmp_path / "disk", tmp_path / "run.py"
    code.write_text(
        "import sys, small_runs\n"
        "from experiments import launch\n"
        "from fdftnet_jax.training import loop\n"
        "from fdftnet_jax.checkpoint import Checkpoints\n"
        "save, saved = Checkpoints.save, []\n"
        "def fill(self, *arguments, **options):\n"
        "    saved.append(1)\n"
        "    if len(saved) == 2:\n"
        f"        fill_disk({free})\n"
        "    save(self, *arguments, **options)\n"
        "def fill_disk(free):\n"
        "    import shutil\n"
        f"    left = shutil.disk_usage({str(disk)!r}).free - free\n"
        f"    with open({str(disk / 'filling')!r}, 'wb') as file:\n"
        "        file.write(bytes(left))\n"
        "Checkpoints.save = fill\n"
        "launch.run(lambda: loop.train_and_evaluate(\n"
        f"    small_runs.config({str(cache_dir)!r}), {str(disk / 'run')!r}))\n"
    )
    ended = mounted(
        4_000_000,
        disk,
        f"{sys.executable} {code} || code=$?\n"
        f"cp -r {disk}/run {tmp_path}/copy; exit $code",
    )
    assert ended.returncode == 2, ended.stderr
    error = ended.stderr.splitlines()[-1]
    assert error.startswith("error: cannot write a checkpoint and the history of")
    assert "No space left" in error and "MB are free there" in error
    assert "give the same command again" in error
    assert "Traceback" not in ended.stderr
    copy = tmp_path / "copy"
    assert [p.name for p in (copy / "checkpoints").iterdir()] == ["4"]
    with Checkpoints(copy) as checkpoints:
        assert checkpoints.load_meta()["progress"]["epoch"] == 1
    # On a disk with space, it goes on.
    small_runs.run(small_runs.config(cache_dir), copy)


def test_other_errors_pass_through(tmp_path):
    with (
        pytest.raises(ZeroDivisionError),
        files.writing("it", tmp_path, advice="go on"),
    ):
        raise ZeroDivisionError
    with (
        pytest.raises(UserError, match=r"cannot write it to .*: No space .*; go on"),
        files.writing("it", tmp_path / "missing", advice="go on"),
    ):
        raise ValueError("RESOURCE_EXHAUSTED: [No space left on device]")


def test_refusals_are_told_from_other_errors(tmp_path):
    denied = PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    # Of nested ones the outer one, which knows best what to do, speaks.
    with (
        pytest.raises(files.WriteError, match=r"cannot write all .*: Permission den"),
        files.writing("all", tmp_path),
        files.writing("a part", tmp_path),
    ):
        raise denied
    # Where no writing is known of, it may be reading that is not permitted.
    assert files.full_disk(denied) is None
    with pytest.raises(IsADirectoryError), files.writing("it", tmp_path):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))


def test_a_text_is_replaced_as_a_whole(tmp_path, monkeypatch):
    path = tmp_path / "config.json"
    files.write_atomic(path, "old")

    def full(_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(UserError, match="No space"):
        patch.setattr(os, "fsync", full)
        files.write_atomic(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    files.write_atomic(path, "new")
    assert path.read_text() == "new"
