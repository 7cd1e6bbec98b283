"""Tasks dealt to processes: results, errors, lost ones, and ends."""

import contextlib
import functools
import os
import signal
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import pytest

from fdftnet_jax.errors import UserError
from fdftnet_jax.faces import workers

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
        "from fdftnet_jax.faces import workers\n"
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


# One task whose results come one by one.


def count(task):
    end, number = task
    yield os.getpid()
    yield from range(number)
    if end == "die":
        os.kill(os.getpid(), signal.SIGSEGV)
    if end == "mistake":
        raise UserError("expected a number")
    if end == "wait":
        time.sleep(600)


def stream(end, number=3, seconds=60.0, stop=None):
    pid, *found = workers.stream(count, (end, number), seconds, stop)
    assert not alive(pid)
    return found


def test_a_stream_gives_everything_in_order():
    assert stream("", 2000) == list(range(2000))


def test_a_stream_of_a_process_that_dies_gives_what_there_was():
    assert stream("die") == [0, 1, 2, workers.Lost("SIGSEGV")]


def test_what_a_stream_raises_is_raised():
    with pytest.raises(UserError, match="expected a number"):
        stream("mistake")


def test_a_stream_ends_in_time_or_when_it_is_told():
    stop = threading.Event()
    found = workers.stream(count, ("wait", 0), 600, stop)
    pid = next(found)
    start = time.monotonic()
    threading.Timer(0.3, stop.set).start()
    assert list(found) == [workers.Late()]
    assert time.monotonic() - start < 20 and not alive(pid)


def test_the_time_of_a_stream_is_that_of_waiting(monkeypatch):
    """With a clock on which a look at an item takes an hour."""
    now = 0.0
    clock = types.SimpleNamespace(monotonic=lambda: now)
    monkeypatch.setattr(workers, "time", clock)
    found = []
    for item in workers.stream(count, ("", 3), 60):
        found.append(item)
        now += 3600
    assert found[1:] == [0, 1, 2]


def test_a_stream_that_is_left_ends_its_process():
    found = workers.stream(count, ("wait", 5), 600)
    pid = next(found)
    assert alive(pid)
    found.close()
    assert not alive(pid)
