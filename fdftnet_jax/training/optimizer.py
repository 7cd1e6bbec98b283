"""SGD or AdamW under a cosine schedule, masked to what is trainable.

The third name, 'logistic', stands for no steps at all (see `logistic`).
"""

from collections.abc import Mapping
from typing import Any

import jax
import optax

NAMES = ("sgd", "adamw", "logistic")


def schedule(optimizer: Mapping[str, Any], steps: int, steps_per_epoch: int):
    """The learning rate by step: linear warm-up, then half a cosine down to 0.

    Args:
      optimizer: `learning_rate` (peak) and `warmup_epochs`; 0 is section 4.1's.
      steps: of the whole run.
      steps_per_epoch: of the training split.

    Returns:
      An optax schedule.
    """
    warmup = min(int(optimizer["warmup_epochs"] * steps_per_epoch), steps - 1)
    if warmup <= 0:
        return optax.cosine_decay_schedule(optimizer["learning_rate"], steps)
    return optax.warmup_cosine_decay_schedule(
        0.0, optimizer["learning_rate"], warmup, steps
    )


def create(
    optimizer: Mapping[str, Any], learning_rate: optax.Schedule, mask: Any
) -> optax.GradientTransformation:
    """SGD or AdamW on the trainable parameters, no update of the others.

    The last transform matters: `optax.masked` alone passes the gradients of what it
    leaves out, unscaled, as updates.

    Args:
      optimizer: `name`, one of `NAMES`; `momentum` of SGD; `weight_decay` of AdamW
        (Loshchilov and Hutter 2019), which decays kernels alone; `clip_norm` (largest
        global norm of a gradient; 0 does not clip); of a trained backbone `l2_sp` (see
        `pull_to_start`) and `backbone_rate` (its share of the learning rate).
      learning_rate: by step.
      mask: tree of bool, True where trainable.
    """
    clip, rate = optimizer["clip_norm"], optimizer["backbone_rate"]
    backbone = {
        part: jax.tree.map(lambda m, part=part: m and part == "backbone", tree)
        for part, tree in mask.items()
    }
    parts = [
        optax.clip_by_global_norm(clip) if clip else optax.identity(),
        _rule(optimizer, learning_rate),
    ]
    if optimizer["l2_sp"]:
        pull = pull_to_start(optimizer["l2_sp"])
        parts.insert(1, optax.masked(pull, backbone))
    if rate != 1:
        parts.append(optax.masked(optax.scale(rate), backbone))
    frozen = jax.tree.map(lambda trainable: not trainable, mask)
    return optax.chain(
        optax.masked(optax.chain(*parts), mask),
        optax.masked(optax.set_to_zero(), frozen),
    )


def _rule(
    optimizer: Mapping[str, Any], learning_rate: optax.Schedule
) -> optax.GradientTransformation:
    if optimizer["name"] == "sgd":
        return optax.sgd(learning_rate, momentum=optimizer["momentum"])
    if optimizer["name"] == "logistic":
        return optax.set_to_zero()
    return optax.adamw(
        learning_rate, weight_decay=optimizer["weight_decay"], mask=_kernels
    )


def _kernels(params: Any) -> Any:
    """Tree of bool: the kernels, not the biases and the scales of normalisations."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: path[-1].key == "kernel", params
    )


def pull_to_start(strength: float) -> optax.GradientTransformation:
    """Adds the gradient of strength / 2 * |w - w0|^2, w0 the weights at the start.

    This is L2-SP (Li, Grandvalet, Davoine 2018). The state keeps w0, and so does a
    checkpoint.
    """

    def update(gradients, start, params):
        pulled = jax.tree.map(
            lambda g, w, w0: g + strength * (w - w0), gradients, params, start
        )
        return pulled, start

    return optax.GradientTransformation(lambda params: params, update)
