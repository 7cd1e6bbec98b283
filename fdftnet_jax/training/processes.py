"""Several processes that train one network: who acts for all, what they agree on.

Every process runs the same program on devices of its own and on a folder that all of
them share. Process 0 prepares the data and writes the run's files. When a process ends
alone, by an error or a kill, JAX ends the others within `_TIMEOUT`. A single process
needs none of this, and pays nothing for it.
"""

import functools
import hashlib
import json
import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost
from tqdm import tqdm

from fdftnet_jax.errors import UserError

Result = TypeVar("Result")
# Seconds until a process that is not heard of, or waits to end, counts as dead.
_TIMEOUT = 60
# Seconds that process 0 may prepare the data of the others; its death shows earlier.
_LONGEST_TURN = 7 * 24 * 3600


def join(
    coordinator: str | None = None, number: int | None = None, index: int | None = None
) -> None:
    """Makes this process one of several; to be called before JAX computes anything.

    Args:
      coordinator: HOST:PORT of process 0, as all others reach it; None asks the
        cluster's scheduler (Slurm, Open MPI, Kubernetes, TPU pods), here as below.
      number: of processes.
      index: of this process, from 0.

    Raises:
      UserError: the processes did not find each other.
    """
    # Signals are for `Interruption`, which saves at a step that all have reached.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            coordinator,
            number,
            index,
            heartbeat_timeout_seconds=_TIMEOUT,
            shutdown_timeout_seconds=_TIMEOUT,
        )
    # What it raises depends on the scheduler that it asks.
    except Exception as error:
        raise UserError(
            f"the processes did not find each other ({' '.join(str(error).split())}): "
            "give each of them --coordinator=HOST:PORT --num_processes=N "
            "--process_id=0 to N-1, or start them by a scheduler that JAX knows, with "
            "--distributed"
        ) from error


def is_primary() -> bool:
    """Whether this is process 0, which writes."""
    return jax.process_index() == 0


def say(text: str) -> None:
    """Tells the user on stderr, once, above a progress bar where there is one."""
    if is_primary():
        tqdm.write(text, file=sys.stderr)


def by_primary(act: Callable[[], Result], what: str) -> Result | None:
    """Process 0 acts while the others wait for it.

    Args:
      act: what process 0 does.
      what: the same in words, for "process 0 could not ...".

    Returns:
      What `act` returned, None in the other processes.

    Raises:
      UserError: in the other processes, where process 0 failed, for whatever reason;
        there, what it failed with.
    """
    if jax.process_count() == 1:
        return act()
    result, failure = None, None
    if is_primary():
        try:
            result = act()
        # The others have to know, whatever it is.
        except BaseException as error:
            failure = error
    # A collective would give up on process 0 after minutes.
    multihost.get_barrier_sync_fn()(key=what, timeout_ms=_LONGEST_TURN * 1000)
    failed = multihost_utils.process_allgather(np.array(failure is not None))
    if failure is not None:
        raise failure
    if np.any(failed):
        raise UserError(f"process 0 could not {what}: its own message says why")
    return result


def primary_first(act: Callable[[], Result], what: str) -> Result:
    """All processes act, the others once process 0 has (see `by_primary`)."""
    result = by_primary(act, what)
    return result if is_primary() else act()  # type: ignore[return-value]


def of_primary(make: Callable[[], Result], like: Result, what: str) -> Result:
    """What process 0 makes, in all processes.

    Args:
      make: makes a tree of arrays and numbers.
      like: a tree of the same shapes.
      what: as for `by_primary`.
    """
    result = by_primary(make, what)
    if jax.process_count() == 1:
        return result  # type: ignore[return-value]
    tree = result if is_primary() else like
    return jax.tree.map(np.asarray, multihost_utils.broadcast_one_to_all(tree))


def check_same(values: Mapping[str, Any]) -> None:
    """Raises UserError, in all processes, where they do not have the same values.

    Args:
      values: JSON-serialisable, by their names.
    """
    if jax.process_count() == 1:
        return
    texts = [json.dumps(value, sort_keys=True) for value in values.values()]
    digests = [hashlib.sha256(text.encode()).digest() for text in texts]
    # [processes, values, bytes]
    found = multihost_utils.process_allgather(
        np.array([list(digest) for digest in digests], np.uint8)
    )
    differs = np.any(found != found[:1], axis=(0, 2))
    if np.any(differs):
        names = [name for name, other in zip(values, differs, strict=True) if other]
        raise UserError(
            f"the processes differ in {' and '.join(names)}: give all of them the same "
            "command, and folders that all of them share"
        )


def gather(rows: np.ndarray) -> np.ndarray:
    """[n, ...] of each process -> [processes * n, ...], in all of them."""
    if jax.process_count() == 1:
        return rows
    return multihost_utils.process_allgather(rows, tiled=True)


class Agreement:
    """The largest number that any process gives, one call later.

    By then it has arrived, so that nobody waits for it. All processes must call equally
    often. In a single process it is the number itself, at once.
    """

    def __init__(self) -> None:
        self._pending: Any = None

    def __call__(self, number: int) -> int:
        """Gives a number, >= 0; returns the largest of the call before, first 0."""
        if jax.process_count() == 1:
            return number
        before = self._pending
        self._pending = _largest()(np.full(jax.local_device_count(), number, np.int32))
        return 0 if before is None else int(before.addressable_shards[0].data[0])


@functools.cache
def _largest() -> Callable[[np.ndarray], jax.Array]:
    return jax.pmap(lambda number: jax.lax.pmax(number, "all"), axis_name="all")
