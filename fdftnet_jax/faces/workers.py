"""Runs tasks in processes of their own, each of which may be lost with its task.

A broken video can take down the C library that reads it, and the process with it: a
pool of the standard library then loses all that is in flight, or waits for ever.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from multiprocessing import connection, resource_tracker
from typing import Any, NamedTuple, TypeVar

Task = TypeVar("Task")
# Seconds between two looks at whether to stop.
_LOOK = 0.2


class Lost(NamedTuple):
    """Stands for the result of a task whose process was killed."""

    signal: str  # Its name.


class Late(NamedTuple):
    """Stands for the rest of the results, where the time was up."""


class _Failure(NamedTuple):
    error: Exception


class _Item(NamedTuple):
    value: Any


class _Worker:
    def __init__(self, serve: Callable[..., None], *arguments: Any) -> None:
        # A fresh interpreter: JAX's threads do not survive a fork.
        context = multiprocessing.get_context("spawn")
        self.link, theirs = context.Pipe()
        self.process = context.Process(
            target=serve, args=(theirs, *arguments), daemon=True
        )
        with _without_ctrl_c():
            self.process.start()
        # Now the other end closes when the process ends.
        theirs.close()

    def result(self) -> Any:
        """Receives what the process sends; Lost where it was killed."""
        try:
            return self.link.recv()
        except (EOFError, OSError):
            self.process.join()
        code = self.process.exitcode or 0
        if code < 0:
            return Lost(signal.Signals(-code).name)
        return _Failure(RuntimeError(f"a worker ended with exit code {code}"))

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.link.close()


@contextlib.contextmanager
def _without_ctrl_c() -> Iterator[None]:
    """Processes that are started leave Ctrl-C, which goes to all, to their parent."""
    if not hasattr(signal, "pthread_sigmask"):  # On Windows.
        yield
        return
    # (The tracker, started by the first process, would lift the block.)
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def deal(
    make: Callable[[], Callable[[Task], Any]], tasks: Sequence[Task], processes: int
) -> Generator[tuple[Task, Any], None, None]:
    """Deals tasks to processes of their own.

    Processes end with this one, and with the iterator; a task in work is abandoned.

    Args:
      make: makes, in each process, the function that does a task. Like the tasks and
        the results, it must be picklable.
      tasks: what there is to do.
      processes: how many, at most.

    Yields:
      Each task and its result as they are finished, in any order; `Lost` for a task
      that took its process down.

    Raises:
      Exception: what the first task that raised did raise.
    """
    waiting = list(reversed(tasks))
    idle: list[_Worker] = []
    busy: dict[connection.Connection, tuple[_Worker, Task]] = {}
    try:
        while waiting or busy:
            while waiting and len(busy) < processes:
                worker = idle.pop() if idle else _Worker(_serve, make)
                task = waiting.pop()
                busy[worker.link] = worker, task
                # A process that died at its start is noticed below.
                with contextlib.suppress(BrokenPipeError):
                    worker.link.send(task)
            for link in connection.wait(list(busy)):
                worker, task = busy[link]  # type: ignore[index]
                result = worker.result()
                if isinstance(result, _Failure):
                    raise result.error
                del busy[worker.link]
                if isinstance(result, Lost):
                    worker.end()
                else:
                    idle.append(worker)
                yield task, result
    finally:
        for worker in [*idle, *(worker for worker, _ in busy.values())]:
            worker.end()


def stream(
    work: Callable[[Task], Iterable[Any]],
    task: Task,
    seconds: float,
    stop: threading.Event | None = None,
) -> Generator[Any, None, None]:
    """Yields the results of one task from a process of its own, one by one.

    The process ends with this one, and with the iterator. It is at most a few items
    ahead of who takes them.

    Args:
      work: what yields the items; like the task and the items, it must be picklable.
      task: its argument.
      seconds: the process is ended when it was waited for so long, in all items
        together: the time that is spent with the items does not count.
      stop: the process is ended soon after this is set.

    Yields:
      The items; last of all `Lost` where the process was killed, or `Late` where the
      time was up or `stop` was set.

    Raises:
      Exception: what `work` raised.
    """
    worker = _Worker(_serve_stream, work, task)
    try:
        while seconds > 0 and not (stop is not None and stop.is_set()):
            start = time.monotonic()
            there = worker.link.poll(min(_LOOK, seconds))
            seconds -= time.monotonic() - start
            if not there:
                continue
            result = worker.result()
            if isinstance(result, _Failure):
                raise result.error
            if isinstance(result, _Item):
                yield result.value
                continue
            if isinstance(result, Lost):
                yield result
            return
        yield Late()
    finally:
        worker.end()


def _serve_stream(
    link: connection.Connection, work: Callable[[Any], Iterable[Any]], task: Any
) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    end = None
    try:
        for item in work(task):
            link.send(_Item(item))
    except Exception as error:
        end = _Failure(error)
    link.send(end)


def _serve(
    link: connection.Connection, make: Callable[[], Callable[[Any], Any]]
) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    work = None
    while True:
        try:
            task = link.recv()
        except EOFError:
            return
        try:
            work = work or make()
            result = work(task)
        except Exception as error:
            result = _Failure(error)
        link.send(result)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    # At once, in the middle of whatever it does.
    os._exit(1)
