"""Reads the weight files of Keras as a list of layers; knows no network.

| format | written by | layers | their names |
|---|---|---|---|
| keras | `save('x.keras')` | as below, in a zip's model.weights.h5 | config.json |
| weights.h5 | Keras 3's `save_weights` | groups by class, number | attribute `name` |
| h5 | Keras 1 and 2, `save('x.h5')` | groups by name | `layer_names` |

The first two number the layers of a class in the order of `model.layers`. Early
versions write no attribute `name`. 'h5' has its groups in the root or, with a whole
model, in `model_weights`; layers of a model inside the model share one group there.

Nothing in a file is run or unpickled: of config.json and `model_config` only the names,
classes and order of layers are used, and no link out of the file is followed.
"""

import collections
import contextlib
import dataclasses
import io
import json
import os
import re
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any

import h5py

from fdftnet_jax.errors import UserError

# Variables of a layer in the order in which Keras 3 numbers them, and how many of them
# must be there for the numbers to be clear.
_NUMBERED = {
    "conv2d": (("kernel", "bias"), 1),
    "depthwise_conv2d": (("kernel", "bias"), 1),
    "dense": (("kernel", "bias"), 1),
    "separable_conv2d": (("depthwise_kernel", "pointwise_kernel", "bias"), 2),
    "batch_normalization": (("gamma", "beta", "moving_mean", "moving_variance"), 4),
}
# As Keras 1 called them. Its running_std is a variance, too.
_RENAMED = {
    "W": "kernel",
    "b": "bias",
    "running_mean": "moving_mean",
    "running_std": "moving_variance",
}
VARIABLES = frozenset(name for names, _ in _NUMBERED.values() for name in names)
# 'block1_conv1/kernel:0' (Keras 2), 'convolution2d_1_W:0' (Keras 1)
_WEIGHT_NAME = re.compile(
    rf"(?:(.*?)[/_])?({'|'.join([*VARIABLES, *_RENAMED])})(?::\d+)?"
)
_DAMAGED = (
    *(OSError, EOFError, ValueError, KeyError, TypeError, AttributeError),
    *(RuntimeError, zipfile.BadZipFile, zlib.error),
)


@dataclasses.dataclass(frozen=True)
class Layer:
    """A layer that has weights.

    Attributes:
      name: its own, with those of the models around it ('outer/conv1'); '' where the
        file does not tell.
      group: where it is in the file.
      tensors: shape and, by `[()]`, values of its variables, by their names in Keras 3
        ('kernel', 'gamma', ...), or by their numbers where the names are not clear.
      in_order: whether its place among the layers of its class is known.
    """

    name: str
    group: str
    tensors: dict[str, h5py.Dataset]
    in_order: bool = True


@dataclasses.dataclass(frozen=True)
class KerasFile:
    """What a file holds.

    Attributes:
      format: 'keras', 'weights.h5' or 'h5'.
      model: the name of the saved model, '' where the file does not tell.
      layers: in the order of `model.layers`, models inside the model spread out.
      ordered: whether that holds for all layers; else for those of one class that are
        `in_order`.
    """

    format: str
    model: str
    layers: list[Layer]
    ordered: bool


@contextlib.contextmanager
def open_file(path: str | os.PathLike[str]) -> Iterator[KerasFile]:
    """Reads everything but the numbers; these can be read until the context ends.

    Args:
      path: a zip archive or an HDF5 file.

    Raises:
      UserError: it is damaged, or Keras does not write such files.
    """
    with contextlib.ExitStack() as stack:
        try:
            file = _read(path, stack)
        except _DAMAGED as error:
            reason = " ".join(str(error).split())[:120]
            raise UserError(
                f"cannot read {path} as weights of Keras, it seems to be damaged "
                f"({type(error).__name__}: {reason}): get the file again"
            ) from error
        if not file.layers:
            raise UserError(
                f"{path} holds no layers as Keras writes them: expected what "
                "model.save or model.save_weights has written"
            )
        yield file


def _read(path: str | os.PathLike[str], stack: contextlib.ExitStack) -> KerasFile:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            config = json.loads(archive.read("config.json"))
            weights = io.BytesIO(archive.read("model.weights.h5"))
        root = stack.enter_context(h5py.File(weights, "r"))
        return KerasFile("keras", _name(config), *_numbered_layers(root, config))
    root = stack.enter_context(h5py.File(path, "r"))
    if "layer_names" in root.attrs or "layer_names0" in root.attrs:
        return KerasFile("h5", "", *_named_layers(root, {}))
    if "model_weights" in root:
        config = json.loads(root.attrs.get("model_config", "{}"))
        weights = _get(root, "model_weights", h5py.Group)
        return KerasFile("h5", _name(config), *_named_layers(weights, config))
    name = root["vars"].attrs.get("name", "") if "vars" in root else ""
    return KerasFile("weights.h5", str(name), *_numbered_layers(root, None))


def _name(config: dict[str, Any]) -> str:
    inner = config.get("config")
    # Keras 2.0 has a list of layers here.
    return str(inner.get("name", "")) if isinstance(inner, dict) else ""


def _listed(config: dict[str, Any]) -> list[dict[str, Any]]:
    """The layers of a model's configuration."""
    inner = config.get("config", [])
    return inner.get("layers", []) if isinstance(inner, dict) else inner


def _get(parent: h5py.Group, path: str, kind: type) -> Any:
    """The member of a group, never one that lies in another file."""
    found = parent
    for part in path.split("/"):
        if not isinstance(found.get(part, getlink=True), h5py.HardLink):
            raise KeyError(path)
        found = found[part]
    if not isinstance(found, kind):
        raise KeyError(path)
    if isinstance(found, h5py.Dataset) and (found.external or found.is_virtual):
        raise KeyError(path)
    return found


def _named_layers(root: h5py.Group, config: dict[str, Any]) -> tuple[list[Layer], bool]:
    """Layers of the format 'h5', and whether they are ordered."""
    layers = []
    for layer in _strings(root, "layer_names"):
        group = _get(root, layer, h5py.Group)
        owners: dict[str, dict[str, h5py.Dataset]] = {}
        for weight in _strings(group, "weight_names"):
            match = _WEIGHT_NAME.fullmatch(weight)
            owner, variable = match.groups("") if match else ("", weight)
            variable = _RENAMED.get(variable, variable)
            tensors = owners.setdefault(owner, {})
            tensors[weight if variable in tensors else variable] = _get(
                group, weight, h5py.Dataset
            )
        # Of one layer the owner is its name or, in graphs, that with a number. Those of
        # an inner model stand with the trainable ones first.
        alone = len(owners) == 1
        layers += [
            Layer(layer if alone else owner, group.name, tensors, in_order=alone)
            for owner, tensors in owners.items()
        ]
    names = {name: index for index, name in enumerate(_all_names(config))}
    places = [
        next((names[name] for name in endings(layer.name) if name in names), -1)
        for layer in layers
    ]
    if -1 not in places:
        order = sorted(range(len(layers)), key=lambda index: places[index])
        layers = [dataclasses.replace(layers[i], in_order=True) for i in order]
    return layers, all(layer.in_order for layer in layers)


def endings(name: str) -> list[str]:
    """'outer/inner/conv1' -> that, 'inner/conv1', 'conv1'."""
    parts = name.split("/")
    return ["/".join(parts[outer:]) for outer in range(len(parts))]


def _all_names(config: dict[str, Any]) -> Iterator[str]:
    """Names of layers, those of models inside the model in their place."""
    for layer in _listed(config):
        yield _name(layer)
        yield from _all_names(layer)


def _strings(group: h5py.Group, attribute: str) -> list[str]:
    """An attribute that is split over several where it is too long for HDF5."""
    if attribute in group.attrs:
        parts = [group.attrs[attribute]]
    else:
        parts = []
        while f"{attribute}{len(parts)}" in group.attrs:
            parts.append(group.attrs[f"{attribute}{len(parts)}"])
    return [
        text.decode() if isinstance(text, bytes) else str(text)
        for part in parts
        for text in part
    ]


def _numbered_layers(
    root: h5py.Group, config: dict[str, Any] | None
) -> tuple[list[Layer], bool]:
    """Layers of the formats 'keras' and 'weights.h5', and whether they are ordered."""
    # The second name is that of TensorFlow 2.13.
    for child in ("layers", "_layer_checkpoint_dependencies"):
        if child in root:
            group = _get(root, child, h5py.Group)
            break
    else:
        return [], False
    layers = list(_walk(group))
    names = dict(_names_in_order(config, group)) if config else {}
    if not all(layer.group in names for layer in layers):
        return layers, False
    order = {place: index for index, place in enumerate(names)}
    layers.sort(key=lambda layer: order[layer.group])
    named = [dataclasses.replace(layer, name=names[layer.group]) for layer in layers]
    return named, True


def _walk(group: h5py.Group, parents: str = "") -> Iterator[Layer]:
    for child in _children(group):
        inner = _get(group, child, h5py.Group)
        name, tensors = "", {}
        if "vars" in inner:
            variables = _get(inner, "vars", h5py.Group)
            if own := str(variables.attrs.get("name", "")):
                name = parents + own
            numbers = sorted(variables, key=int)
            known, needed = _NUMBERED.get(_class_and_number(child)[0], ((), 1))
            keys = known if needed <= len(numbers) <= len(known) else numbers
            tensors = {
                key: _get(variables, number, h5py.Dataset)
                for key, number in zip(keys, numbers, strict=False)
            }
        if tensors:
            yield Layer(name, inner.name, tensors)
        yield from _walk(inner, f"{name}/" if name else parents)


def _children(group: h5py.Group) -> list[str]:
    """Names of the groups of layers: models first, then by class and number."""
    names = [
        name
        for name in group
        if name not in ("vars", "seed_generator", "optimizer")
        and group.get(name, getlink=True, getclass=True) is h5py.HardLink
        and group.get(name, getclass=True) is h5py.Group
    ]
    return sorted(names, key=lambda n: ("layers" not in group[n], _class_and_number(n)))


def _class_and_number(group: str) -> tuple[str, int]:
    name, _, number = group.rpartition("_")
    return (name, int(number)) if name and number.isdecimal() else (group, 0)


def _names_in_order(
    config: dict[str, Any], group: h5py.Group, parents: str = ""
) -> Iterator[tuple[str, str]]:
    """Yields (group, name) of the layers that a configuration lists, in its order."""
    layers = _listed(config)
    counts = collections.Counter(layer["class_name"] for layer in layers)
    groups: dict[str, list[str]] = {}
    for child in _children(group):
        name = _class_and_number(child)[0].replace("_", "")
        groups.setdefault(name, []).append(child)
    for layer in layers:
        left = groups.get(layer["class_name"].lower(), [])
        # Layers without weights have no group in early versions.
        if len(left) != counts[layer["class_name"]]:
            continue
        counts[layer["class_name"]] -= 1
        inner = group[left.pop(0)]
        name = parents + _name(layer)
        yield inner.name, name
        if "layers" in inner:
            yield from _names_in_order(layer, inner["layers"], f"{name}/")
