"""Work in threads: results in order, and rows of a batch on all cores of a CPU.

Readers in processes of their own import it, too, which need no JAX.
"""

import collections
import functools
import itertools
import os
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent import futures
from typing import TypeVar

Task = TypeVar("Task")
Pending = TypeVar("Pending")
Result = TypeVar("Result")
# The fewest rows of a part, and the most batches in hand: each takes memory.
_ROWS = 8
_BATCHES = 4


def in_order(
    work: Callable[[Task], Result], tasks: Iterable[Task], *, threads: int, ahead: int
) -> Generator[Result, None, None]:
    """Does tasks in threads and yields the results in the order of the tasks.

    Args:
      work: is called in any thread; what it raises is raised here.
      tasks: is read as far as needed.
      threads: number of threads.
      ahead: results that may wait, or be worked on, before the one that is yielded.
    """
    pool = futures.ThreadPoolExecutor(threads)
    waiting: collections.deque[futures.Future[Result]] = collections.deque()
    try:
        for task in tasks:
            waiting.append(pool.submit(work, task))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def cores() -> int:
    """Number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def scored(
    score: Callable[[Task], Pending],
    read: Callable[[Pending], Result],
    batches: Iterable[Task],
) -> Generator[Result, None, None]:
    """Scores batches and yields the results in order.

    A CPU with one device has several in hand (see `parts`), after the first, for which
    the program is compiled. For other devices `score` and `read` are called in the
    caller's thread, and one batch is computed while the next is taken: the programs of
    several devices wait for each other, and have to be begun in one order.

    Args:
      score: begins to score a batch; with one CPU device, in any thread.
      read: brings the result to the host, in the same thread.
      batches: is read as far as needed.
    """
    import jax

    rest = iter(batches)
    number = min(cores(), _BATCHES)
    if number > 1 and jax.default_backend() == "cpu" and jax.device_count() == 1:
        for first in itertools.islice(rest, 1):
            yield read(score(first))
        yield from in_order(
            lambda batch: read(score(batch)), rest, threads=number, ahead=number
        )
        return
    pending: list[Pending] = []
    for batch in rest:
        pending.append(score(batch))
        if len(pending) > 1:
            yield read(pending.pop(0))
    yield from map(read, pending)


def parts(rows: int) -> int:
    """Into how many equal parts a batch is cut that is scored on one device.

    XLA divides each layer among the cores of a CPU and waits for the slowest before the
    next; programs of their own for parts of the batch, side by side, do not wait.

    Args:
      rows: of the batch.

    Returns:
      A power of two that divides `rows`; 1 for other devices.
    """
    import jax

    if jax.default_backend() != "cpu":
        return 1
    number = 1
    while rows % (2 * number) == 0 and 2 * number <= min(cores(), rows // _ROWS):
        number *= 2
    return number


def at_once(work: Callable[[Task], Result], tasks: Sequence[Task]) -> list[Result]:
    """Does a few tasks side by side, one alone in the caller's thread."""
    if len(tasks) == 1:
        return [work(tasks[0])]
    return list(_pool().map(work, tasks))


@functools.cache
def _pool() -> futures.ThreadPoolExecutor:
    return futures.ThreadPoolExecutor(cores())
