"""Backbones by name, and the networks that a configuration describes."""

import dataclasses
import difflib
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn

from fdftnet_jax.errors import UserError
from fdftnet_jax.models.fdftnet import FDFtNet
from fdftnet_jax.models.shallownet import ShallowNetV3
from fdftnet_jax.models.squeezenet import SqueezeNet


@dataclasses.dataclass(frozen=True)
class Backbone:
    """A registered backbone.

    Attributes:
      build: `(num_classes, axis_name) -> module`; `num_classes=None` makes a module
        that returns the feature map, [batch, h, w, channels].
      l2: weight of the sum of squared kernels in the pre-training loss.
    """

    build: Callable[..., nn.Module]
    l2: float = 0.0


BACKBONES: dict[str, Backbone] = {
    "squeezenet": Backbone(SqueezeNet),
    "shallownetv3": Backbone(ShallowNetV3, l2=1e-4),
}
# FDFtNet's L2 on the kernels of its own layers (section 4.1 and the released code).
FDFTNET_L2 = 1e-5


def get_backbone(
    name: str, num_classes: int | None = None, axis_name: str | None = None
) -> nn.Module:
    """Makes a registered backbone.

    Args:
      name: one of `BACKBONES`.
      num_classes: of its logits; None returns the feature map.
      axis_name: the pmapped axis of the global batch.

    Returns:
      A module `(images, *, train)`.

    Raises:
      UserError: no backbone has that name.
    """
    return _registered(name).build(num_classes=num_classes, axis_name=axis_name)


def build(model: Mapping[str, Any], axis_name: str | None = None) -> nn.Module:
    """Makes the network that `config.model` describes.

    Args:
      model: `kind` 'classifier' (the backbone with its own top) or 'fdftnet';
        `backbone`; for FDFtNet `num_blocks`, `num_stages` and `first_stride`.
      axis_name: the pmapped axis of the global batch.

    Returns:
      A module `(images, *, train) -> logits [batch, 2]`; real is class 0, fake 1.

    Raises:
      UserError: an unknown kind or backbone.
    """
    if model["kind"] == "classifier":
        return get_backbone(model["backbone"], 2, axis_name)
    if model["kind"] == "fdftnet":
        return FDFtNet(
            get_backbone(model["backbone"], None, axis_name),
            num_blocks=model["num_blocks"],
            num_stages=model["num_stages"],
            first_stride=model["first_stride"],
            axis_name=axis_name,
        )
    raise UserError(
        f"model.kind is {model['kind']!r}: expected 'classifier' or 'fdftnet'"
    )


def l2_weights(model: Mapping[str, Any]) -> dict[str, float]:
    """The L2 weight of each top-level part of the network; absent parts have none."""
    if model["kind"] == "fdftnet":
        parts = ("mobilenet_head", "fine_tune_transformer", "classifier")
        return dict.fromkeys(parts, FDFTNET_L2)
    return {"": _registered(model["backbone"]).l2}


def _registered(name: str) -> Backbone:
    if name not in BACKBONES:
        near = difflib.get_close_matches(name, BACKBONES, 1, 0)[0]
        known = ", ".join(sorted(BACKBONES))
        raise UserError(f"no backbone {name!r}; did you mean {near!r}? known: {known}")
    return BACKBONES[name]
