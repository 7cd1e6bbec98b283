"""Where training starts: new weights, and the backbone of an earlier run."""

import functools
import math
import warnings
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections

from fdftnet_jax.data import images, splits
from fdftnet_jax.errors import UserError
from fdftnet_jax.models import registry
from fdftnet_jax.training.checkpoint import Checkpoints, check_fits


def initialise(
    model: nn.Module,
    config: ml_collections.ConfigDict,
    preprocessing: images.Preprocessing,
) -> dict[str, Any]:
    """The network's initial `params` and `batch_stats`, on the host."""
    image = jnp.zeros((1, preprocessing.size, preprocessing.size, 3))
    rng = jax.random.key(config.seed)
    backbone = registry.get_backbone(config.model.backbone)
    try:
        features, _ = jax.eval_shape(
            functools.partial(backbone.init_with_output, train=False), rng, image
        )
        left = math.prod(features.shape)
    # What shape errors raise when a layer is left without pixels.
    except (TypeError, ValueError, ZeroDivisionError):
        left = 0
    if left == 0:
        raise UserError(
            f"images of {preprocessing.size} pixels are too small for "
            f"{config.model.backbone}, no feature map is left: give a larger "
            "--config.data.size"
        )
    variables = jax.jit(functools.partial(model.init, train=False))(rng, image)
    return {"batch_stats": {}} | jax.device_get(variables)


def _load_backbone(
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
        latest = checkpoints.load_meta(checkpoints.latest)
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
    if not latest["progress"]["finished"]:
        warnings.warn(
            f"{config.init_from} has not finished: taking its best backbone so far",
            stacklevel=2,
        )
    for run in meta["trained_on"]:
        _check_same_splits(run, config)
    if meta["model"]["kind"] == "fdftnet":
        saved = {name: tree.get("backbone", {}) for name, tree in saved.items()}
    return saved, meta["trained_on"]


def with_backbone(
    variables: dict[str, Any],
    config: ml_collections.ConfigDict,
    preprocessing: images.Preprocessing,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Puts the pre-trained backbone of `config.init_from` in the place of a new one.

    Args:
      variables: of FDFtNet.
      config: of the run.
      preprocessing: of the run; the backbone's must be the same.

    Returns:
      The variables with that backbone, and the data sets that it was trained on.

    Raises:
      UserError: no such run, or one that does not fit.
    """
    backbone, trained_on = _load_backbone(config, preprocessing)
    found = {}
    for collection, tree in variables.items():
        expected = tree.get("backbone", {})
        # The classification layers are cut off.
        layers = {
            name: layer
            for name, layer in backbone[collection].items()
            if name in expected
        }
        check_fits(layers, expected, f"the backbone in {config.init_from}")
        found[collection] = {**tree, "backbone": layers} if layers else tree
    return found, trained_on


def _check_same_splits(run: dict[str, Any], config: ml_collections.ConfigDict) -> None:
    """Two ways of splitting one folder would mix its splits."""
    if config.data.name != "folder":
        return
    if run["directory"] != splits.resolve(config.data.dir):
        return
    pretrained_on, data = run["data"], config.data.to_dict()
    if any(pretrained_on[key] != data[key] for key in ("fractions", "group_by")):
        raise UserError(
            f"{config.init_from} was trained on the same folder split by "
            f"fractions={pretrained_on['fractions']}, "
            f"group_by={pretrained_on['group_by']!r}; another split would test on "
            "images that the backbone was trained on: give the same values"
        )
