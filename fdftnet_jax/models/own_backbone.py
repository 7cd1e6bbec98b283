"""A backbone that the package has never seen: any Flax module that makes feature maps.

The module becomes the child `features`. Where logits are asked for, global average
pooling and a dense layer `predictions` follow, which fine-tuning cuts off again.
"""

import importlib
import inspect
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from fdftnet_jax.errors import UserError
from fdftnet_jax.models.layers import Dense

# A module's class, or a function that makes the module.
Factory = Callable[[], nn.Module]

CONTRACT = (
    "a backbone is a flax.linen module that is called as `module(images, train=...)` "
    "and returns a feature map [batch, height, width, channels]"
)


class OwnBackbone(nn.Module):
    """Holds a user's module to the contract, and puts a top on it.

    Attributes:
      features: a module `(images, *, train) -> [batch, height, width, channels]`.
      label: what messages call it.
      num_classes: None returns the feature map.
      taps: whether that is a tuple, of itself alone.
    """

    features: nn.Module
    label: str
    num_classes: int | None = None
    taps: bool = False

    @nn.compact
    def __call__(
        self, images: jax.Array, *, train: bool
    ) -> jax.Array | tuple[jax.Array, ...]:
        """Classifies images.

        Args:
          images: [batch, height, width, 3] float32 in [-1, 1].
          train: passed on to the module.

        Returns:
          Logits [batch, num_classes], or the feature map.

        Raises:
          UserError: the module breaks the contract, or raises something itself.
        """
        try:
            x = self.features(images, train=train)
        # Whatever the user's code raises; --debug shows the traceback.
        except Exception as error:
            raise UserError(
                f"{self.label} failed on images {list(images.shape)}, {_line(error)}; "
                f"{CONTRACT}"
            ) from error
        if getattr(x, "ndim", None) != 4 or x.shape[0] != images.shape[0]:
            found = getattr(x, "shape", None)
            what = type(x).__name__ if found is None else f"the shape {list(found)}"
            raise UserError(
                f"{self.label} returned {what} for images {list(images.shape)}: "
                f"{CONTRACT}"
            )
        if self.num_classes is None:
            return (x,) if self.taps else x
        return Dense(self.num_classes, name="predictions")(jnp.mean(x, axis=(1, 2)))


def build(
    factory: Factory,
    label: str,
    num_classes: int | None = None,
    axis_name: str | None = None,
    taps: bool = False,
) -> OwnBackbone:
    """Makes the module of a user's factory.

    Args:
      factory: makes the module. If that has an attribute `axis_name`, it is set.
      label: what messages call it.
      num_classes: of its logits; None returns the feature map.
      axis_name: the pmapped axis of the global batch.
      taps: as in `OwnBackbone`.

    Raises:
      UserError: what it makes is no Flax module, or cannot be called by the contract.
    """
    try:
        module = factory()
    # Whatever the user's code raises.
    except Exception as error:
        raise UserError(
            f"{label}() failed, {_line(error)}; expected a class, or a function, that "
            "makes the module without arguments"
        ) from error
    if not isinstance(module, nn.Module):
        raise UserError(f"{label}() is a {type(module).__name__}: {CONTRACT}")
    try:
        inspect.signature(module).bind(None, train=False)
    except TypeError as error:
        raise UserError(f"{label} cannot be called so ({error}): {CONTRACT}") from error
    # (What a function gives out twice would share its layers.)
    module = module.clone(_deep_clone=True)
    if hasattr(module, "axis_name"):
        module = module.clone(axis_name=axis_name)
    return OwnBackbone(module, label, num_classes, taps)


def find(path: str) -> Factory:
    """Imports `package.module:attribute`.

    Raises:
      UserError: there is no such module or attribute, or the import fails.
    """
    name, _, attribute = path.partition(":")
    try:
        return getattr(importlib.import_module(name), attribute)
    # Whatever the user's code raises.
    except Exception as error:
        raise UserError(
            f"cannot import the backbone {path!r}, {_line(error)}; expected "
            "MODULE:ATTRIBUTE, with MODULE importable from this folder"
        ) from error


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
