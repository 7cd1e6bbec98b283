"""Weight files as Keras writes them, as it once did, and as PyTorch does."""

import warnings

import h5py
import numpy as np

# Layer, size of the kernel, channels in and out, in the order of Keras's model.layers.
SQUEEZENET = [
    ("conv1", 3, 3, 64),
    *[
        layer
        for fire, (inputs, squeeze, expand) in enumerate(
            [
                *[(64, 16, 64), (128, 16, 64), (128, 32, 128), (256, 32, 128)],
                *[(256, 48, 192), (384, 48, 192), (384, 64, 256), (512, 64, 256)],
            ],
            2,
        )
        for layer in (
            (f"fire{fire}/squeeze1x1", 1, inputs, squeeze),
            (f"fire{fire}/expand1x1", 1, squeeze, expand),
            (f"fire{fire}/expand3x3", 3, squeeze, expand),
        )
    ],
]
SHALLOWNET = [
    ("conv1", 5, 3, 32),
    ("conv2", 1, 32, 32),
    ("conv3", 1, 32, 32),
    ("conv4", 3, 32, 64),
    ("conv5", 1, 64, 64),
    ("conv6", 1, 64, 64),
    ("conv7", 3, 64, 128),
    ("conv8", 1, 128, 32),
]


def convolutions(table, seed=0):
    """{layer: {'kernel': .., 'bias': ..}}, random, in the order of the table."""
    rng = np.random.default_rng(seed)
    return {
        name: {
            "kernel": rng.normal(0, 0.1, (size, size, inputs, outputs)).astype("f4"),
            "bias": rng.normal(0, 0.1, outputs).astype("f4"),
        }
        for name, size, inputs, outputs in table
    }


def conv10(classes=1000):
    """The top of SqueezeNet."""
    return {
        "conv10": {"kernel": np.ones((1, 1, 512, classes)), "bias": np.ones(classes)}
    }


def write_h5(path, layers, model=None, weight="{layer}/{variable}:0", **options):
    """Writes Keras's legacy layout.

    Args:
      path: of the new file.
      layers: {layer: {variable: array}}, in order.
      model: its JSON, for what `model.save` writes; else only weights, as
        `save_weights` of Keras 2 does and keras.applications ships.
      weight: how a weight is called.
      **options: of the data sets.
    """
    with h5py.File(path, "w") as file:
        root = file
        if model is not None:
            file.attrs["model_config"] = model
            root = file.create_group("model_weights")
            file.create_group("optimizer_weights/training/Adam")["iterations:0"] = 3
        root.attrs["layer_names"] = [layer.encode() for layer in layers]
        root.attrs["backend"] = b"tensorflow"
        for layer, tensors in layers.items():
            group = root.require_group(layer)
            names = [weight.format(layer=layer, variable=name) for name in tensors]
            group.attrs["weight_names"] = [name.encode() for name in names]
            for name, array in zip(names, tensors.values(), strict=True):
                group.create_dataset(name, data=array, **options)


def torch_names(layers):
    """A torchvision squeezenet1_1 state dict with these convolutions."""
    places = {"conv1": "features.0", "conv10": "classifier.1"}
    for fire, place in zip(range(2, 10), (3, 4, 6, 7, 9, 10, 11, 12), strict=True):
        places[f"fire{fire}/squeeze1x1"] = f"features.{place}.squeeze"
        places[f"fire{fire}/expand1x1"] = f"features.{place}.expand1x1"
        places[f"fire{fire}/expand3x3"] = f"features.{place}.expand3x3"
    state = {}
    for layer, tensors in layers.items():
        kernel = np.moveaxis(tensors["kernel"], (3, 2), (0, 1))
        state[f"{places[layer]}.weight"] = np.ascontiguousarray(kernel)
        state[f"{places[layer]}.bias"] = tensors["bias"]
    return state


def save(model, path):
    """Writes a file in the format of its suffix, and returns its path."""
    with warnings.catch_warnings():
        # Keras's own, on NumPy 2.
        warnings.simplefilter("ignore", DeprecationWarning)
        if path.name.endswith(".weights.h5"):
            model.save_weights(path)
        else:
            model.save(path)
    return path


def strip_names(path, target):
    """Copies an HDF5 file without the attribute `name`, as early Keras 3 wrote it."""
    target.write_bytes(path.read_bytes())
    with h5py.File(target, "r+") as file:
        items = [file]
        file.visititems(lambda _, item: items.append(item))
        for item in items:
            item.attrs.pop("name", None)
        # Groups of layers without weights were not written, either.
        for name, group in file["layers"].items():
            if not len(group.get("vars", ())) and "layers" not in group:
                del file["layers"][name]
