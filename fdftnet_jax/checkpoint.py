"""Checkpoints of a run: the latest and the best are kept, both whole and readable.

`WORKDIR/checkpoints/<step>/` holds three Orbax items, none of them a pickle:

    variables   params and batch_stats, all that inference needs
    optimizer   the optimiser's arrays by their path in its state, and the step
    meta        JSON: format version, network, preprocessing, labels, datasets,
                progress, and a digest of each of the other two

Orbax writes a checkpoint beside the others and renames it when it is complete. The
digests are checked when a checkpoint is read, so that one that was damaged or copied in
part is never used. Of several processes, each of which has the whole state, one writes.
"""

import hashlib
import os
import shutil
import time
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from fdftnet_jax.data import splits
from fdftnet_jax.errors import UserError

# A `steps.TrainState`: step, params, batch_stats and opt_state.
State = TypeVar("State", bound=Any)
FORMAT_VERSION = 2
# Before the step of a checkpoint that is being replaced.
_ASIDE = "replaced-"
# After the step of one that Orbax is writing.
_TEMPORARY = ".orbax-checkpoint-tmp"
# Times that what a failed save left is removed, a twentieth of a second apart.
_TRIES = 20


class Checkpoints:
    """The checkpoints below a workdir."""

    def __init__(self, workdir: str | os.PathLike[str], *, create: bool = False):
        """Opens the checkpoints of a run.

        Args:
          workdir: of the run.
          create: for the process that writes: makes the folder, and tidies up what a
            killed one left.
        """
        directory = Path(workdir).absolute() / "checkpoints"
        if not create and not directory.is_dir():
            raise UserError(
                f"no checkpoints in {workdir}: expected a --workdir that "
                "experiments.pretrain or experiments.finetune has written"
            )
        self._workdir = workdir
        if create:
            directory.mkdir(parents=True, exist_ok=True)
            _tidy(directory)
        self._directory = directory
        best = policies.BestN(
            get_metric_fn=_rank,
            reverse=True,
            n=1,
            keep_checkpoints_without_metrics=False,
        )
        process = jax.process_index()
        options = ocp.CheckpointManagerOptions(
            create=False,
            # Orbax waits for no other process.
            multiprocessing_options=ocp.options.MultiprocessingOptions(
                primary_host=process, active_processes={process}
            ),
            best_fn=_rank,
            best_mode="min",
            preservation_policy=policies.AnyPreservationPolicy(
                [policies.LatestN(1), best]
            ),
            enable_async_checkpointing=False,
        )
        try:
            self._manager = ocp.CheckpointManager(
                directory,
                item_names=("variables", "optimizer", "meta"),
                options=options,
            )
        # It reads the losses of all checkpoints at once.
        except ValueError as error:
            raise UserError(
                f"a checkpoint in {directory} is damaged, its metrics cannot be read "
                f"({error}): copy the workdir again"
            ) from error

    @property
    def latest(self) -> int | None:
        """The step of the latest checkpoint, None where there is none."""
        return self._manager.latest_step()

    @property
    def best(self) -> int | None:
        """The step of the lowest rank (see `save`), None where there is none."""
        return self._manager.best_step()

    def save(
        self,
        state: Any,
        meta: dict[str, Any],
        validation_loss: float | None,
        *,
        rank: float | None = None,
    ) -> None:
        """Writes one checkpoint and removes what is neither latest nor best.

        Args:
          state: `steps.TrainState`, on the host, not replicated.
          meta: JSON-serialisable description; format version and digests are added.
          validation_loss: None in the middle of an epoch, where a checkpoint serves
            only to go on.
          rank: the best checkpoint has the lowest; None is the validation loss.
        """
        step = int(state.step)
        # Saved once already, when a signal stopped the validation after this step.
        replaced = self._directory / f"{_ASIDE}{step}"
        if step in self._manager.all_steps():
            (self._directory / str(step)).rename(replaced)
            self._manager.reload()
        variables = {"params": state.params}
        if state.batch_stats:
            variables["batch_stats"] = state.batch_stats
        optimizer = _by_path(_optimizer(state))
        described = {
            "format_version": FORMAT_VERSION,
            **meta,
            "digests": {
                "variables": _digest(variables),
                "optimizer": _digest(optimizer),
            },
        }
        metrics = None
        if validation_loss is not None:
            metrics = {"validation_loss": float(validation_loss), "step": step}
            metrics["rank"] = metrics["validation_loss"] if rank is None else rank
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    variables=ocp.args.StandardSave(variables),
                    optimizer=ocp.args.StandardSave(optimizer),
                    meta=ocp.args.JsonSave(described),
                ),
                metrics=metrics,
            )
        except Exception:
            # A part of a checkpoint would only keep a full disk full.
            _remove_part(self._directory, step)
            raise
        shutil.rmtree(replaced, ignore_errors=True)

    def load_meta(self, step: int | None = None) -> dict[str, Any]:
        """The description of the checkpoint at `step`, by default the best one.

        Raises:
          UserError: there is none, it is damaged, or of another version.
        """
        step = self._existing(step)
        meta = self._restore(step, "meta", ocp.args.JsonRestore())
        version = meta.get("format_version")
        if version != FORMAT_VERSION:
            raise UserError(
                f"{self._workdir} holds checkpoints of format {version}, this version "
                f"reads {FORMAT_VERSION}: use the fdftnet_jax that wrote them"
            )
        if tuple(meta["labels"]) != splits.CLASSES:
            raise UserError(
                f"{self._workdir} was trained with the classes {meta['labels']}, this "
                f"version has {list(splits.CLASSES)}: its scores would mean something "
                "else; train it again"
            )
        return meta

    def load_variables(self, step: int | None = None) -> dict[str, Any]:
        """`params` and `batch_stats` at `step`, by default the best, in NumPy."""
        variables = self._load_arrays(self._existing(step), "variables")
        return {"params": variables["params"], "batch_stats": {}} | variables

    def load_state(self, template: State) -> State:
        """The latest state, in the structure of `template`, which it must fit."""
        step = self._existing(self.latest)
        variables = self.load_variables(step)
        saved = self._load_arrays(step, "optimizer")
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
        return template.replace(**variables, **optimizer)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Waits for what is being written."""
        self._manager.close()

    def _load_arrays(self, step: int, item: str) -> dict[str, Any]:
        arrays = self._restore(step, item, ocp.args.StandardRestore())
        arrays = jax.tree.map(np.asarray, arrays)
        if self.load_meta(step)["digests"][item] != _digest(arrays):
            raise self._damaged(step, f"its {item} are not those that were saved")
        return arrays

    def _restore(self, step: int, item: str, how: Any) -> Any:
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**{item: how}))[
                item
            ]
        # Orbax and TensorStore raise whatever their readers of the parts raise.
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise self._damaged(
                step, f"its {item} cannot be read ({type(error).__name__}: {reason})"
            ) from error

    def _damaged(self, step: int, how: str) -> UserError:
        others = [str(other) for other in self._manager.all_steps() if other != step]
        advice = "copy the workdir again"
        if others:
            advice += f", or remove that folder to use checkpoint {' or '.join(others)}"
        return UserError(
            f"the checkpoint {self._directory / str(step)} is damaged, {how}: {advice}"
        )

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


def _remove_part(directory: Path, step: int) -> None:
    """Removes what a failed save left; its threads may be writing for a moment yet."""
    for _ in range(_TRIES):
        parts = list(directory.glob(f"{step}{_TEMPORARY}*"))
        if not parts:
            return
        for part in parts:
            shutil.rmtree(part, ignore_errors=True)
        time.sleep(0.05)


def _tidy(directory: Path) -> None:
    """Removes what a killed save left, and ends a replacement that was under way."""
    for part in directory.glob(f"*{_TEMPORARY}*"):
        shutil.rmtree(part)
    for aside in directory.glob(f"{_ASIDE}*"):
        current = directory / aside.name.removeprefix(_ASIDE)
        if current.exists():
            shutil.rmtree(aside)
        else:
            aside.rename(current)


def _rank(metrics: dict[str, float]) -> Any:
    """Sorts the best checkpoint first; of equal ones the earliest is the best."""
    return metrics.get("rank", metrics["validation_loss"]), metrics["step"]


def _optimizer(state: Any) -> dict[str, Any]:
    return {"step": state.step, "opt_state": state.opt_state}


def _digest(tree: Any) -> str:
    """SHA-256 of all paths, types, shapes and values."""
    digest = hashlib.sha256()
    for path, leaf in sorted(_by_path(tree).items()):
        array = np.asarray(leaf)
        digest.update(f"{path} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _by_path(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}
