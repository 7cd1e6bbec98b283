"""Tasks dealt to processes: results, errors, lost ones, and ends."""

import contextlib
import functools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fdftnet_jax.data import workers
from fdftnet_jax.errors import UserError

ROOT = Path(__file__).resolve().parent.parent


def work(factor, task):
    if task == "die":
        os.kill(os.getpid(), signal.SIGSEGV)
    if task == "exit":
        os._exit(3)
    if task == "mistake":
        raise UserError("expected a number")
    if task == "pid":
        return os.getpid()
    return factor * task


def make(factor):
    return functools.partial(work, factor)


def refuse():
    raise UserError("expected a package")


def deal(tasks, number=2):
    return dict(workers.deal(functools.partial(make, 10), tasks, number))


def test_every_task_has_its_result():
    assert deal(range(20)) == {i: 10 * i for i in range(20)}
    assert deal([]) == {}


def test_a_task_that_kills_its_process_is_lost_alone():
    assert deal([1, "die", 2, 3], 1) == {
        1: 10,
        2: 20,
        3: 30,
        "die": workers.Lost("SIGSEGV"),
    }


def test_what_a_task_raises_is_raised():
    with pytest.raises(UserError, match="expected a number"):
        deal(["mistake", 1], 1)
    with pytest.raises(UserError, match="expected a package"):
        list(workers.deal(refuse, [1], 1))
    with pytest.raises(RuntimeError, match="exit code 3"):
        deal(["exit"], 1)


def alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_processes_end_with_the_iterator():
    results = workers.deal(functools.partial(make, 1), ["pid", 1, 2], 1)
    with contextlib.closing(results):
        _, pid = next(results)
        assert alive(pid)
    assert not alive(pid)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_processes_end_with_their_parent(number):
    """Also in the middle of a task."""
    code = (
        "import drawn_videos\n"
        "from fdftnet_jax.data import workers\n"
        "for _ in workers.deal(drawn_videos.sleeper, [1], 1): pass"
    )
    path = f"{ROOT}{os.pathsep}{ROOT / 'tests'}"
    with subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        pid = int(process.stdout.readline())
        assert alive(pid)
        process.send_signal(number)
        process.wait(timeout=20)
        end = time.monotonic() + 20
        while alive(pid) and time.monotonic() < end:
            time.sleep(0.02)
        assert not alive(pid)


def test_ctrl_c_is_left_to_the_parent():
    """A terminal sends it to the children, too."""
    results = workers.deal(functools.partial(make, 1), ["pid", 5, 6], 1)
    with contextlib.closing(results):
        _, pid = next(results)
        os.kill(pid, signal.SIGINT)
        assert dict(results) == {5: 5, 6: 6}
