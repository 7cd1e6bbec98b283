"""Looks at each step's numbers as they arrive: sums them, and stops at a NaN."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from fdftnet_jax.errors import UserError
from fdftnet_jax.run import Run
from fdftnet_jax.training import processes, steps


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
