"""SGD with momentum under a cosine schedule, masked to what is trainable."""

from collections.abc import Mapping
from typing import Any

import jax
import optax


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
    """SGD with momentum on the trainable parameters, no update of the others.

    The second transform matters: `optax.masked` alone passes the gradients of what it
    leaves out, unscaled, as updates.

    Args:
      optimizer: `momentum`, and `clip_norm` (largest global norm of a gradient; 0 does
        not clip).
      learning_rate: by step.
      mask: tree of bool, True where trainable.
    """
    clip = optimizer["clip_norm"]
    sgd = optax.chain(
        optax.clip_by_global_norm(clip) if clip else optax.identity(),
        optax.sgd(learning_rate, momentum=optimizer["momentum"]),
    )
    frozen = jax.tree.map(lambda trainable: not trainable, mask)
    return optax.chain(
        optax.masked(sgd, mask), optax.masked(optax.set_to_zero(), frozen)
    )
