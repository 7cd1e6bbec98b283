"""One epoch of a training: batches to the devices, steps, and what they come to."""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from typing import Any

import jax
import numpy as np

from fdftnet_jax.data import pipeline
from fdftnet_jax.errors import UserError
from fdftnet_jax.run import Run
from fdftnet_jax.training import processes, steps


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

    def take(self, count: int) -> tuple[np.ndarray, steps.Batch]:
        """The next `count` batches, dealt to the devices.

        Returns:
          The indices of their images, [count, b], and what the train step takes: one
          batch, or several stacked.
        """
        began = time.perf_counter()
        batches = [next(self._batches) for _ in range(count)]
        self.waited += time.perf_counter() - began
        indices = np.stack([batch["index"] for batch in batches])
        dealt = [steps.shard(batch) for batch in batches]
        batch = dealt[0]
        if count > 1:
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


class StepWatch:
    """Sums the metrics of an epoch's steps, one call behind the devices.

    (Reading a step's numbers waits for them; the next call is already under way.)
    """

    def __init__(
        self,
        sums: dict[str, float],
        run: Run,
        paths: Callable[[Sequence[int]], list[str]],
    ):
        """Starts an epoch.

        Args:
          sums: of the steps that an interrupted process made, {} for none.
          run: keeps the images of a step that diverges.
          paths: the files of images, by their index in the training source.
        """
        self._sums = {name: np.float32(value) for name, value in sums.items()}
        self._run = run
        self._paths = paths
        self._pending: tuple[int, np.ndarray, steps.Metrics] | None = None

    def add(self, step: int, indices: np.ndarray, metrics: steps.Metrics) -> None:
        """Takes the metrics of a step, or of several, and looks at those before.

        Args:
          step: number of the (first) step, from 1.
          indices: [b] or [k, b] of the images in this process's batch or batches.
          metrics: of `steps.train_steps`, still on the devices.

        Raises:
          UserError: a loss or a gradient of a step before was not finite.
        """
        self._look()
        self._pending = (step, indices, metrics)

    def sums(self) -> dict[str, float]:
        """The sums of all steps so far; raises UserError as `add` does."""
        self._look()
        return {name: float(value) for name, value in self._sums.items()}

    def _look(self) -> None:
        if self._pending is None:
            return
        first, indices, metrics = self._pending
        self._pending = None
        rows = jax.tree.map(np.atleast_1d, steps.unreplicate(metrics))
        for k, of_step in enumerate(np.atleast_2d(indices)):
            values = {name: np.float32(value[k]) for name, value in rows.items()}
            if values["nonfinite"]:
                raise self._diverged(first + k, of_step, values)
            self._sums = {
                name: self._sums.get(name, np.float32(0)) + value
                for name, value in values.items()
            }

    def _diverged(self, step: int, indices: np.ndarray, values: Any) -> UserError:
        paths = self._paths([int(i) for i in processes.gather(indices)])
        loss = float(values["loss"] / values["count"])
        report = {"step": step, "loss": str(loss), "images": paths}
        listed = self._run.nonfinite_path
        if processes.is_primary():
            self._run.write_nonfinite_batch(report)
        what = "gradient" if np.isfinite(loss) else "loss"
        return UserError(
            f"the {what} of step {step} is no longer finite (mean loss {loss:g}); its "
            f"{len(paths)} images are listed in {listed}: {', '.join(paths[:3])}"
            f"{', ...' if len(paths) > 3 else ''}; the checkpoints end before it; "
            "start in a new --workdir with a lower --config.optimizer.learning_rate"
        )
