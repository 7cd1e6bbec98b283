"""Checkpoints of a run: the latest and the best are kept, both whole and readable.

`WORKDIR/checkpoints/<step>/` holds three Orbax items, none of them a pickle:

    variables   params and batch_stats, all that inference needs
    optimizer   the optimiser's arrays by their path in its state, and the step
    meta        JSON: format version, network, preprocessing, labels, dataset, progress

Orbax writes a checkpoint beside the others and renames it when it is complete.
"""

import dataclasses
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from fdftnet_jax.errors import UserError
from fdftnet_jax.training.steps import TrainState

FORMAT_VERSION = 1


@dataclasses.dataclass
class Progress:
    """Where a run stands, beside its arrays.

    Attributes:
      epoch: epochs done.
      best_epoch: the epoch with the lowest validation loss so far; 0 is none.
      best_loss: that loss, in nats.
      finished: whether the run ended by itself.
    """

    epoch: int = 0
    best_epoch: int = 0
    best_loss: float = float("inf")
    finished: bool = False


class Checkpoints:
    """The checkpoints below a workdir."""

    def __init__(self, workdir: str | os.PathLike[str], *, create: bool = False):
        """Opens them, and makes the folder where `create`."""
        directory = Path(workdir).absolute() / "checkpoints"
        if not create and not directory.is_dir():
            raise UserError(
                f"no checkpoints in {workdir}: expected a --workdir that "
                "experiments.pretrain or experiments.finetune has written"
            )
        self._workdir = workdir
        best = policies.BestN(get_metric_fn=_rank, reverse=True, n=1)
        self._manager = ocp.CheckpointManager(
            directory,
            item_names=("variables", "optimizer", "meta"),
            options=ocp.CheckpointManagerOptions(
                create=create,
                best_fn=_rank,
                best_mode="min",
                preservation_policy=policies.AnyPreservationPolicy(
                    [policies.LatestN(1), best]
                ),
                enable_async_checkpointing=False,
            ),
        )

    @property
    def latest(self) -> int | None:
        """The step of the latest checkpoint, None where there is none."""
        return self._manager.latest_step()

    @property
    def best(self) -> int | None:
        """The step with the lowest validation loss, None where there is none."""
        return self._manager.best_step()

    def save(
        self, state: TrainState, meta: dict[str, Any], validation_loss: float
    ) -> None:
        """Writes one checkpoint and removes what is neither latest nor best.

        Args:
          state: on the host, not replicated.
          meta: JSON-serialisable description; the format version is added.
          validation_loss: by which the best is chosen.
        """
        step = int(state.step)
        variables = {"params": state.params}
        if state.batch_stats:
            variables["batch_stats"] = state.batch_stats
        self._manager.save(
            step,
            args=ocp.args.Composite(
                variables=ocp.args.StandardSave(variables),
                optimizer=ocp.args.StandardSave(_by_path(_optimizer(state))),
                meta=ocp.args.JsonSave({"format_version": FORMAT_VERSION, **meta}),
            ),
            metrics={"validation_loss": float(validation_loss), "step": step},
        )

    def load_meta(self, step: int | None = None) -> dict[str, Any]:
        """The description of the checkpoint at `step`, by default the best one."""
        step = self._existing(step)
        meta = self._manager.restore(
            step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())
        )["meta"]
        if meta["format_version"] != FORMAT_VERSION:
            raise UserError(
                f"{self._workdir} holds checkpoints of format "
                f"{meta['format_version']}, this version reads {FORMAT_VERSION}: "
                "use the version of fdftnet_jax that wrote them"
            )
        return meta

    def load_variables(self, step: int | None = None) -> dict[str, Any]:
        """`params` and `batch_stats` at `step`, by default the best, in NumPy."""
        variables = self._manager.restore(
            self._existing(step),
            args=ocp.args.Composite(variables=ocp.args.StandardRestore()),
        )["variables"]
        variables = jax.tree.map(np.asarray, variables)
        return {"params": variables["params"], "batch_stats": {}} | variables

    def load_state(self, template: TrainState) -> TrainState:
        """The latest state, in the structure of `template`, which it must fit."""
        step = self._existing(self.latest)
        variables = self.load_variables(step)
        saved = self._manager.restore(
            step, args=ocp.args.Composite(optimizer=ocp.args.StandardRestore())
        )["optimizer"]
        check_fits(
            variables,
            {"params": template.params, "batch_stats": template.batch_stats},
            f"the checkpoint in {self._workdir}",
        )
        expected = _by_path(_optimizer(template))
        check_fits(saved, expected, f"the optimiser state in {self._workdir}")
        optimizer = jax.tree.unflatten(
            jax.tree.structure(_optimizer(template)),
            [np.asarray(saved[path]) for path in expected],
        )
        return TrainState(**variables, **optimizer)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Waits for what is being written."""
        self._manager.close()

    def _existing(self, step: int | None) -> int:
        step = self.best if step is None else step
        if step is None:
            raise UserError(
                f"no checkpoint in {self._workdir} yet: the run has not finished its "
                "first epoch"
            )
        return step


def check_fits(found: Any, expected: Any, what: str) -> None:
    """Raises UserError unless both trees have the same paths and shapes.

    Args:
      found: tree of arrays.
      expected: tree of arrays or shapes.
      what: names `found` in the message.
    """
    have = {path: np.shape(leaf) for path, leaf in _by_path(found).items()}
    want = {path: tuple(leaf.shape) for path, leaf in _by_path(expected).items()}
    missing = sorted(want.keys() - have.keys())
    surplus = sorted(have.keys() - want.keys())
    misshapen = [
        f"{path} {have[path]} instead of {want[path]}"
        for path in sorted(have.keys() & want.keys())
        if have[path] != want[path]
    ]
    problems = {"missing": missing, "surplus": surplus, "misshapen": misshapen}
    if any(problems.values()):
        listed = "; ".join(
            f"{len(names)} {kind}: {', '.join(names[:3])}{', ...' * (len(names) > 3)}"
            for kind, names in problems.items()
            if names
        )
        raise UserError(f"{what} does not fit the network: {listed}")


def _rank(metrics: dict[str, float]) -> Any:
    """Sorts the best checkpoint first; of equal losses the earliest is the best."""
    return metrics["validation_loss"], metrics["step"]


def _optimizer(state: TrainState) -> dict[str, Any]:
    return {"step": state.step, "opt_state": state.opt_state}


def _by_path(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}
