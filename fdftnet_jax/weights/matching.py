"""Which tensor of a weights file belongs where in a backbone.

Layers are matched by name. Keras numbers layers without a name per session: the four
shortcuts of Xception, and every layer of a network that was built without names. Those,
and the layers of files that tell no names, are matched by their order among layers of
the same shapes. The order is that of Keras's `model.layers`, which the graph decides,
not the order in which the layers were created.
"""

import dataclasses
import functools
import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fdftnet_jax.models.registry import BACKBONES, get_backbone
from fdftnet_jax.weights import keras_files, torch_files, vit_files

# Our leaf: its name in (Keras, PyTorch). A bias beside a scale is Keras's beta.
_LEAVES = {
    "kernel": ("kernel", "weight"),
    "depthwise/kernel": ("depthwise_kernel", "conv1.weight"),
    "pointwise/kernel": ("pointwise_kernel", "pointwise.weight"),
    "bias": ("bias", "bias"),
    "scale": ("gamma", "weight"),
    "mean": ("moving_mean", "running_mean"),
    "var": ("moving_variance", "running_var"),
    # Of the vision transformer.
    "class_token": ("", "cls_token"),
    "positions": ("", "pos_embed"),
    "registers": ("", "reg_token"),
    "scale1": ("", "ls1.gamma"),
    "scale2": ("", "ls2.gamma"),
}
# What Keras 1, 2 and 3 call layers without a name.
_UNNAMED = re.compile(
    r"((separable_?)?conv(olution)?2d|batch_?normalization(_v\d)?)(_\d+)?"
)
# Layers of the tops, in case a file does not have them at its end.
_TOPS = frozenset(("predictions", "conv10", "dense1", "bn1", "dense2"))


@dataclasses.dataclass(frozen=True)
class Slot:
    """A place for an array.

    Attributes:
      path: in the variables, ('params', 'conv1', 'kernel').
      layer: 'conv1', 'fire2/squeeze1x1'.
      tensor: what the file calls it within its layer.
      shape: in the file.
      axes: of the file's array, in our order.
    """

    path: tuple[str, ...]
    layer: str
    tensor: str
    shape: tuple[int, ...]
    axes: tuple[int, ...]


@dataclasses.dataclass
class Fit:
    """How a file fits a network.

    Attributes:
      variant: of the backbone, that the file is for.
      found: each slot with its tensor, which has a shape and, by `[()]`, values.
      left_out: the file's names of the tensors of the classification top.
      missing, surplus, misshapen: names of tensors, with shapes.
    """

    variant: str = ""
    found: list[tuple[Slot, Any]] = dataclasses.field(default_factory=list)
    left_out: list[str] = dataclasses.field(default_factory=list)
    missing: list[str] = dataclasses.field(default_factory=list)
    surplus: list[str] = dataclasses.field(default_factory=list)
    misshapen: list[str] = dataclasses.field(default_factory=list)

    @property
    def problems(self) -> str:
        """Numbers and first names of all that is wrong, '' where nothing is."""
        return "; ".join(
            f"{len(names)} {kind}: {', '.join(names[:3])}{', ...' * (len(names) > 3)}"
            for kind in ("missing", "surplus", "misshapen")
            if (names := getattr(self, kind))
        )

    def _put(self, slot: Slot, name: str, tensor: Any) -> None:
        """Takes the tensor, None if there is none, for the slot."""
        if tensor is None:
            self.missing.append(f"{name} {slot.shape}")
        elif tuple(tensor.shape) != slot.shape:
            self.misshapen.append(f"{name} {tensor.shape} instead of {slot.shape}")
        else:
            self.found.append((slot, tensor))


def fit_torch(tensors: Mapping[str, Any], backbone: str) -> Fit:
    """Matches a state dict by name; a prefix that all names share is ignored.

    Args:
      tensors: by name.
      backbone: a key of `torch_files.LAYERS`.
    """
    layers = torch_files.LAYERS[backbone]
    fit = Fit(_variant(backbone, "torch"))
    if backbone == "vit":
        variant, tensors, fit.left_out = vit_files.in_one_form(tensors)
        fit.variant = variant or fit.variant
    slots = {
        f"{layers[slot.layer]}.{slot.tensor}".removeprefix("."): slot
        for slot in _slots(backbone, fit.variant, "torch")
    }
    prefix = torch_files.prefix(tensors.keys(), slots.keys())
    rest = {name.removeprefix(prefix): name for name in tensors}
    for name, slot in slots.items():
        fit._put(slot, name, tensors[rest.pop(name)] if name in rest else None)
    for name, original in rest.items():
        top = name.split(".")[0] in torch_files.TOPS
        (fit.left_out if top else fit.surplus).append(original)
    return fit


def fit_keras(file: keras_files.KerasFile, backbone: str) -> Fit:
    """Matches the layers of a Keras file; what follows the last of them is the top.

    Args:
      file: the layers, in order.
      backbone: its layers have Keras's names.
    """
    layers: dict[str, list[Slot]] = {}
    fit = Fit(_variant(backbone, "keras"))
    for slot in _slots(backbone, fit.variant, "keras"):
        layers.setdefault(slot.layer, []).append(slot)
    matched = _match(file, layers)
    for name, slots in layers.items():
        tensors = dict(file.layers[matched[name]].tensors) if name in matched else {}
        for slot in slots:
            fit._put(slot, f"{name}/{slot.tensor}", tensors.pop(slot.tensor, None))
        fit.surplus += [f"{name}/{tensor}" for tensor in tensors]

    last: dict[Any, int] = {}
    for index in sorted(matched.values()):
        last[_kind(file, index)] = index
    for index, layer in enumerate(file.layers):
        if index not in matched.values():
            follows = index > last.get(_kind(file, index), -1)
            top = follows and layer.tensors.keys() <= keras_files.VARIABLES
            top |= layer.name in _TOPS
            names = [f"{layer.name or layer.group}/{name}" for name in layer.tensors]
            (fit.left_out if top else fit.surplus).extend(names)
    if fit.missing and not fit.surplus:
        # Then these may be what is missing, by other names.
        fit.surplus = list(fit.left_out)
    return fit


def _variant(backbone: str, origin: str) -> str:
    """The variant of a backbone that files of an origin are for."""
    variants = BACKBONES[backbone].variants
    return origin if origin in variants else variants[0]


@functools.cache
def _leaves(module: nn.Module) -> dict[tuple[str, ...], tuple[int, ...]]:
    """The shapes of a backbone's variables, by path."""
    shapes = jax.eval_shape(
        lambda: module.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)), train=False)
    )
    return {
        tuple(key.key for key in path): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)
    }


def _slots(backbone: str, variant: str, origin: str) -> list[Slot]:
    """Slots of a backbone for files of 'keras' or 'torch', sorted by `_order`."""
    leaves = _leaves(get_backbone(backbone, None, variant=variant))
    slots = []
    for path, shape in leaves.items():
        cut = -2 if "/".join(path[-2:]) in _LEAVES else -1
        keras, torch = _LEAVES["/".join(path[cut:])]
        if keras == "bias" and (*path[:-1], "scale") in leaves:
            keras = "beta"
        axes = tuple(range(len(shape)))
        if origin == "torch" and len(shape) == 4:
            axes = (2, 3, 1, 0)  # from [out, in, height, width]
        elif origin == "torch" and path[-1] == "kernel":
            axes = (1, 0)  # from [out, in]
        elif keras == "depthwise_kernel":
            axes = (0, 1, 3, 2)  # from [height, width, channels, 1]
        in_file = tuple(shape[axes.index(axis)] for axis in range(len(shape)))
        tensor = torch if origin == "torch" else keras
        slots.append(Slot(path, "/".join(path[1:cut]), tensor, in_file, axes))
    return sorted(slots, key=lambda slot: _order(slot.layer))


def _match(
    file: keras_files.KerasFile, layers: Mapping[str, list[Slot]]
) -> dict[str, int]:
    """For each layer of ours the index of the file's, where there is one."""
    by_name: dict[str, int] = {}
    names = [keras_files.endings(layer.name) for layer in file.layers]
    for outer in range(max(len(endings) for endings in names)):
        for index, endings in enumerate(names):
            # Keras 3 allows no '/' in names.
            key = endings[min(outer, len(endings) - 1)].replace("/", "_")
            by_name.setdefault(key, index)
    matched = {
        name: by_name[key]
        for name in layers
        if (key := name.replace("/", "_")) in by_name
    }

    unnamed: dict[Any, list[int]] = {}
    for index, layer in enumerate(file.layers):
        if not layer.name or _UNNAMED.fullmatch(names[index][-1]):
            shapes = frozenset((name, t.shape) for name, t in layer.tensors.items())
            unnamed.setdefault(shapes, []).append(index)
    # Where some layers have our names, only Xception's shortcuts can have none.
    nameless = [name for name in layers if not matched or "_shortcut" in name]
    for name in (name for name in nameless if name not in matched):
        shapes = frozenset((slot.tensor, slot.shape) for slot in layers[name])
        same = unnamed.get(shapes, [])
        if len(same) == 1 or (same and file.layers[same[0]].in_order):
            matched[name] = same.pop(0)
    return matched


def _order(layer: str) -> list[Any]:
    """Sorts layers of equal shapes as Keras does: by number, units from their start."""
    parts = re.split(r"(\d+)", layer.replace("preact", "0_preact"))
    return [int(part) if part.isdecimal() else part for part in parts]


def _kind(file: keras_files.KerasFile, index: int) -> Any:
    """Layers of one kind are in order: all, or those of a class."""
    if file.ordered:
        return None
    tensors = file.layers[index].tensors.items()
    return frozenset((name, len(t.shape)) for name, t in tensors if name != "bias")
