"""Scores shards on Ray: tasks read files, and actors with a network score them.

Ray Data moves what was read to the actors, in bounded memory. A piece of work is a run
of neighbouring inputs of one shard. Whatever is lost on the way, such as the process
of a task, only leaves a piece out: it is then done once more, each picture in a process
of its own, and at last an input at a time. An input that is still missing then has a
row that says so. So what is lost never stops the rest.
"""

import contextlib
import io
import logging
import os
import pickle
import signal
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pyarrow as pa

import fdftnet_jax
from fdftnet_jax.data.preprocess import Preprocessing
from fdftnet_jax.detector import file as detector_file
from fdftnet_jax.errors import UserError, counted
from fdftnet_jax.faces.choice import FaceRules
from fdftnet_jax.launch import say
from fdftnet_jax.prediction import inputs, results, scorer, video
from fdftnet_jax.prediction.results import Row
from fdftnet_jax.prediction.run import Options
from fdftnet_jax.scale import apart, shards
from fdftnet_jax.scale.shards import Shards

# Pictures of a piece: four full batches. A video is a piece of its own.
PIECE = 256
# Pieces of each network that Ray Data is given at a time, and of all of them: what it
# knows of each takes memory, and it starts the networks anew each time.
_PIECES, _MOST_PIECES = 4096, 65536
# How often Ray itself repeats a task whose process is lost.
_RETRIES = 2
# Bytes of the object store of a machine that Ray is started on, at most, and of its
# memory.
_STORE, _STORE_SHARE = 2 << 30, 0.2
# Seconds for the smallest task, after something was lost.
_PATIENCE = 120
_LOST = "no result: a process that worked on it was lost each time"


class Piece(NamedTuple):
    """Neighbouring inputs of a shard, from `start` to `stop`."""

    shard: int
    start: int
    stop: int


def _check_installed() -> None:
    """Raises UserError where Ray or Ray Data cannot be imported."""
    # Neither reports what is done with it, nor fills the screen.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray.data
    except ImportError as error:
        raise UserError(
            f"--ray needs Ray, which cannot be imported here ({error}): "
            "pip install 'fdftnet_jax[ray]', or leave --ray out"
        ) from error
    del ray


@contextlib.contextmanager
def connected() -> Iterator[None]:
    """Joins the cluster of RAY_ADDRESS, or starts Ray on this machine.

    Raises:
      UserError: Ray is not installed or does not start, or there is no cluster at that
        address.
    """
    _check_installed()
    import ray

    joined = ray.is_initialized()
    handlers = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    if not joined:
        address = os.environ.get("RAY_ADDRESS", "")
        if address:
            _join(address)
        else:
            _start()
        for number, handler in handlers.items():
            signal.signal(number, handler)
    try:
        yield
    finally:
        if not joined:
            ray.shutdown()


def _join(address: str) -> None:
    import ray

    try:
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UserError(
            f"cannot join Ray at {address}: {_short(error)}; set RAY_ADDRESS to a "
            "cluster that runs the same versions of Ray and Python, or unset it"
        ) from error


def _start() -> None:
    """Starts Ray on this machine, in a second attempt where it is slow to come up."""
    import ray

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for attempt in range(2):
        try:
            ray.init(
                address="local",
                include_dashboard=False,
                object_store_memory=int(min(_STORE, _STORE_SHARE * memory)),
                logging_level=logging.ERROR,
                log_to_driver=False,
            )
            return
        except Exception as error:  # (Of what class it is, Ray leaves open.)
            ray.shutdown()
            if attempt:
                raise UserError(
                    f"Ray does not start on this machine: {_short(error)}; look into "
                    "its logs (/tmp/ray/session_latest/logs), and give the same "
                    "command again when there is less other work, or without --ray"
                ) from error
            say(f"Ray did not start ({_short(error)}): trying again")


def score(
    work: Shards,
    todo: Sequence[int],
    options: Options,
    preprocessing: Preprocessing,
    rules: FaceRules | None,
    progress: Any,
) -> Iterator[tuple[int, pa.Table]]:
    """Scores shards on Ray, which is `connected`.

    Args:
      work: the shards.
      todo: the numbers of those that have no results.
      options: of the command.
      preprocessing: of the detector.
      rules: how faces are cut out.
      progress: a `run.Progress`.

    Yields:
      The number of a shard and its results, as they are complete.

    Raises:
      UserError: the cluster has not what the options ask for, or a worker says that
        something is wrong with all files.
    """
    import ray

    resources, nodes = _there()
    actors, gpus = _sized(options, resources, nodes)
    say(
        f"Ray: {counted(nodes, 'machine')} with {resources.get('CPU', 0):g} CPUs; "
        f"{counted(actors, 'network')} with {gpus:g} GPUs each"
    )
    # (Workers on other machines need no copy of it.)
    data = Path(detector_file.locate(options.detector)).read_bytes()
    reading = apart.Reading(preprocessing, rules, work.manifest.folder)
    network = _Network(ray.put(data), reading, options.threshold, options.program)
    try:
        for some in _portions(work, todo, min(_PIECES * actors, _MOST_PIECES)):
            yield from _score(work, some, network, options, progress)
    except ray.exceptions.RayError as error:
        raise _down(error) from error


def _there() -> tuple[dict[str, float], int]:
    """What the cluster has now, and its machines."""
    import ray

    return ray.cluster_resources(), sum(node["Alive"] for node in ray.nodes())


def _sized(
    options: Options, resources: dict[str, float], nodes: int
) -> tuple[int, float]:
    """The number of networks, and the GPUs of each."""
    there = resources.get("GPU", 0)
    gpus = options.ray_gpus
    if gpus is None:
        gpus = 1.0 if there else 0.0
    actors = options.ray_actors or (max(int(there / gpus), 1) if gpus else nodes)
    if actors * gpus > there:
        raise UserError(
            f"expected {actors * gpus:g} GPUs for {counted(actors, 'network')}, found "
            f"{there:g}; lower --ray-actors or --ray-gpus, or add machines"
        )
    return actors, gpus


def _portions(
    work: Shards, todo: Sequence[int], most: int
) -> Iterator[dict[int, list[Piece]]]:
    """Yields shards and their pieces, about so many pieces at a time."""
    portion: dict[int, list[Piece]] = {}
    count = 0
    for number in todo:
        portion[number] = pieces(number, work.items(number))
        count += len(portion[number])
        if count >= most:
            yield portion
            portion, count = {}, 0
    if portion:
        yield portion


def pieces(shard: int, items: Sequence[inputs.Item]) -> list[Piece]:
    """Cuts a shard into pieces: `PIECE` pictures at most, and videos one by one."""
    cut, start = [], 0
    for i, item in enumerate(items):
        if item.kind == inputs.VIDEO or i - start == PIECE:
            if start < i:
                cut.append(Piece(shard, start, i))
            start = i
        if item.kind == inputs.VIDEO:
            cut.append(Piece(shard, i, i + 1))
            start = i + 1
    if start < len(items):
        cut.append(Piece(shard, start, len(items)))
    return cut


def _score(
    work: Shards,
    portion: dict[int, list[Piece]],
    network: "_Network",
    options: Options,
    progress: Any,
) -> Iterator[tuple[int, pa.Table]]:
    """Scores shards until none of their inputs is missing."""
    tables: dict[int, list[pa.Table]] = {number: [] for number in portion}
    left = {number: work.count(number) for number in portion}

    def take(piece: Piece, table: pa.Table) -> Iterator[tuple[int, pa.Table]]:
        tables[piece.shard].append(table)
        left[piece.shard] -= piece.stop - piece.start
        progress.advance(piece.stop - piece.start)
        if not left[piece.shard]:
            yield piece.shard, pa.concat_tables(tables.pop(piece.shard))

    todo = [piece for some in portion.values() for piece in some]
    for attempt in range(3):
        if attempt == 2:
            todo = [Piece(n, i, i + 1) for n, a, b in todo for i in range(a, b)]
        missing = dict.fromkeys(todo)
        # (A machine may have been lost.)
        actors, gpus = _sized(options, *_there())
        for piece, table in _run(
            work, todo, network, actors, gpus, careful=attempt > 0
        ):
            if piece in missing:
                del missing[piece]
                yield from take(piece, table)
        if not missing:
            return
        # Where Ray itself is down, nothing is wrong with the files.
        _check_alive()
        todo = list(missing)
        if attempt == 2:
            break
        say(
            f"Ray lost {counted(len(todo), 'piece')} of the work: they are done once "
            "more, " + ("each picture" if not attempt else "each input") + " alone"
        )
    for piece in todo:
        items = work.items(piece.shard)
        item = items[piece.start]
        row = Row(item.path, item.kind, reason=_LOST)
        yield from take(piece, shards.result_table([(piece.start, [row])]))


def _check_alive() -> None:
    """Raises UserError where Ray does not do the smallest task."""
    import ray

    probe = ray.remote(num_cpus=0, max_retries=0)(lambda: True)
    try:
        ray.get(probe.remote(), timeout=_PATIENCE)
    except ray.exceptions.RayError as error:
        raise _down(error) from error


def _short(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def _down(error: Exception) -> UserError:
    return UserError(
        f"Ray does not work any more ({_short(error)}); look into its logs "
        "(/tmp/ray/session_latest/logs), and give the same command again: it goes on"
    )


def _run(
    work: Shards,
    todo: Sequence[Piece],
    network: "_Network",
    actors: int,
    gpus: float,
    *,
    careful: bool,
) -> Iterator[tuple[Piece, pa.Table]]:
    """Does pieces of work, in any order; those that are lost are left out."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.max_errored_blocks = -1
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    reading = _Reading(work, np.array(todo), network.reading, careful)
    actor: Any = _Actor  # (Its type is told wrongly.)
    with warnings.catch_warnings():
        # Ray 2.64 will have no such option; there is no other way yet to keep it from
        # repeating for ever what takes its process down.
        warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")
        scored = (
            ray.data.range(len(todo), override_num_blocks=len(todo))
            .map(reading, num_cpus=1, max_retries=_RETRIES)
            .map(
                actor,
                fn_constructor_args=[network],
                compute=ray.data.ActorPoolStrategy(size=actors),
                # (On CPUs a network takes what readers leave. If it had one to itself,
                # the networks of a machine that is lost could take all of another.)
                num_cpus=0,
                num_gpus=gpus,
                max_task_retries=_RETRIES,
            )
        )
    for row in scored.iter_rows():
        if row["error"]:
            raise UserError(row["error"])
        with pa.ipc.open_stream(row["data"]) as stream:
            yield todo[row["id"]], stream.read_all()


class _Reading:
    """Reads the files of a piece; one CPU's work."""

    def __init__(
        self, work: Shards, pieces: np.ndarray, reading: apart.Reading, careful: bool
    ):
        self._work = work
        self._pieces = pieces  # [pieces, 3]
        self._reading = reading
        self._careful = careful

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        shard, start, stop = map(int, self._pieces[row["id"]])
        return _answered(row, lambda: pickle.dumps(self._read(shard, start, stop), 5))

    def _read(self, shard: int, start: int, stop: int) -> list[tuple[int, Any]]:
        cv2.setNumThreads(1)
        items = self._work.items(shard)[start:stop]
        if self._careful:
            read = apart.read(self._reading, items, processes=1)
            return [(start + i, content) for i, content in read]
        return [*enumerate(map(self._reading.reader(), items), start)]


class _Network(NamedTuple):
    """What an actor needs to score what was read."""

    file: Any  # A reference to the bytes of the detector's file.
    reading: apart.Reading
    threshold: float | None
    program: bool


class _Actor:
    """Holds a network, compiled once."""

    def __init__(self, network: _Network):
        import ray

        with tempfile.NamedTemporaryFile(suffix=".safetensors") as file:
            file.write(ray.get(network.file))
            file.flush()
            detector = fdftnet_jax.load(file.name, program=network.program)
        self._detector = detector
        judge = results.Judge(detector, network.threshold)
        self._rules = network.reading.rules
        self._scorer = scorer.Scorer(detector, judge, self._rules)
        size, views = detector.preprocessing.size, detector.preprocessing.number
        count = max(1, video.BATCH // views)
        self._scorer.logits(np.zeros((count, views, size, size, 3), np.uint8))

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return row if row["error"] else _answered(row, lambda: self._score(row["data"]))

    def _score(self, data: bytes) -> bytes:
        contents = iter(pickle.loads(data))
        rows = apart.score(contents, self._scorer, self._detector, self._rules)
        table = shards.result_table(rows)
        buffer = io.BytesIO()
        with pa.ipc.new_stream(buffer, table.schema) as stream:
            stream.write_table(table)
        return buffer.getvalue()


def _answered(row: dict[str, Any], work: Callable[[], bytes]) -> dict[str, Any]:
    """Does a part of the work; what it raises is an answer, too.

    (Ray Data would leave it out as if its process had been lost.)
    """
    try:
        return {"id": row["id"], "data": work(), "error": ""}
    except Exception as error:
        text = str(error)
        if not isinstance(error, UserError):
            text = f"unexpected {type(error).__name__} in a worker of Ray: {text}"
        return {"id": row["id"], "data": b"", "error": text}
