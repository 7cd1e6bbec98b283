"""Does the work of `fdftnet predict --parquet`, from its options to its exit code."""

import collections
import contextlib
import functools
import itertools
import os
import signal
import time
from collections.abc import Callable, Generator, Iterator
from concurrent import futures
from typing import Any

import pyarrow as pa

import fdftnet_jax
from fdftnet_jax import files
from fdftnet_jax.errors import Interrupted, UserError, counted
from fdftnet_jax.faces.choice import FaceRules
from fdftnet_jax.files import printable
from fdftnet_jax.launch import say
from fdftnet_jax.prediction import inputs, results, scorer
from fdftnet_jax.prediction.run import NOTHING_JUDGED, Options, read_list
from fdftnet_jax.scale import apart, shards, sources, storage
from fdftnet_jax.scale.shards import Counts, Manifest, Shards
from fdftnet_jax.verdicts import FAKE, REAL, UNDECIDED

# Seconds between two lines of progress.
_EVERY = 10.0
# Reasons that a line of progress names.
_NAMED = 3
# Attempts at a shard after which each of its pictures is read in a process of its own.
_ATTEMPTS = 2
# Footers of shards that are read at a time.
_FOOTERS = 16

# The number of a shard, and the table of its results.
Result = tuple[int, pa.Table]


def predict(options: Options) -> int:
    """Scores what the options name into shards of results; goes on where it stopped.

    Args:
      options: of the command.

    Returns:
      0, or `NOTHING_JUDGED` where no input has a score.

    Raises:
      UserError: the detector, an option or the folder is not as expected; what was
        written is kept.
      Interrupted: at Ctrl-C; the shards that were written are kept.
    """
    _check(options)
    if not options.ray:
        return _predict(options)
    from fdftnet_jax.scale import on_ray

    # Ray starts processes, which it should before JAX has threads.
    with on_ray.connected():
        return _predict(options)


def _predict(options: Options) -> int:
    detector = fdftnet_jax.load(options.detector, program=options.program)
    judge = results.Judge(detector, options.threshold)
    rules = scorer.face_rules(options.faces, detector)
    store = storage.Store(str(options.parquet))
    with _held(store):
        work = _prepared(options, store, detector, judge, rules)
        progress = Progress(work.manifest.inputs)
        todo = work.missing()
        progress.resume(_already(work, set(todo)))

        def rows() -> Generator[Result, None, None]:
            if todo and options.ray:
                from fdftnet_jax.scale import on_ray

                yield from on_ray.score(
                    work, todo, options, detector.preprocessing, rules, progress
                )
            elif todo:
                yield from score_here(
                    work, todo, options, detector, judge, rules, progress
                )

        try:
            with contextlib.closing(rows()) as scored:
                for number, table in scored:
                    progress.add(work.write(number, table))
        except KeyboardInterrupt as error:
            number = error.signal if isinstance(error, Interrupted) else signal.SIGINT
            raise Interrupted(
                number,
                f"stopped; the rows of {counted(progress.counts.inputs, 'input')} are "
                f"in {printable(store.address)}; the same command goes on",
            ) from None
        except OSError as error:
            raise UserError(
                f"cannot read or write in {printable(store.address)}: "
                f"{' '.join(str(error).split())}; once the storage answers, give the "
                "same command again: it goes on"
            ) from error
        work.finish(progress.counts)
    for line in progress.summary(store.address, work.manifest.skipped):
        say(line)
    return 0 if progress.counts.judged else NOTHING_JUDGED


def _check(options: Options) -> None:
    """Raises UserError where options do not go together."""
    for flag, is_set in (
        ("--plots", options.plots),
        ("--explain", options.explain),
        ("--replace", options.replace),
    ):
        if is_set:
            raise UserError(
                f"{flag} does not go with --parquet; leave it out"
                + ", or delete the folder to begin again" * (flag == "--replace")
            )
    for flag, value in (
        ("--shard-size", options.shard_size),
        ("--workers", options.workers or 1),
        ("--ray-actors", options.ray_actors or 1),
    ):
        if value < 1:
            raise UserError(f"expected {flag} to be 1 or more, found {value}")
    if options.ray_gpus is not None and options.ray_gpus < 0:
        raise UserError(f"expected --ray-gpus from 0, found {options.ray_gpus:g}")
    if not options.ray and (options.ray_actors or options.ray_gpus is not None):
        raise UserError("--ray-actors and --ray-gpus are about --ray; add it")


@contextlib.contextmanager
def _held(store: storage.Store) -> Iterator[None]:
    """Keeps other commands from writing to a folder of this machine meanwhile."""
    if not store.local:
        yield
        return
    try:
        os.makedirs(store.folder, exist_ok=True)
        # (Only the lock itself is tried: what the work raises passes.)
        with contextlib.ExitStack() as stack:
            lock = os.path.join(store.folder, ".lock")
            stack.enter_context(files.lock(lock, blocking=False))
            held = stack.pop_all()
    except BlockingIOError as error:
        raise UserError(
            f"process {error} is writing to --parquet {printable(store.address)}; "
            "wait for it, or give another folder"
        ) from error
    except OSError as error:
        raise UserError(
            f"cannot write to --parquet {printable(store.address)}: "
            f"{error.strerror or error}; give another folder"
        ) from error
    with held:
        yield


def _prepared(
    options: Options,
    store: storage.Store,
    detector: Any,
    judge: results.Judge,
    rules: FaceRules | None,
) -> Shards:
    """Reads or makes the list of inputs, and says which."""
    header = scorer.header(detector, judge, crop=rules is not None)
    wanted = Manifest(
        detector=header["detector"],
        threshold=header["threshold"],
        faces=header["faces"],
        options={
            "paths": options.paths,
            "path_column": options.path_column,
            "program": options.program,
        },
        folder=os.getcwd(),
        shard_size=options.shard_size,
    )
    skipped = inputs.Skipped()

    def tables() -> Iterator[pa.Table]:
        listed = read_list(options)
        count = 0
        for table in sources.tables(
            options.paths,
            listed,
            size=options.shard_size,
            path_column=options.path_column,
            own={files.identity(store.folder)} if store.local else (),
            skipped=skipped,
        ):
            yield table
            count += table.num_rows
        say(f"listed {counted(count, 'input')}")

    work, there = shards.prepare(store, wanted, tables, lambda: vars(skipped))
    if there:
        say(
            f"going on with the list of {counted(work.manifest.inputs, 'input')} in "
            f"{printable(store.address)}; files that were added since are not in it"
        )
    return work


def _already(work: Shards, todo: set[int]) -> Counts:
    """The counts of the shards that were written before."""
    counts = Counts()
    numbers = [n for n in range(work.manifest.shards) if n not in todo]
    with futures.ThreadPoolExecutor(_FOOTERS) as pool:
        for some in pool.map(work.counts, numbers):
            counts.add(some)
    return counts


def score_here(
    work: Shards,
    todo: list[int],
    options: Options,
    detector: Any,
    judge: results.Judge,
    rules: FaceRules | None,
    progress: "Progress",
) -> Iterator[Result]:
    """Scores shards on this machine.

    A picture may take down the library that reads it, and this process with it. So it
    is written down that a shard is begun; one that was begun twice and not finished
    comes last, and each of its pictures is read in a process of its own.
    """
    folder = work.manifest.folder
    scores = scorer.Scorer(
        detector,
        judge,
        rules,
        opened=functools.partial(storage.on_this_machine, base=folder),
        debug=options.debug,
    )
    attempts = collections.Counter(work.attempts())
    careful = [number for number in todo if attempts[number] >= _ATTEMPTS]
    ready = [number for number in todo if attempts[number] < _ATTEMPTS]

    def items() -> Iterator[inputs.Item]:
        for number in ready:
            work.begin(number, attempts[number])
            yield from work.items(number)

    with contextlib.closing(scores.rows(items(), options.workers)) as rows:
        for number in ready:
            own = progress.watched(itertools.islice(rows, work.count(number)))
            yield number, shards.result_table(enumerate(own))
    reading = apart.Reading(detector.preprocessing, rules, folder)
    for number in careful:
        say(
            f"shard {number} was begun {attempts[number]} times and not finished: each "
            "of its pictures is read in a process of its own"
        )
        contents = apart.read(reading, work.items(number), options.workers)
        with contextlib.closing(contents):
            own = progress.watched(apart.score(contents, scores, detector, rules))
            yield number, shards.result_table(own)


class Progress:
    """Says how far the work is, and sums up at its end.

    Attributes:
      counts: of the shards that are written.
    """

    def __init__(
        self, total: int, clock: Callable[[], float] = time.monotonic, every=_EVERY
    ):
        """Begins.

        Args:
          total: number of inputs.
          clock: gives the time in seconds.
          every: seconds between two lines.
        """
        self.counts = Counts()
        self._total = total
        self._clock = clock
        self._every = every
        self._start = self._last = clock()
        # Inputs that are scored: by this command, and in all.
        self._own = self._before = 0

    def resume(self, counts: Counts) -> None:
        """Takes the counts of what was written before."""
        self.counts.add(counts)
        self._before = counts.inputs
        self._start = self._last = self._clock()

    def watched(self, scored: Iterator[Any]) -> Iterator[Any]:
        """Yields what is scored, an input at a time, and counts it."""
        for rows in scored:
            self.advance(1)
            yield rows

    def advance(self, count: int) -> None:
        """Counts inputs that are scored."""
        self._own += count
        now = self._clock()
        if now - self._last >= self._every:
            self._last = now
            say(self.line())

    def add(self, counts: Counts) -> None:
        """Takes the counts of a shard that is written."""
        self.counts.add(counts)

    def line(self) -> str:
        """How far the work is, its rate, and the time left."""
        done = self._before + self._own
        seconds = max(self._clock() - self._start, 1e-9)
        rate = self._own / seconds
        share = f" ({done / self._total:.1%})" if self._total else ""
        line = f"{done:,} of {counted(self._total, 'input')}{share}"
        if self._own:
            left = (self._total - done) / rate
            line += f", {rate:.3g}/s, {_duration(left)} left"
        line += f"; {counted(self.counts.rows, 'row')} written"
        if reasons := self.counts.reasons.most_common(_NAMED):
            named = ", ".join(f"{count:,} {reason}" for reason, count in reasons)
            line += f"; not judged: {named}"
        return line

    def summary(self, place: str, skipped: dict[str, int]) -> Iterator[str]:
        """The counts as lines of text."""
        counts = self.counts
        seconds = max(self._clock() - self._start, 1e-9)
        verdicts = ", ".join(
            f"{counts.verdicts[verdict]:,} {verdict}"
            for verdict in (REAL, FAKE, UNDECIDED)
        )
        if counts.too_close:
            verdicts += f" ({counts.too_close:,} {results.TOO_CLOSE})"
        line = f"{counted(counts.inputs, 'input')}: {verdicts}"
        if self._own:
            line += f"; {self._own:,} now in {_duration(seconds)}"
            line += f", {self._own / seconds:.3g}/s"
        yield line
        if left_out := [f"{n:,} {name}" for name, n in skipped.items() if n]:
            yield f"left out of folders: {', '.join(left_out)}"
        for reason, count in counts.reasons.most_common():
            yield f"could not be judged: {count:,} {printable(reason)}"
        yield f"results: {counted(counts.rows, 'row')} in {printable(place)}/rows"


def _duration(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"
