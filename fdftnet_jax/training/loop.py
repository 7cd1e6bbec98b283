"""A run from its config to its last checkpoint."""

import contextlib
import dataclasses
import functools
import json
import time
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
from tqdm import tqdm

from fdftnet_jax import files
from fdftnet_jax.data import augment, pipeline, preprocess, splits
from fdftnet_jax.errors import UserError
from fdftnet_jax.models import precision, registry
from fdftnet_jax.training import (
    config_values,
    freezing,
    initialization,
    optimizer,
    processes,
    run_data,
    run_files,
    steps,
)
from fdftnet_jax.training.checkpoint import Checkpoints, Progress
from fdftnet_jax.training.feed import Feed, resident
from fdftnet_jax.training.interruption import Interruption, StopRequestedError
from fdftnet_jax.training.processes import say
from fdftnet_jax.training.watch import StepWatch


def train_and_evaluate(config: ml_collections.ConfigDict, workdir: str) -> None:
    """Trains the network of a config, validating and saving after every epoch.

    Called again with the same workdir, it goes on where it was saved last, with the
    same numbers as if it had never stopped. SIGINT (Ctrl-C) and SIGTERM save first, in
    the middle of an epoch too.

    Args:
      config: all fields of `configs/base.py`.
      workdir: gets `config.json`, `checkpoints/`, `history.jsonl` (a row an epoch) and
        `tensorboard/`; one run at a time may train in it. All processes of a run (see
        `processes`) share it.

    Raises:
      UserError: the config, the data or the workdir do not fit, the disk is full, or
        training diverged.
      Interrupted: by a signal.
    """
    config_values.check(config)
    steps.check_batch_size(config.batch_size)
    directory = Path(workdir)
    with contextlib.ExitStack() as stack:
        processes.by_primary(
            lambda: stack.enter_context(run_files.owned(directory)),
            "begin in the workdir",
        )
        _train_and_evaluate(config, directory)


def _train_and_evaluate(config: ml_collections.ConfigDict, directory: Path) -> None:
    # Log.
    workdir = str(directory)
    saved = processes.primary_first(
        lambda: _latest_meta(directory), "read the last checkpoint"
    )
    progress = Progress()
    if saved is not None:
        run_files.check_config(config, directory)
        progress = Progress(**saved["progress"])
        if progress.finished:
            say(
                f"{workdir} is finished: {progress.epoch} epochs, best validation loss "
                f"{progress.best_loss:.4f} in epoch {progress.best_epoch}"
            )
            return

    # Model, before the data: a mistake in the config shows before a long preparation.
    if saved is None:
        start = initialization.start(config)
    else:
        start = initialization.Start.of(saved, own=True)
    preprocessing = initialization.preprocessing(config, start.scaling)
    described = {
        **config.model.to_dict(),
        "variant": start.variant,
        "dtype": config.dtype,
    }
    model = registry.build(described, axis_name=steps.AXIS)
    variables = initialization.initialise(
        model, described, size=config.data.size, seed=config.seed, start=start
    )
    if start.weights and saved is None:
        left_out = ", ".join(start.weights["left_out"]) or "nothing"
        say(
            f"backbone of {start.weights['path']}, images scaled as {start.scaling}; "
            f"left out of the file: {left_out}"
        )

    # Data.
    data = processes.primary_first(
        lambda: run_data.prepare(config, start.trained_on), "prepare the data"
    )
    train_source, validation_source = run_data.sources(data, config, preprocessing)
    balanced = config.class_balance != "none"
    train_labels, validation_labels = (
        run_data.labels(parts) if balanced else np.empty(0, np.int32)
        for parts in (data.train, data.validation)
    )
    validation_batches = functools.partial(
        pipeline.eval_batches,
        validation_source,
        config.batch_size,
        jax.process_index(),
        jax.process_count(),
        config.data.threads,
    )
    processes.check_same(
        {
            "their configs": json.loads(config.to_json()),
            "their data": (data.fingerprint, data.replay),
            "the checkpoint that they go on from": saved,
        }
    )
    steps_per_epoch = max(1, data.number() // config.batch_size)
    total_steps = config.epochs * steps_per_epoch

    # Optimiser.
    schedule = optimizer.schedule(config.optimizer, total_steps, steps_per_epoch)
    phases = freezing.phases(variables["params"], config)
    rule = optimizer.create(config.optimizer, schedule, phases[-1].mask)
    tasks = [
        steps.Task(
            apply=precision.computing_in(
                config.dtype, functools.partial(model.apply, **phase.options)
            ),
            scale=functools.partial(preprocess.scale, scaling=preprocessing.scaling),
            augment=_augmentation(config.augment),
            l2=registry.l2_weights(described),
            optimizer=rule,
            mask=phase.mask,
            seed=config.seed,
            class_weights=run_data.class_weights(data, config.class_balance),
        )
        for phase in phases
    ]

    # State.
    state = steps.TrainState(
        step=np.zeros((), np.int32),
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        opt_state=rule.init(variables["params"]),
    )

    # Restore.
    checkpoints = processes.primary_first(
        lambda: Checkpoints(workdir, create=processes.is_primary()),
        "open the checkpoints",
    )
    meta = {
        "model": described,
        "preprocessing": preprocessing.to_dict(),
        "labels": splits.CLASSES,
        # Every data set that the weights have seen, this run's own first.
        "trained_on": [*data.described(config.data), *start.trained_on],
        "weights": start.weights,
        "replay": data.replay,
        "fake_share": data.fake_share(config.class_balance),
        "trained_parameters": phases[-1].number(variables["params"]),
    }
    if saved is not None:
        began_with = saved["trained_on"][0]["dataset"], saved.get("replay", "")
        if began_with != (data.fingerprint, data.replay):
            raise UserError(
                f"the data of {workdir} has changed since the run began (it was "
                f"{' and '.join(filter(None, began_with))}, it is "
                f"{' and '.join(filter(None, (data.fingerprint, data.replay)))}): "
                "restore it, or start in a new --workdir"
            )
        state = checkpoints.load_state(state)
        say(
            f"resuming {workdir} after epoch {progress.epoch}"
            + f" and {progress.steps} steps" * (progress.steps > 0)
        )

    num_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(state))

    # Compile.
    p_steps = [steps.pmap_steps(task) for task in tasks]
    p_train_steps, (p_eval_step, *_) = zip(*p_steps, strict=True)
    state = steps.replicate(state)

    # Loop.
    first_step = progress.epoch * steps_per_epoch + progress.steps
    views = None
    if run_data.fits_devices(config, data.number()):
        train_source, views = resident(train_source, config.data.threads)
    batches = pipeline.train_batches(
        run_data.members(train_source, config.class_balance, train_labels),
        config.batch_size,
        config.seed,
        start_step=first_step,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        threads=config.data.threads,
        view=run_data.random_view(config, preprocessing),
    )
    feed = Feed(batches, views)
    say(
        f"training {phases[0].number(variables['params']):,} parameters on "
        f"{run_data.describe(data)}, {jax.device_count()} device(s), "
        f"{steps_per_epoch} steps an epoch, at most {config.epochs} epochs"
    )

    def save(state: steps.TrainState, validation_loss: float | None) -> None:
        described = {**meta, "progress": dataclasses.asdict(progress)}
        processes.by_primary(
            lambda: checkpoints.save(state, described, validation_loss), "save"
        )

    with (
        files.writing(
            "a checkpoint and the history of the run",
            directory,
            num_bytes,
            "the last checkpoint is whole: free space and give the same command again",
        ),
        checkpoints,
        Interruption(processes.Agreement()) as interruption,
        run_files.History(
            directory, progress.epoch, write=processes.is_primary()
        ) as history,
        tqdm(
            total=total_steps,
            initial=first_step,
            unit="img",
            unit_scale=config.batch_size,
            # Shown on a terminal only, and once.
            disable=None if processes.is_primary() else True,
        ) as bar,
    ):
        # What was wrong with the config has shown by now.
        if processes.is_primary():
            run_files.write_config(config, directory)
        while not progress.finished:
            began = time.perf_counter()
            steps_before, feed.waited = progress.steps, 0.0
            watch = StepWatch(progress.sums, directory, data.paths)
            phase = freezing.phase_at(phases, progress.epoch)
            try:
                while progress.steps < steps_per_epoch:
                    interruption.check()
                    left = steps_per_epoch - progress.steps
                    number = min(config.steps_per_call, left)
                    indices, batch = feed.take(number)
                    state, metrics = p_train_steps[phase](state, batch)
                    step = progress.epoch * steps_per_epoch + progress.steps + 1
                    progress.steps += number
                    watch.add(step, indices, metrics)
                    bar.update(number)
                progress.sums = watch.sums()
                seconds = time.perf_counter() - began
                validation, logits = steps.evaluate(
                    p_eval_step,
                    {"params": state.params, "batch_stats": state.batch_stats},
                    interruption.checked(validation_batches()),
                    len(validation_source),
                )
            except StopRequestedError:
                progress.sums = watch.sums()
                if progress.steps > steps_before:
                    save(steps.unreplicate(state), None)
                interruption.stop(progress.epoch * steps_per_epoch + progress.steps)
            if balanced:
                loss = steps.balanced_loss(logits, validation_labels)
                validation = {**validation, "loss": loss}
            train = steps.means(progress.sums)
            _check_finite(train["loss"], validation["loss"], progress, workdir)
            _advance(progress, validation["loss"], config)
            host_state = steps.unreplicate(state)
            row = {
                "epoch": progress.epoch,
                "step": int(host_state.step),
                "train_loss": train["loss"],
                "train_accuracy": train["accuracy"],
                "validation_loss": validation["loss"],
                "validation_accuracy": validation["accuracy"],
                "learning_rate": float(schedule(host_state.step - 1)),
                "images_per_second": (steps_per_epoch - steps_before)
                * config.batch_size
                / seconds,
                "input_wait_share": feed.waited / seconds,
                **run_files.gammas(host_state.params),
            }
            # Before the checkpoint: a resumed run drops a row too many.
            history.add(row)
            save(host_state, validation["loss"])
            bar.set_postfix(
                loss=f"{train['loss']:.3f}", validation=f"{validation['loss']:.3f}"
            )
            seconds_left = (config.epochs - progress.epoch) * (
                time.perf_counter() - began
            )
            best = progress.best_epoch == progress.epoch
            say(run_files.line(row, config.epochs, seconds_left, best))
    say(
        f"finished after {progress.epoch} epochs; best validation loss "
        f"{progress.best_loss:.4f} in epoch {progress.best_epoch}; next: "
        f"python -m experiments.evaluate --workdir={workdir} --split=test"
    )


def _latest_meta(directory: Path) -> dict[str, Any] | None:
    """The description of the latest checkpoint, None where there is none."""
    if not (directory / "checkpoints").is_dir():
        return None
    with Checkpoints(directory, create=processes.is_primary()) as checkpoints:
        step = checkpoints.latest
        return None if step is None else checkpoints.load_meta(step)


def _augmentation(options: ml_collections.ConfigDict):
    """The augmentation on the devices, None where every part of it is off."""
    parts = ("zoom", "rotation", "translation", "flip", "cutout_alpha")
    if not any(options[part] for part in parts):
        return None
    on_host = ("jpeg", "blur")
    on_devices = {k: v for k, v in options.items() if k not in on_host}

    def augment_images(rng, indices, batch):
        keys = augment.example_keys(rng, indices)
        return augment.augment_batch(keys, batch, **on_devices)

    return augment_images


def _check_finite(
    train: float, validation: float, progress: Progress, workdir: str
) -> None:
    if not np.isfinite([train, validation]).all():
        raise UserError(
            f"the loss is no longer finite in epoch {progress.epoch + 1} (training "
            f"{train}, validation {validation}): the checkpoints in {workdir} end at "
            f"epoch {progress.epoch}; start in a new --workdir with a lower "
            "--config.optimizer.learning_rate"
        )


def _advance(
    progress: Progress, validation_loss: float, config: ml_collections.ConfigDict
) -> None:
    progress.epoch += 1
    progress.steps, progress.sums = 0, {}
    if validation_loss < progress.best_loss:
        progress.best_epoch, progress.best_loss = progress.epoch, validation_loss
    stale = progress.epoch - progress.best_epoch
    progress.finished = progress.epoch >= config.epochs or stale >= config.patience
