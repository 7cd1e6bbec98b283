"""Where training starts: new weights, and the backbone of an earlier run."""

import functools
import os
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from fdftnet_jax.data import images
from fdftnet_jax.errors import UserError
from fdftnet_jax.training.checkpoint import Checkpoints, check_fits


def initialise(model, config, preprocessing) -> dict[str, Any]:
    """The network's initial variables, on the host."""
    shape = (1, preprocessing.size, preprocessing.size, 3)
    logits, variables = jax.jit(functools.partial(model.init_with_output, train=False))(
        jax.random.key(config.seed), jnp.zeros(shape)
    )
    # The mean over an empty feature map.
    if not np.isfinite(logits).all():
        raise UserError(
            f"images of {preprocessing.size} pixels are too small for "
            f"{config.model.backbone}, no feature map is left: give a larger "
            "--config.data.size"
        )
    return {"batch_stats": {}} | jax.device_get(variables)


def load_backbone(
    config: ml_collections.ConfigDict, preprocessing: images.Preprocessing
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The best variables of the backbone in `config.init_from`, and what they saw."""
    if not config.init_from:
        raise UserError(
            "FDFtNet starts from a pre-trained backbone: give the workdir of "
            "experiments.pretrain with --config.init_from=PATH"
        )
    with Checkpoints(config.init_from) as checkpoints:
        meta, saved = checkpoints.load_meta(), checkpoints.load_variables()
    name = meta["model"]["backbone"]
    if name != config.model.backbone:
        raise UserError(
            f"{config.init_from} holds the backbone {name!r}, the config asks for "
            f"{config.model.backbone!r}: use the config of the same backbone"
        )
    if meta["preprocessing"] != preprocessing.to_dict():
        raise UserError(
            f"{config.init_from} was trained on {meta['preprocessing']}, the config "
            f"asks for {preprocessing.to_dict()}: use the same view and size"
        )
    for run in meta["trained_on"]:
        _check_same_splits(run, config)
    if meta["model"]["kind"] == "fdftnet":
        saved = {name: tree.get("backbone", {}) for name, tree in saved.items()}
    return saved, meta["trained_on"]


def with_backbone(
    variables: dict[str, Any], backbone: dict[str, Any], init_from: str
) -> dict[str, Any]:
    """FDFtNet's variables with a pre-trained backbone in the place of its own."""
    found = {}
    for collection, tree in variables.items():
        expected = tree.get("backbone", {})
        # The classification layers are cut off.
        layers = {
            name: layer
            for name, layer in backbone[collection].items()
            if name in expected
        }
        check_fits(layers, expected, f"the backbone in {init_from}")
        found[collection] = {**tree, "backbone": layers} if layers else tree
    return found


def _check_same_splits(run: dict[str, Any], config: ml_collections.ConfigDict) -> None:
    """Two ways of splitting one folder would mix its splits."""
    if config.data.name != "folder":
        return
    if run["directory"] != os.path.abspath(os.path.expanduser(config.data.dir)):
        return
    pretrained_on, data = run["data"], config.data.to_dict()
    if any(pretrained_on[key] != data[key] for key in ("fractions", "group_by")):
        raise UserError(
            f"{config.init_from} was trained on the same folder split by "
            f"fractions={pretrained_on['fractions']}, "
            f"group_by={pretrained_on['group_by']!r}; another split would test on "
            "images that the backbone was trained on: give the same values"
        )
