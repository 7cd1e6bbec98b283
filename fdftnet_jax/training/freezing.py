"""What is trainable, as a function of the phase of a run."""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import jax
import ml_collections
from jax.tree_util import DictKey

from fdftnet_jax.errors import UserError

# Phase -> pattern of the parameters that it freezes, matched from the start of their
# path; None freezes nothing.
PHASES: dict[str, str | None] = {"head": "backbone/", "all": None}
# FDFtNet's regression is fitted, not trained, whatever the phase.
_FITTED = "regression/"

Tree = Any


def trainable_mask(params: Tree, phase: str) -> Tree:
    """Says which parameters a phase trains.

    Args:
      params: nested dict of parameters.
      phase: one of `PHASES`: 'head' freezes the backbone, 'all' does not.

    Returns:
      A tree of bool like `params`.

    Raises:
      UserError: the phase is unknown, or its pattern freezes nothing or everything.
    """
    if phase not in PHASES:
        raise UserError(f"trainable is {phase!r}: expected one of {', '.join(PHASES)}")
    pattern = PHASES[phase]

    def is_trainable(path: tuple[DictKey, ...], _) -> bool:
        name = "/".join(str(key.key) for key in path)
        if "backbone" in params and name.startswith(_FITTED):
            return False
        return pattern is None or re.match(pattern, name) is None

    mask = jax.tree_util.tree_map_with_path(is_trainable, params)
    leaves = jax.tree.leaves(mask)
    if pattern is not None and (all(leaves) or not any(leaves)):
        what = "nothing" if all(leaves) else "everything"
        raise UserError(
            f"trainable={phase!r} would freeze {what} (pattern {pattern!r}); it is for "
            f"FDFtNet on a backbone: here the parts are {', '.join(sorted(params))}"
        )
    return mask


@dataclasses.dataclass(frozen=True)
class Phase:
    """A part of a run in which the same parameters are trained.

    Attributes:
      epoch: the first, from 0.
      mask: tree of bool, True where trainable.
      options: of the network's apply function in training.
    """

    epoch: int
    mask: Tree
    options: dict[str, Any]

    def num_parameters(self, params: Tree) -> int:
        """Number of parameters that it trains."""
        trainable, _ = partition(params, self.mask)
        return sum(leaf.size for leaf in jax.tree.leaves(trainable))


def phases(params: Tree, config: ml_collections.ConfigDict) -> list[Phase]:
    """The phases of a run, in order: the last one trains all that any of them does.

    Args:
      params: nested dict of parameters.
      config: `trainable`, and `release_epoch`, the epoch from which a run that began
        with the head trains the backbone, too (0: never).
    """
    starts = {0: config.trainable}
    if config.release_epoch and config.trainable == "head":
        starts[config.release_epoch] = "all"
    on_backbone = "backbone" in params
    return [
        Phase(
            epoch,
            trainable_mask(params, name),
            {"train_backbone": True} if on_backbone and name == "all" else {},
        )
        for epoch, name in starts.items()
    ]


def phase_at(phases: Sequence[Phase], epoch: int) -> int:
    """The number of the phase that an epoch (from 0) belongs to."""
    return max(k for k, phase in enumerate(phases) if phase.epoch <= epoch)


def partition(params: Tree, mask: Tree) -> tuple[Tree, Tree]:
    """Splits parameters in (trainable, frozen); None stands for a leaf of the other."""
    trainable = jax.tree.map(lambda p, m: p if m else None, params, mask)
    frozen = jax.tree.map(lambda p, m: None if m else p, params, mask)
    return trainable, frozen


def merge(trainable: Tree, frozen: Tree) -> Tree:
    """Undoes `partition`."""
    return jax.tree.map(
        lambda t, f: f if t is None else t,
        trainable,
        frozen,
        is_leaf=lambda leaf: leaf is None,
    )
