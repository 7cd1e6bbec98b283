"""A run from its config to its last checkpoint."""

import contextlib
import dataclasses
import time
from collections.abc import Mapping
from typing import Any

import jax
import ml_collections
import numpy as np
from tqdm import tqdm

from fdftnet_jax import files
from fdftnet_jax.errors import UserError
from fdftnet_jax.records import Progress
from fdftnet_jax.run import History, Run
from fdftnet_jax.training import (
    config_values,
    freezing,
    logistic,
    processes,
    run_data,
    setup,
    steps,
)
from fdftnet_jax.training.interruption import Interruption, StopRequestedError
from fdftnet_jax.training.processes import say
from fdftnet_jax.training.watch import StepWatch

# Share of the time spent waiting for images from which the user is told of it.
_NOTABLE_WAIT = 0.03


def train_and_evaluate(config: ml_collections.ConfigDict, workdir: str) -> None:
    """Trains the network of a config, validating and saving after every epoch.

    Called again with the same workdir, it goes on where it was saved last, with the
    same numbers as if it had never stopped. SIGINT (Ctrl-C) and SIGTERM save first, in
    the middle of an epoch too.

    Args:
      config: all fields of `training/defaults.py`.
      workdir: of the run (see `run`); one training at a time may write to it. All
        processes of a training (see `processes`) share it.

    Raises:
      UserError: the config, the data or the workdir do not fit, the disk is full, or
        training diverged.
      Interrupted: by a signal.
    """
    config_values.check(config)
    steps.check_batch_size(config.batch_size)
    with Run(workdir) as run, contextlib.ExitStack() as stack:
        processes.by_primary(
            lambda: stack.enter_context(run.owned()), "begin in the workdir"
        )
        saved = processes.primary_first(
            lambda: run.latest(create=processes.is_primary()),
            "read the last checkpoint",
        )
        if saved is not None:
            run.check_config(config)
            if saved.progress.finished:
                kept = _kept(saved.progress, config)
                say(f"{run} is finished: {saved.progress.epoch} epochs, {kept}")
                return
        training = setup.prepare(config, run, saved)
        progress = _Loop(config, run, training).run()
    say(f"finished after {progress.epoch} epochs; {_kept(progress, config)}")


class _Loop:
    """The epochs of a training, one after the other."""

    def __init__(
        self, config: ml_collections.ConfigDict, run: Run, training: setup.Training
    ):
        self._config = config
        self._run = run
        self._training = training
        self._progress = dataclasses.replace(training.record.progress)
        processes.primary_first(
            lambda: run.open_checkpoints(create=processes.is_primary()),
            "open the checkpoints",
        )
        p_steps = [steps.pmap_steps(task) for task in training.tasks]
        self._p_train_steps = [p_train_step for p_train_step, _ in p_steps]
        self._p_eval_step = p_steps[0][1]
        self._state = steps.replicate(training.state)
        # (No argument at all where there is none.)
        teacher = training.teacher
        self._teacher = () if teacher is None else (steps.replicate(teacher),)
        self._feed = training.images.feed(self._step)
        self._interruption = Interruption(processes.Agreement())

    @property
    def _step(self) -> int:
        """Steps done, over all epochs."""
        whole = self._progress.epoch * self._training.steps_per_epoch
        return whole + self._progress.steps

    def run(self) -> Progress:
        """Trains to the end; returns where the training stands then."""
        config, progress = self._config, self._progress
        primary = processes.is_primary()
        say(_opening(config, self._training))
        with (
            files.writing(
                "a checkpoint and the history of the run",
                self._run.directory,
                advice="the last checkpoint is whole: free space and give the same "
                "command again",
            ),
            self._interruption,
            History(self._run, progress.epoch, write=primary) as history,
            tqdm(
                total=config.epochs * self._training.steps_per_epoch,
                initial=self._step,
                unit="img",
                unit_scale=config.batch_size,
                # Shown on a terminal only, and once.
                disable=None if primary else True,
            ) as bar,
        ):
            # What was wrong with the config has shown by now.
            if primary:
                self._run.write_config(config)
            if config.model.regression and self._step == 0:
                self._fit_regression()
            while not progress.finished:
                began = time.perf_counter()
                row = self._epoch(bar)
                # Before the checkpoint: a resumed run drops a row too many.
                history.add(row)
                self._save(steps.unreplicate(self._state), row["validation_loss"])
                bar.set_postfix(
                    loss=f"{row['train_loss']:.3f}",
                    validation=f"{row['validation_loss']:.3f}",
                )
                seconds = time.perf_counter() - began
                left = (config.epochs - progress.epoch) * seconds
                best = config.keep == "best" and progress.best_epoch == progress.epoch
                say(_line(row, config.epochs, left, best))
        return progress

    def _epoch(self, bar: tqdm) -> dict[str, Any]:
        """Trains the rest of an epoch and validates; returns its row of the history.

        A signal saves what was done, and ends the training.
        """
        progress, training = self._progress, self._training
        began, steps_before = time.perf_counter(), progress.steps
        seen_before = progress.sums.get("count", 0.0)
        self._feed.waited = 0.0
        watch = StepWatch(progress.sums, self._run, training.data.paths)
        try:
            if self._config.optimizer.name != "logistic":
                self._steps(watch, bar)
            # (A run that was stopped in its validation has been fitted.)
            elif progress.steps == 0:
                metrics = jax.tree.map(np.float32, {**self._fit(), "nonfinite": 0.0})
                progress.steps = 1
                watch.add(1, np.zeros((1, 0), np.int32), steps.replicate(metrics))
            progress.sums = watch.sums()
            seconds = time.perf_counter() - began
            validation = self._validate()
        except StopRequestedError:
            progress.sums = watch.sums()
            if progress.steps > steps_before:
                self._save(steps.unreplicate(self._state), None)
            self._interruption.stop(self._step)
        train, seen = steps.means(progress.sums), progress.sums["count"] - seen_before
        self._check_finite(train["loss"], validation["loss"])
        _advance(progress, validation["loss"], self._config)
        step = progress.epoch * training.steps_per_epoch
        return {
            "epoch": progress.epoch,
            "step": step,
            "train_loss": train["loss"],
            "train_accuracy": train["accuracy"],
            "validation_loss": validation["loss"],
            "validation_accuracy": validation["accuracy"],
            "learning_rate": float(training.schedule(step - 1)),
            "images_per_second": seen / seconds,
            "input_wait_share": self._feed.waited / seconds,
            **_gammas(self._state.params),
        }

    def _steps(self, watch: StepWatch, bar: tqdm) -> None:
        """Trains to the end of the epoch."""
        progress, training = self._progress, self._training
        phase = freezing.phase_at(training.phases, progress.epoch)
        while progress.steps < training.steps_per_epoch:
            self._interruption.check()
            left = training.steps_per_epoch - progress.steps
            count = min(self._config.steps_per_call, left)
            indices, batch = self._feed.take(count)
            self._state, metrics = self._p_train_steps[phase](
                self._state, batch, *self._teacher
            )
            first = self._step + 1
            progress.steps += count
            watch.add(first, indices, metrics)
            bar.update(count)

    def _fit_regression(self) -> None:
        """Fits what FDFtNet adds to what it learns; a signal begins it anew."""
        try:
            self._fit()
        except StopRequestedError:
            self._interruption.stop(self._step)

    def _fit(self) -> dict[str, float]:
        """Fits a dense layer on frozen features; returns the sums of `logistic.fit`."""
        state = self._training.state
        beside = "regression" in state.params
        part = state.params["regression"] if beside else state.params
        # (Process 0 alone cannot ask the others whether to stop.)
        alone = jax.process_count() == 1
        checked = self._interruption.checked if alone else iter
        classifier, sums = processes.of_primary(
            lambda: logistic.fit(self._config, self._training, checked),
            (part["classifier"], dict.fromkeys(("loss", "correct", "count"), 0.0)),
            "fit the regression",
        )
        part = {**part, "classifier": classifier}
        params = {**state.params, "regression": part} if beside else part
        step = state.step + (not beside)
        state = dataclasses.replace(state, step=step, params=params)
        self._state = steps.replicate(state)
        return sums

    def _validate(self) -> dict[str, float]:
        """Loss (nats) and accuracy on the validation images."""
        images = self._training.images
        metrics, logits = steps.evaluate(
            self._p_eval_step,
            {"params": self._state.params, "batch_stats": self._state.batch_stats},
            self._interruption.checked(images.validation_batches()),
            len(images.validation),
        )
        if images.validation_labels is None:
            return metrics
        loss = steps.balanced_loss(logits, images.validation_labels)
        return {**metrics, "loss": loss}

    def _save(self, state: steps.TrainState, validation_loss: float | None) -> None:
        checkpoints = self._run.open_checkpoints()
        record = dataclasses.replace(self._training.record, progress=self._progress)
        rank = -float(self._progress.epoch) if self._config.keep == "last" else None
        processes.by_primary(
            lambda: checkpoints.save(
                state, record.to_dict(), validation_loss, rank=rank
            ),
            "save",
        )

    def _check_finite(self, train: float, validation: float) -> None:
        epoch = self._progress.epoch
        if not np.isfinite([train, validation]).all():
            raise UserError(
                f"the loss is no longer finite in epoch {epoch + 1} (training "
                f"{train}, validation {validation}): the checkpoints in {self._run} "
                f"end at epoch {epoch}; start in a new --workdir with a lower "
                "--config.optimizer.learning_rate"
            )


def _advance(
    progress: Progress, validation_loss: float, config: ml_collections.ConfigDict
) -> None:
    """Counts an epoch; ends the training after the last, or without progress."""
    progress.epoch += 1
    progress.steps, progress.sums = 0, {}
    if config.keep == "last" or validation_loss < progress.best_loss:
        progress.best_epoch, progress.best_loss = progress.epoch, validation_loss
    stale = progress.epoch - progress.best_epoch
    progress.finished = progress.epoch >= config.epochs or stale >= config.patience


def _gammas(params: Any) -> dict[str, float]:
    """The gamma of each stage of the Fine-Tune Transformer; it starts at 0 (Eq. 3)."""
    branch = params.get("fine_tune_transformer", {})
    return {
        f"gamma_{name}": float(steps.unreplicate(layer["gamma"]))
        for name, layer in branch.items()
        if "gamma" in layer
    }


def _opening(config: ml_collections.ConfigDict, training: setup.Training) -> str:
    """Line for the user before the first step."""
    count = training.phases[0].num_parameters(training.state.params)
    opening = f"training {count:,} parameters on {run_data.describe(training.data)}"
    if config.optimizer.name == "logistic":
        return opening
    return (
        f"{opening}, {jax.device_count()} device(s), {training.steps_per_epoch} steps "
        f"an epoch, at most {config.epochs} epochs"
    )


def _line(row: Mapping[str, Any], epochs: int, left: float, best: bool) -> str:
    """Line for the user after an epoch.

    Args:
      row: of the history.
      epochs: of the longest training.
      left: seconds until its end.
      best: whether no epoch had a lower validation loss.
    """
    waiting = ""
    if row["input_wait_share"] > _NOTABLE_WAIT:
        waiting = f"  waiting for images {row['input_wait_share']:.0%} of the time"
    return (
        f"epoch {row['epoch']}/{epochs}  loss {row['train_loss']:.4f}  "
        f"validation loss {row['validation_loss']:.4f} "
        f"accuracy {row['validation_accuracy']:.3f}  "
        f"{row['images_per_second']:.0f} images/s{waiting}  "
        f"at most {left / 60:.1f} min left{'  best' * best}"
    )


def _kept(progress: Progress, config: ml_collections.ConfigDict) -> str:
    """What the result of a training is."""
    best = "best " * (config.keep == "best")
    loss, epoch = progress.best_loss, progress.best_epoch
    return f"{best}validation loss {loss:.4f} in epoch {epoch}"
