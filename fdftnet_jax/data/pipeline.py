"""Batches for training and evaluation, by Grain.

Every batch is random access: a pure function of (seed, step), so that a resumed run
reads on exactly where it stopped. The global batch at a step is cut into equal rows,
one chunk a process.
"""

import bisect
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import grain
import numpy as np

from fdftnet_jax.data.images import decode_png
from fdftnet_jax.errors import UserError

# Sets the draw of views apart from the order of a member of that number.
_VIEWS = 2**31
Item = TypeVar("Item", covariant=True)


class RandomAccess(Protocol[Item]):
    """Items by position, as Grain reads them."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int, /) -> Item: ...


# {image: PNG bytes, label: int, ...}.
Records = RandomAccess[Mapping[str, Any]]
# {image: [size, size, 3] uint8, label: int32, index: int32}, or a batch of them.
Example = dict[str, Any]
Source = RandomAccess[Example]


class ViewSource:
    """Records as the network sees them, each decoded once while memory lasts.

    Item i is {image: uint8, label: [] int32, index: [] int32}, where `index` is i, so
    that a score finds its record again.
    """

    def __init__(
        self,
        records: Records,
        view: Callable[[np.ndarray], np.ndarray],
        cache_megabytes: int = 2048,
    ):
        """Wraps records.

        Args:
          records: random access to {image: PNG bytes, label: int, ...}.
          view: what becomes of a decoded image, [h, w, 3] uint8: a `Preprocessing`, or
            `native` where the views are drawn later.
          cache_megabytes: views are kept in memory up to this size.
        """
        self._records = records
        self._view = view
        # Two threads that meet on one record keep the same values.
        self._kept: dict[int, tuple[np.ndarray, np.int32]] = {}
        self._left = cache_megabytes * 10**6

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, i: int) -> Example:
        if i in self._kept:
            image, label = self._kept[i]
        else:
            record = self._records[i]
            image = self._view(decode_png(record["image"]))
            label = np.int32(record["label"])
            if image.nbytes <= self._left:
                self._left -= image.nbytes
                self._kept[i] = image, label
        return {"image": image.copy(), "label": label, "index": np.int32(i)}


def native(image: np.ndarray) -> np.ndarray:
    """The view of a source whose images are cut later."""
    return image


class Joined:
    """Records of several data sets, one after the other."""

    def __init__(self, parts: Sequence[Records]):
        """Joins `parts`."""
        self._parts = parts
        self._ends = list(itertools.accumulate(len(part) for part in parts))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, i: int) -> Mapping[str, Any]:
        part = bisect.bisect_right(self._ends, i)
        return self._parts[part][i - (self._ends[part] - len(self._parts[part]))]


class Subset:
    """Some items of a source; `index` stays that of the whole source."""

    def __init__(self, source: Source, indices: np.ndarray):
        """Selects `indices`, [n] int, of `source`."""
        self._source = source
        self._indices = indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, i: int) -> Example:
        return self._source[int(self._indices[i])]


def labels(records: Records) -> np.ndarray:
    """Returns the labels of all records, [n] int32, without decoding an image."""
    return np.array([records[i]["label"] for i in range(len(records))], np.int32)


def draw_shots(
    labels: np.ndarray, shots: int, seed: int
) -> tuple[np.ndarray, tuple[int, int]]:
    """Draws the same number of examples of either class.

    Fewer shots with the same seed are a subset of more shots.

    Args:
      labels: [n] int, 0 real and 1 fake.
      shots: examples per class; 0 takes everything.
      seed: seed of the draw.

    Returns:
      The sorted indices of the drawn examples, [m] int64, and how many of them are
      (real, fake): fewer than `shots` where a class has fewer, which the caller says.
    """
    drawn = []
    for label in (0, 1):
        found = np.flatnonzero(labels == label)
        order = np.random.default_rng((seed, label)).permutation(found)
        drawn.append(order[:shots] if shots else order)
    return np.sort(np.concatenate(drawn)), (len(drawn[0]), len(drawn[1]))


def train_batches(
    members: Sequence[tuple[Source, float]],
    batch_size: int,
    seed: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    threads: int = 4,
    view: Callable[[np.ndarray, np.random.Generator], np.ndarray] | None = None,
) -> Iterator[Example]:
    """Yields the batches of a weighted mixture, without end.

    Every member is shuffled anew in each of its epochs and follows its own: no example
    comes twice before all have come once. The mixture interleaves the members in the
    proportion of their weights.

    Args:
      members: the data sets and their weights (> 0).
      batch_size: images in a global batch.
      seed: seed of the order.
      start_step: step of the first batch; a batch is the same whatever comes before.
      process_index: this process, which gets its rows of each global batch.
      process_count: number of processes, a divisor of `batch_size`.
      threads: reader threads; 0 reads in the caller's.
      view: draws the network's view of an image, [h, w, 3] uint8 -> [size, size, 3],
        anew in each epoch, by a generator that follows from the seed and the place of
        the image in the run; None where the members' items are views already.

    Yields:
      {image: [b, size, size, 3] uint8, label: [b] int32, index: [b] int32} with
      b = batch_size / process_count; `index` is that of the member's own source.
    """
    shuffled = [
        # A seed of its own for each member. Grain uses seed + epoch in each epoch,
        # which neighbouring seeds would share.
        grain.MapDataset.source(source)
        .shuffle(seed=int(np.random.SeedSequence((seed, k)).generate_state(1)[0]))
        .repeat()
        for k, (source, _) in enumerate(members)
    ]
    mixture = grain.MapDataset.mix(shuffled, [weight for _, weight in members])
    if view is not None:
        mixture = mixture.random_map(
            lambda item, rng: {**item, "image": view(item["image"], rng)},
            seed=int(np.random.SeedSequence((seed, _VIEWS)).generate_state(1)[0]),
        )
    chunks = _chunks(mixture, batch_size, process_count)
    return _read(
        chunks[start_step * process_count + process_index :: process_count], threads
    )


def eval_batches(
    source: Source,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    threads: int = 4,
) -> Iterator[Example]:
    """Yields every example of a source once, in order.

    The last global batch is filled up with black images of label 0 and index -1.

    Args:
      source: the data set.
      batch_size: images in a global batch.
      process_index: this process, which gets its rows of each global batch.
      process_count: number of processes, a divisor of `batch_size`.
      threads: reader threads; 0 reads in the caller's.

    Yields:
      {image: [b, size, size, 3] uint8, label: [b] int32, index: [b] int32, mask: [b]
      float32} with b = batch_size / process_count; `index` is the place in `source`,
      `mask` is 1 for an example and 0 for filling. Every process gets the same number
      of batches.
    """
    padded = grain.MapDataset.source(_Padded(source, batch_size))
    chunks = _chunks(padded, batch_size, process_count)
    return _read(chunks[process_index::process_count], threads)


class _Padded:
    """A source filled up to whole batches, with a mask."""

    def __init__(self, source: Source, batch_size: int):
        self._source = source
        self._length = math.ceil(len(source) / batch_size) * batch_size

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, i: int) -> Example:
        if i < len(self._source):
            return {**self._source[i], "index": np.int32(i), "mask": np.float32(1)}
        return {**self._filling, "index": np.int32(-1), "mask": np.float32(0)}

    @functools.cached_property
    def _filling(self) -> Example:
        return {k: np.zeros_like(v) for k, v in self._source[0].items()}


def _chunks(
    dataset: grain.MapDataset, batch_size: int, process_count: int
) -> grain.MapDataset:
    """Cuts global batches into processes' rows: chunk `step * process_count + p`."""
    if batch_size % process_count:
        raise UserError(
            f"expected a batch size that {process_count} processes share evenly, found "
            f"{batch_size}; choose a multiple of {process_count}"
        )
    return dataset.batch(batch_size // process_count)


def _read(chunks: grain.MapDataset, threads: int) -> Iterator[Example]:
    # A thread reads a whole chunk; two chunks a thread keep all of them busy.
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    return iter(chunks.to_iter_dataset(options))
