"""How batches reach the devices, and how long they were waited for."""

import time
from collections.abc import Iterator
from concurrent import futures

import jax
import numpy as np

from fdftnet_jax.data import pipeline
from fdftnet_jax.training import steps


class Feed:
    """Takes batches as the steps ask for them.

    Attributes:
      waited: seconds that the caller spent waiting for images, since it set it to 0.
    """

    def __init__(
        self,
        batches: Iterator[pipeline.Example],
        views: steps.Batch | None = None,
    ):
        """Wraps batches.

        Args:
          batches: as `pipeline.train_batches` yields them.
          views: from `resident`, whose source the batches were then made of.
        """
        self._batches = batches
        self._views = views
        self.waited = 0.0

    def take(self, number: int) -> tuple[np.ndarray, steps.Batch]:
        """The next `number` batches, dealt to the devices.

        Returns:
          The indices of their images, [number, b], and what the train step takes: one
          batch, or several stacked.
        """
        began = time.perf_counter()
        batches = [next(self._batches) for _ in range(number)]
        self.waited += time.perf_counter() - began
        indices = np.stack([batch["index"] for batch in batches])
        dealt = [steps.shard(batch) for batch in batches]
        batch = dealt[0]
        if number > 1:
            batch = {name: np.stack([d[name] for d in dealt], 1) for name in batch}
        return indices, batch if self._views is None else _p_pick(self._views, batch)


def resident(
    source: pipeline.Source, threads: int
) -> tuple[pipeline.Source, steps.Batch]:
    """Puts a whole source on every local device, once.

    Args:
      source: of n examples.
      threads: that read it.

    Returns:
      A source of {row, index} in its place, and the replicated {image: [n, size, size,
      3] uint8, label: [n] int32} that the rows are of.
    """
    with futures.ThreadPoolExecutor(max(1, threads)) as pool:
        examples = list(pool.map(source.__getitem__, range(len(source))))
    images = np.stack([example["image"] for example in examples])
    labels = np.array([example["label"] for example in examples], np.int32)
    views = steps.replicate({"image": images, "label": labels})
    return _Rows([example["index"] for example in examples]), views


class _Rows:
    """The examples of a source without their images and labels."""

    def __init__(self, indices: list[np.int32]):
        self._indices = indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, i: int) -> pipeline.Example:
        return {"row": np.int32(i), "index": self._indices[i]}


def _pick(views: steps.Batch, batch: steps.Batch) -> steps.Batch:
    picked = {name: rows[batch["row"]] for name, rows in views.items()}
    return {**picked, "index": batch["index"]}


_p_pick = jax.pmap(_pick, axis_name=steps.AXIS)
