"""The functions that run on the devices: one training step, one evaluation step.

Both are plain functions of (state, batch); `pmap_steps` and
`pmap_eval_step` are where they meet pmap, and `replicate` / `unreplicate` / `shard` the
only places that know of device axes.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import flax.jax_utils
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from fdftnet_jax import parallel
from fdftnet_jax.errors import UserError
from fdftnet_jax.ops.reduction import device_mean
from fdftnet_jax.training import freezing

AXIS = "batch"
Batch = Mapping[str, Any]
# Sums over the global batch: {'loss': ..., 'correct': ..., 'count': ...}, and in
# training 'nonfinite': above 0 where a loss or the gradient is not finite.
Metrics = dict[str, jax.Array]


@flax.struct.dataclass
class TrainState:
    """The state that a step changes and a checkpoint keeps."""

    step: Any  # [] int32, steps done
    params: Any
    batch_stats: Any
    opt_state: Any


@dataclasses.dataclass(frozen=True)
class Task:
    """The statics of a step.

    Attributes:
      apply: `(variables, images, train=, ...) -> logits`, the network's apply function.
      scale: [b, h, w, 3] in [0, 255] -> the network's input.
      augment: `(rng, indices [b], images [b, h, w, 3] in [0, 255]) -> images`, where
        `indices` are places in the global batch; None for none.
      l2: weight of the sum of squared kernels, by top-level part; '' is the whole.
      optimizer: the masked gradient transformation.
      mask: tree of bool, True where trainable.
      seed: of augmentation and dropout.
      class_weights: of the loss of a real and of a fake image.
      distillation: weight of the divergence from a teacher.
    """

    apply: Callable[..., Any]
    scale: Callable[[jax.Array], jax.Array]
    augment: Callable[[jax.Array, jax.Array, jax.Array], jax.Array] | None
    l2: Mapping[str, float]
    optimizer: optax.GradientTransformation
    mask: Any
    seed: int
    class_weights: tuple[float, float] = (1.0, 1.0)
    distillation: float = 0.0


def l2_penalty(params: Any, weights: Mapping[str, float]) -> jax.Array:
    """Sum of squares of the kernels (no 1/2, as Keras counts), weighted by part."""
    total = jnp.zeros(())
    for part, weight in weights.items():
        tree = params if part == "" else params.get(part, {})
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            if weight and path[-1].key == "kernel":
                total += weight * jnp.sum(jnp.square(leaf))
    return total


def train_step(
    state: TrainState, batch: Batch, seed: Any, teacher: Any = None, *, task: Task
) -> tuple[TrainState, Metrics]:
    """One update from one device's share of the global batch.

    Randomness is a function of (seed, step, index in the global batch).

    Args:
      state: replicated over the devices.
      batch: image [b, h, w, 3] uint8, label [b] int32; the same b on every device.
      seed: [] int32, of augmentation and dropout.
      teacher: `params` and `batch_stats` of the network whose judgement is to be kept,
        replicated; None for none.
      task: the statics.

    Returns:
      The next state, and the metrics' sums over the global batch.
    """
    size = batch["label"].shape[0]
    rng = jax.random.fold_in(jax.random.key(seed), state.step)
    augment_rng, dropout_rng = jax.random.split(rng)
    images = batch["image"].astype(jnp.float32)
    if task.augment is not None:
        indices = jax.lax.axis_index(AXIS) * size + jnp.arange(size)
        images = task.augment(augment_rng, indices, images)
    images = task.scale(images)
    trainable, frozen = freezing.partition(state.params, task.mask)
    taught = None
    if teacher is not None:
        taught = task.apply(teacher, images, train=False)

    def loss_fn(trainable):
        params = freezing.merge(trainable, frozen)
        logits, updates = task.apply(
            {"params": params, "batch_stats": state.batch_stats},
            images,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": dropout_rng},
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        weights = jnp.array(task.class_weights)[batch["label"]]
        penalty = l2_penalty(trainable, task.l2)
        if taught is not None:
            lost = jnp.mean(weights * divergence(taught, logits, batch["label"]))
            penalty += task.distillation * lost
        return jnp.mean(weights * losses) + penalty, (losses, logits, updates)

    gradients, (losses, logits, updates) = jax.grad(loss_fn, has_aux=True)(trainable)
    gradients = device_mean(gradients, AXIS)
    # Frozen leaves get the zeros that the optimiser's mask expects; XLA removes them.
    gradients = freezing.merge(gradients, jax.tree.map(jnp.zeros_like, frozen))
    gradients = _with_axis(gradients)
    params, opt_state = _updated(state, gradients, task.optimizer)
    metrics = _sums(logits, losses, batch["label"], jnp.ones(size))
    finite = jnp.isfinite(metrics["loss"] + optax.tree.norm(gradients))
    metrics["nonfinite"] = 1.0 - finite
    state = TrainState(
        step=state.step + 1,
        params=params,
        # Statistics of a backbone in inference mode come back as they went in.
        batch_stats=updates.get("batch_stats", state.batch_stats),
        opt_state=opt_state,
    )
    return state, jax.lax.psum(metrics, AXIS)


def divergence(taught: jax.Array, logits: jax.Array, labels: jax.Array) -> jax.Array:
    """How far judgements are from a teacher's, where that is right.

    Args:
      taught: [b, 2], the logits of the teacher.
      logits: [b, 2].
      labels: [b], 0 real and 1 fake.

    Returns:
      [b], the Kullback-Leibler divergence of the probabilities from the teacher's, in
      nats; 0 where the teacher calls the image by the other label.
    """
    right = (taught[:, 1] > taught[:, 0]) == (labels == 1)
    found = optax.losses.kl_divergence(
        jax.nn.log_softmax(logits), jax.nn.softmax(taught)
    )
    return jnp.where(right, found, 0)


def _updated(state, gradients, optimizer):
    """The next (params, opt_state), from gradients `_with_axis`.

    pmap takes the axis of devices off each array, and puts it back. The optimiser works
    with that axis in its place: across the two reshapes, XLA on a CPU would compute the
    momentum twice, from a copy of the last one, instead of updating it where it lies.
    """
    params, opt_state = _with_axis(state.params), _with_axis(state.opt_state)
    update, opt_state = optimizer.update(gradients, opt_state, params)
    updated = optax.apply_updates(params, update), opt_state
    return jax.tree.map(lambda leaf: leaf[0], updated)


def _with_axis(tree):
    return jax.tree.map(lambda leaf: leaf[None], tree)


def train_steps(
    state: TrainState, batch: Batch, seed: Any, teacher: Any = None, *, task: Task
) -> tuple[TrainState, Metrics]:
    """One `train_step`, or one after the other on k batches that are stacked.

    Args:
      state: as in `train_step`.
      batch: as in `train_step`, or each of its arrays with a first axis of k.
      seed: as in `train_step`.
      teacher: as in `train_step`.
      task: the statics.

    Returns:
      The last state, and the metrics of `train_step`, each of them [] or [k].
    """
    step = functools.partial(train_step, seed=seed, teacher=teacher, task=task)
    if batch["label"].ndim == 1:
        return step(state, batch)
    return jax.lax.scan(step, state, batch)


def eval_step(
    variables: Any,
    batch: Batch,
    *,
    apply: Callable[..., Any],
    scale: Callable[[jax.Array], jax.Array],
) -> dict[str, jax.Array]:
    """Scores one device's share of a batch.

    Args:
      variables: `params` and `batch_stats`, replicated.
      batch: image [b, h, w, 3] uint8 or [b, v, h, w, 3] of v views, whose logits are
        averaged; label [b], index [b], mask [b], 0 for padding.
      apply: as in `Task`.
      scale: as in `Task`.

    Returns:
      Of the whole global batch, on every device: logits [devices, b, 2],
      index and mask [devices, b], and the metrics' sums `loss`, `correct`, `count`.
    """
    number, *_, height, width, colours = batch["image"].shape
    images = batch["image"].reshape(-1, height, width, colours)
    logits = apply(variables, scale(images), train=False)
    logits = logits.reshape(number, -1, logits.shape[-1]).mean(1)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
    sums = _sums(logits, losses, batch["label"], batch["mask"])
    rows = {"logits": logits, "index": batch["index"], "mask": batch["mask"]}
    return jax.lax.psum(sums, AXIS) | jax.lax.all_gather(rows, AXIS)


def _sums(logits, losses, labels, mask) -> Metrics:
    called_fake = logits[:, 1] >= logits[:, 0]  # P(fake) >= 1/2
    return {
        "loss": jnp.sum(losses * mask),
        "correct": jnp.sum((called_fake == (labels == 1)) * mask),
        "count": jnp.sum(mask),
    }


def balanced_loss(logits: np.ndarray, labels: np.ndarray) -> float:
    """The mean of both classes' mean cross entropy, nats.

    Args:
      logits: [n, 2].
      labels: [n], 0 and 1, both of which occur.
    """
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return float(np.mean([np.mean(losses[labels == label]) for label in (0, 1)]))


def means(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Sums -> {'loss': nats, 'accuracy': in [0, 1]} per example."""
    count = float(metrics["count"])
    return {
        "loss": float(metrics["loss"]) / count,
        "accuracy": float(metrics["correct"]) / count,
    }


def evaluate(
    p_eval_step, variables: Any, batches: Iterable[Batch], num_examples: int
) -> tuple[dict[str, float], np.ndarray]:
    """Scores a source, every example exactly once.

    Args:
      p_eval_step: from `pmap_steps`.
      variables: `params` and `batch_stats`, replicated.
      batches: this process's share, as `pipeline.eval_batches` yields it.
      num_examples: in the source, over all processes.

    Returns:
      The means over the source (see `means`), and its logits [num_examples, 2] in the
      order of the source.
    """
    logits = np.full((num_examples, 2), np.nan, np.float32)
    sums = {"loss": 0.0, "correct": 0.0, "count": 0.0}

    def score(batch: Batch) -> Any:
        return p_eval_step(variables, shard(batch))

    for rows in parallel.scored(score, unreplicate, batches):
        real = rows["mask"].reshape(-1) > 0
        logits[rows["index"].reshape(-1)[real]] = rows["logits"].reshape(-1, 2)[real]
        sums = {name: total + float(rows[name]) for name, total in sums.items()}
    return means(sums), logits


def pmap_steps(task: Task, devices: Sequence[jax.Device] | None = None):
    """The pmapped (train_steps, eval_step) over `devices`, by default all of them.

    The first is called as `(state, batch, teacher=None)`.
    """
    pmapped = jax.pmap(
        functools.partial(train_steps, task=task),
        axis_name=AXIS,
        devices=devices,
        donate_argnums=(0,),
    )
    # (As a constant it would have every seed compiled anew.)
    seed = replicate(np.int32(task.seed), devices)

    def p_train_step(state, batch, teacher=None):
        return pmapped(state, batch, seed, teacher)

    return p_train_step, pmap_eval_step(task.apply, task.scale, devices)


def pmap_eval_step(
    apply: Callable[..., Any],
    scale: Callable[[jax.Array], jax.Array],
    devices: Sequence[jax.Device] | None = None,
):
    """The pmapped eval_step alone, for scoring."""
    return jax.pmap(
        functools.partial(eval_step, apply=apply, scale=scale),
        axis_name=AXIS,
        devices=devices,
    )


def replicate(tree: Any, devices: Sequence[jax.Device] | None = None) -> Any:
    """Copies a tree of arrays to each of `devices`, by default all local ones."""
    return flax.jax_utils.replicate(tree, devices, axis_name=AXIS)


def unreplicate(tree: Any) -> Any:
    """The first local device's copy of a replicated tree, on the host.

    (`flax.jax_utils.unreplicate` keeps the axis of devices where it is one of several.)
    """
    local = jax.tree.map(lambda leaf: leaf.addressable_shards[0].data, tree)
    return jax.tree.map(lambda leaf: leaf[0], jax.device_get(local))


def shard(
    batch: Batch, devices: Sequence[jax.Device] | None = None
) -> dict[str, np.ndarray]:
    """Deals this process's rows to `devices`, by default all local ones.

    Returns:
      [b, ...] as [number, b / number, ...] for that number of devices.
    """
    number = jax.local_device_count() if devices is None else len(devices)
    return {
        name: np.asarray(rows).reshape(number, -1, *np.shape(rows)[1:])
        for name, rows in batch.items()
    }


def check_batch_size(batch_size: int) -> None:
    """Raises UserError where the devices do not divide the global batch."""
    devices = jax.device_count()
    if batch_size < 1 or batch_size % devices:
        below = batch_size // devices * devices
        sizes = [str(size) for size in (below, max(below, 0) + devices) if size > 0]
        raise UserError(
            f"batch_size {batch_size} is not a multiple of the {devices} devices; "
            f"nearest: {' or '.join(sizes)}"
        )
