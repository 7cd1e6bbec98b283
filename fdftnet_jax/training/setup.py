"""What a training needs before its first step: network, data, optimizer, state."""

import dataclasses
import functools
import json
from collections.abc import Callable
from typing import Any

import ml_collections
import numpy as np
import optax

from fdftnet_jax.data import augment, preprocess
from fdftnet_jax.errors import UserError
from fdftnet_jax.models import registry
from fdftnet_jax.records import CheckpointRecord, Progress
from fdftnet_jax.run import Run
from fdftnet_jax.training import (
    freezing,
    initialization,
    optimizer,
    processes,
    run_data,
    steps,
)
from fdftnet_jax.training.feed import Images
from fdftnet_jax.training.processes import say

# Of the section `augment`: what is done to a training image on the host.
_ON_HOST = ("jpeg", "blur", "rescale")


@dataclasses.dataclass(frozen=True)
class Network:
    """A network, and what it starts with.

    Attributes:
      described: what `registry.build` made it from.
      apply: `(variables, images, train=, ...) -> logits`, of what is trained: without
        the regression of FDFtNet.
      variables: its initial `params` and `batch_stats`, on the host.
      preprocessing: between a decoded image and the network.
      start: where the backbone comes from.
    """

    described: dict[str, Any]
    apply: Callable[..., Any]
    variables: dict[str, Any]
    preprocessing: preprocess.Preprocessing
    start: initialization.Start


def network(
    config: ml_collections.ConfigDict, saved: CheckpointRecord | None
) -> Network:
    """Builds the network of a config.

    Args:
      config: all fields of `training/defaults.py`.
      saved: the checkpoint from which the training goes on, None where it begins.

    Raises:
      UserError: `config.init_from` or the backbone does not fit.
    """
    if saved is None:
        start = initialization.start(config)
    else:
        start = initialization.Start.resumed(saved)
    described = {
        **config.model.to_dict(),
        "variant": start.variant,
        "dtype": config.dtype,
    }
    model = registry.build(described, axis_name=steps.AXIS)
    preprocessing = initialization.preprocessing(config, start.scaling)
    variables = initialization.initialise(
        model,
        described,
        size=preprocessing.train_side,
        seed=config.seed,
        start=start,
    )
    if start.weights and saved is None:
        left_out = ", ".join(start.weights.left_out) or "nothing"
        say(
            f"backbone of {start.weights.path}, images scaled as {start.scaling}; "
            f"left out of the file: {left_out}"
        )
    trained = registry.build({**described, "regression": False}, axis_name=steps.AXIS)
    return Network(described, trained.apply, variables, preprocessing, start)


@dataclasses.dataclass(frozen=True)
class Training:
    """Everything that the epochs of a training share.

    Attributes:
      record: what its checkpoints say; the progress is that of its start.
      data: what it reads.
      images: those of it, as its steps take them.
      phases: by the epoch that each begins with.
      tasks: the statics of the train step of each phase.
      schedule: the learning rate by step.
      steps_per_epoch: of the training split.
      state: before the next step, on the host.
      teacher: the network that it started from, where that is to be distilled.
    """

    record: CheckpointRecord
    data: run_data.RunData
    images: Images
    phases: list[freezing.Phase]
    tasks: list[steps.Task]
    schedule: optax.Schedule
    steps_per_epoch: int
    state: steps.TrainState
    teacher: dict[str, Any] | None = None


def prepare(
    config: ml_collections.ConfigDict, run: Run, saved: CheckpointRecord | None
) -> Training:
    """Sets up the training of a config, or of what a checkpoint goes on from.

    Args:
      config: all fields of `training/defaults.py`.
      run: of the training.
      saved: what its latest checkpoint says, None for a new training.

    Raises:
      UserError: the config, the data or the checkpoint do not fit each other.
    """
    # The network first: a mistake in the config shows before a long preparation.
    net = network(config, saved)
    data = processes.primary_first(
        lambda: run_data.prepare(config, net.start.lineage), "prepare the data"
    )
    processes.check_same(
        {
            "their configs": json.loads(config.to_json()),
            "their data": (data.own.fingerprint, data.replay),
            "the checkpoint that they go on from": saved and saved.to_dict(),
        }
    )
    closed_form = config.optimizer.name == "logistic"
    steps_per_epoch = max(1, data.num_images() // config.batch_size)
    steps_per_epoch = 1 if closed_form else steps_per_epoch
    schedule = optimizer.schedule(
        config.optimizer, config.epochs * steps_per_epoch, steps_per_epoch
    )
    phases = freezing.phases(net.variables["params"], config)
    rule = optimizer.create(config.optimizer, schedule, phases[-1].mask)
    images = Images(config, data, net.preprocessing)
    state = steps.TrainState(
        step=np.zeros((), np.int32),
        params=net.variables["params"],
        batch_stats=net.variables["batch_stats"],
        opt_state=rule.init(net.variables["params"]),
    )
    record = CheckpointRecord(
        model=net.described,
        preprocessing=net.preprocessing,
        lineage=data.lineage(net.start.lineage),
        weights=net.start.weights,
        replay=data.replay,
        fake_share=data.fake_share(config.class_balance),
        trained_parameters=phases[-1].num_parameters(net.variables["params"]),
        progress=Progress() if saved is None else saved.progress,
    )
    if saved is not None:
        _check_data(run, saved, data)
        state = run.open_checkpoints().load_state(state)
        steps_done = record.progress.steps
        say(
            f"resuming {run} after epoch {record.progress.epoch}"
            + f" and {steps_done} steps" * (steps_done > 0)
        )
    tasks = [_task(config, net, images, rule, phase) for phase in phases]
    return Training(
        *(record, data, images, phases, tasks, schedule, steps_per_epoch, state),
        teacher=_teacher(config),
    )


def _teacher(config: ml_collections.ConfigDict) -> dict[str, Any] | None:
    if not config.distillation:
        return None
    # A training that goes on reads it again: checkpoints do not hold it.
    heads = initialization.start(config).heads
    return {"params": {}, "batch_stats": {}} | (heads or {})


def _task(
    config: ml_collections.ConfigDict,
    net: Network,
    images: Images,
    rule: optax.GradientTransformation,
    phase: freezing.Phase,
) -> steps.Task:
    return steps.Task(
        apply=registry.computing_in(
            config.dtype, functools.partial(net.apply, **phase.options)
        ),
        scale=functools.partial(preprocess.scale, scaling=net.preprocessing.scaling),
        augment=_augmentation(config.augment),
        l2=registry.l2_weights(net.described),
        optimizer=rule,
        mask=phase.mask,
        seed=config.seed,
        class_weights=images.class_weights,
        distillation=config.distillation,
    )


def _check_data(run: Run, saved: CheckpointRecord, data: run_data.RunData) -> None:
    """Raises UserError where the data are not those that the training began with."""
    began_with = saved.lineage.latest.fingerprint, saved.replay
    now = data.own.fingerprint, data.replay
    if began_with != now:
        raise UserError(
            f"the data of {run} has changed since the run began (it was "
            f"{' and '.join(filter(None, began_with))}, it is "
            f"{' and '.join(filter(None, now))}): "
            "restore it, or start in a new --workdir"
        )


def _augmentation(options: ml_collections.ConfigDict):
    """The augmentation on the devices, None where every part of it is off."""
    parts = ("zoom", "rotation", "translation", "flip", "cutout_alpha")
    if not any(options[part] for part in parts):
        return None
    on_devices = {k: v for k, v in options.items() if k not in _ON_HOST}

    def augment_images(rng, indices, batch):
        keys = augment.example_keys(rng, indices)
        return augment.augment_batch(keys, batch, **on_devices)

    return augment_images
