"""Backbones by name, and the networks that a configuration describes."""

import dataclasses
import difflib
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fdftnet_jax.errors import UserError
from fdftnet_jax.models import own_backbone, squeezenet, vit, xception
from fdftnet_jax.models.efficientnet import EfficientNetLite0
from fdftnet_jax.models.fdftnet import FDFtNet
from fdftnet_jax.models.linear import LinearClassifier
from fdftnet_jax.models.resnet_v2 import ResNet50V2
from fdftnet_jax.models.shallownet import ShallowNetV3

# What a network may compute in; its parameters are float32.
DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Backbone:
    """A registered backbone.

    Attributes:
      build: `(num_classes, axis_name, taps) -> module`, with another argument `variant`
        where there is more than one; `num_classes=None` makes a module that returns
        the feature map, [batch, h, w, channels], and with `taps` a tuple of those of
        several depths.
      l2: weight of the sum of squared kernels in the pre-training loss.
      variants: whose details it can follow; the first is the default.
      block_taps: whether it can give the maps of every block.
    """

    build: Callable[..., nn.Module]
    l2: float = 0.0
    variants: tuple[str, ...] = ("keras",)
    block_taps: bool = False


BACKBONES: dict[str, Backbone] = {
    "squeezenet": Backbone(squeezenet.SqueezeNet, variants=tuple(squeezenet.VARIANTS)),
    "shallownetv3": Backbone(ShallowNetV3, l2=1e-4),
    "resnet50v2": Backbone(ResNet50V2),
    "xception": Backbone(xception.Xception, variants=tuple(xception.VARIANTS)),
    "efficientnet_lite0": Backbone(EfficientNetLite0, block_taps=True),
    "vit": Backbone(vit.ViT, variants=tuple(vit.VARIANTS)),
}
# The package's own; the four of the paper's Table 5 among them.
OWN = tuple(BACKBONES)
OF_PAPER = ("squeezenet", "shallownetv3", "resnet50v2", "xception")
# The networks that hold a backbone in a part of that name, with new layers beside it.
ON_BACKBONE = ("fdftnet", "linear")
KINDS = ("classifier", *ON_BACKBONE)
# The L2 on the kernels of these layers (section 4.1 and the released code).
FDFTNET_L2 = 1e-5


def register_backbone(
    name: str, factory: own_backbone.Factory, *, l2: float = 0.0
) -> None:
    """Makes a network of your own known as a backbone.

    Without this call, the commands find it by its import path,
    `--config.model.backbone=MODULE:ATTRIBUTE`.

    Args:
      name: what to call it, for `get_backbone` and `config.model.backbone`; takes the
        place of one of your own of that name.
      factory: a class, or a function, that makes without arguments a Flax module
        `(images, *, train) -> feature map [batch, height, width, channels]`. For more
        than one device its normalisation needs the axis of the batch: if the module
        has an attribute `axis_name`, it is set.
      l2: weight of the sum of squared kernels in the pre-training loss.

    Raises:
      UserError: the name is one of the package's, or has characters that the
        commands give a meaning.
    """
    if name in OWN or not name or set(name) & set(",: "):
        raise UserError(
            f"a backbone cannot be registered as {name!r}: give a name without comma, "
            f"colon and space that is none of {', '.join(OWN)}"
        )
    BACKBONES[name] = _own(factory, name, l2)


def get_backbone(
    name: str,
    num_classes: int | None = None,
    axis_name: str | None = None,
    variant: str = "",
    *,
    taps: bool = False,
    block_taps: bool = False,
) -> nn.Module:
    """Makes a backbone.

    Args:
      name: one of `BACKBONES`, or the import path `module:attribute` of your own.
      num_classes: of its logits; None returns the feature map.
      axis_name: the pmapped axis of the global batch.
      variant: whose details it follows, one of the backbone's; imported weights say
        which they need. '' is its first.
      taps: whether the feature map comes with those of smaller depths: a tuple, of
        which it is the last. (A backbone of your own has no others.)
      block_taps: whether these are of every block.

    Returns:
      A module `(images, *, train)`.

    Raises:
      UserError: no backbone has that name, or it has no such variant or maps.
    """
    backbone = _registered(name)
    variant = variant or backbone.variants[0]
    if variant not in backbone.variants:
        raise UserError(
            f"{name} has no variant {variant!r}: it has {', '.join(backbone.variants)}"
        )
    if block_taps and not backbone.block_taps:
        able = ", ".join(name for name in BACKBONES if BACKBONES[name].block_taps)
        raise UserError(
            f"{name} has no taps of every block: expected {able}, or "
            "--config.model.block_taps=False"
        )
    options: dict[str, Any] = {}
    if len(backbone.variants) > 1:
        options["variant"] = variant
    if block_taps:
        options["block_taps"] = True
    return backbone.build(
        num_classes=num_classes, axis_name=axis_name, taps=taps, **options
    )


def build(model: Mapping[str, Any], axis_name: str | None = None) -> nn.Module:
    """Makes the network that `config.model` describes.

    Args:
      model: `kind` 'classifier' (the backbone with its own top), 'fdftnet', or
        'linear' (one dense layer on the mean of the backbone's features); `backbone`,
        and its `variant` where that is not its first; for the last two `taps` and
        `block_taps`; for FDFtNet `num_blocks`, `num_stages`, `first_stride`, and
        `ftt_size`, `ftt_view`, `ftt_filter` and `regression`.
      axis_name: the pmapped axis of the global batch.

    Returns:
      A module `(images, *, train) -> logits [batch, 2]`; real is class 0, fake 1.

    Raises:
      UserError: an unknown kind, backbone or variant.
    """
    backbone = functools.partial(
        get_backbone,
        model["backbone"],
        axis_name=axis_name,
        variant=model.get("variant", ""),
    )
    if model["kind"] == "classifier":
        return backbone(num_classes=2)
    taps = model.get("taps", False)
    block_taps = model.get("block_taps", False)
    backbone = functools.partial(backbone, taps=taps, block_taps=block_taps)
    if model["kind"] == "fdftnet":
        return FDFtNet(
            backbone(),
            num_blocks=model["num_blocks"],
            num_stages=model["num_stages"],
            first_stride=model["first_stride"],
            # Networks before these fields existed had none of it.
            ftt_size=model.get("ftt_size", 0),
            ftt_view=model.get("ftt_view", "whole"),
            ftt_filter=model.get("ftt_filter", ""),
            taps=taps,
            block_taps=block_taps,
            regression=(
                build(regression(model), axis_name) if model.get("regression") else None
            ),
            axis_name=axis_name,
        )
    if model["kind"] == "linear":
        return LinearClassifier(backbone(), taps=taps, block_taps=block_taps)
    raise UserError(
        f"model.kind is {model['kind']!r}: expected one of {', '.join(KINDS)}"
    )


def regression(model: Mapping[str, Any]) -> dict[str, Any]:
    """Describes, for `build`, the regression that stands beside FDFtNet.

    Args:
      model: what FDFtNet is built from.
    """
    return {
        "kind": "linear",
        "backbone": model["backbone"],
        "variant": model.get("variant", ""),
        "taps": True,
        "block_taps": has_block_taps(model["backbone"]),
    }


def has_block_taps(name: str) -> bool:
    """Whether a backbone can give the maps of every block."""
    return _registered(name).block_taps


def l2_weights(model: Mapping[str, Any]) -> dict[str, float]:
    """The L2 weight of each top-level part of the network; absent parts have none."""
    if model["kind"] in ON_BACKBONE:
        parts = ("mobilenet_head", "fine_tune_transformer", "classifier")
        return dict.fromkeys(parts, FDFTNET_L2)
    return {"": _registered(model["backbone"]).l2}


def _own(factory: own_backbone.Factory, label: str, l2: float = 0.0) -> Backbone:
    return Backbone(functools.partial(own_backbone.build, factory, label), l2)


def _registered(name: str) -> Backbone:
    if ":" in name:
        return _own(own_backbone.find(name), name)
    if name not in BACKBONES:
        near = difflib.get_close_matches(name, BACKBONES, 1, 0)[0]
        known = ", ".join(sorted(BACKBONES))
        raise UserError(
            f"no backbone {name!r}; did you mean {near!r}? known: {known}; one of your "
            "own is given as MODULE:ATTRIBUTE"
        )
    return BACKBONES[name]


def computing_in(dtype: str, apply: Callable[..., Any]) -> Callable[..., Any]:
    """A network's apply function, computing in another dtype.

    Parameters and images are rounded on their way in, so that gradients arrive in
    float32 at float32 parameters. Batch statistics, sums over a batch and the softmax
    of the attention are in float32 in the layers themselves; the logits come out in
    float32.

    Args:
      dtype: one of `DTYPES`.
      apply: `(variables, images, ...) -> logits`, or `(logits, updates)` with
        `mutable=`.

    Returns:
      A function of the same arguments and results.
    """
    if dtype == "float32":
        return apply

    def rounded(variables, images, **kwargs):
        params = jax.tree.map(lambda leaf: leaf.astype(dtype), variables["params"])
        variables = {**variables, "params": params}
        found = apply(variables, images.astype(dtype), **kwargs)
        if not kwargs.get("mutable"):
            return found.astype(jnp.float32)
        logits, updates = found
        return logits.astype(jnp.float32), updates

    return rounded
