"""Where training starts: new weights, and a backbone from a run or a file."""

import dataclasses
import functools
import math
import os
import warnings
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections

from fdftnet_jax.data import preprocess, splits
from fdftnet_jax.errors import UserError
from fdftnet_jax.models import registry
from fdftnet_jax.paper_sets import sets
from fdftnet_jax.training.checkpoint import Checkpoints, check_fits
from fdftnet_jax.weights import pretrained


@dataclasses.dataclass(frozen=True)
class Start:
    """What a run begins with.

    Attributes:
      variant: of the backbone (see `registry.get_backbone`).
      scaling: of the images (see `preprocess.scale`).
      trained_on: every data set of ours that the backbone has seen, the latest first.
      weights: the file that the backbone comes from in the end (see
        `pretrained.WeightsInfo`), None where it was trained from new weights.
      backbone: its `params` and `batch_stats`, None for new ones.
      path: where the backbone was read.
    """

    variant: str = "keras"
    scaling: str = "minus_one_one"
    trained_on: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    weights: dict[str, Any] | None = None
    backbone: dict[str, Any] | None = None
    path: str = ""

    @classmethod
    def of(cls, meta: dict[str, Any], *, own: bool) -> "Start":
        """By a checkpoint's description, without its arrays.

        Args:
          meta: the description.
          own: whether the run goes on itself, or another starts from it.
        """
        return cls(
            variant=meta["model"]["variant"],
            scaling=meta["preprocessing"]["scaling"],
            trained_on=meta["trained_on"][1 if own else 0 :],
            weights=meta["weights"],
        )


def start(config: ml_collections.ConfigDict) -> Start:
    """Reads what `config.init_from` names: a run's workdir or a file of weights.

    Raises:
      UserError: there is no such run or file, it does not fit the config, or FDFtNet
        would be without a pre-trained backbone.
    """
    if not config.init_from:
        probe = config.model.kind == "linear" and config.trainable == "head"
        if config.model.kind == "fdftnet" or probe:
            raise UserError(
                "a head is trained on a pre-trained backbone: give the workdir of "
                "experiments.pretrain, or a file of weights, with "
                "--config.init_from=PATH"
            )
        found = Start()
    elif pretrained.is_weights_file(config.init_from):
        params, batch_stats, info = pretrained.load(
            os.path.abspath(config.init_from), config.model.backbone
        )
        found = Start(
            variant=info.variant,
            scaling=info.scaling,
            weights=dataclasses.asdict(info),
            backbone={"params": params, "batch_stats": batch_stats},
            path=config.init_from,
        )
    else:
        return _run(config)
    # The scaling of weights from elsewhere is what their kind expects; theirs may not.
    return dataclasses.replace(found, scaling=config.data.scaling or found.scaling)


def _run(config: ml_collections.ConfigDict) -> Start:
    with Checkpoints(config.init_from) as checkpoints:
        meta, variables = checkpoints.load_meta(), checkpoints.load_variables()
        latest = checkpoints.load_meta(checkpoints.latest)
    name = meta["model"]["backbone"]
    if name != config.model.backbone:
        raise UserError(
            f"{config.init_from} holds the backbone {name!r}, the config asks for "
            f"{config.model.backbone!r}: use the config of the same backbone"
        )
    trained = preprocess.Preprocessing.from_dict(meta["preprocessing"])
    wanted = preprocessing(config, config.data.scaling or trained.scaling)
    # The view is a new run's own choice.
    if (trained.size, trained.scaling) != (wanted.size, wanted.scaling):
        raise UserError(
            f"{config.init_from} was trained on {trained.to_dict()}, the config asks "
            f"for {wanted.to_dict()}: use the same size and scaling"
        )
    if not latest["progress"]["finished"]:
        warnings.warn(
            f"{config.init_from} has not finished: taking its best backbone so far",
            stacklevel=3,
        )
    for run in meta["trained_on"]:
        _check_same_splits(run, config)
    if meta["model"]["kind"] in registry.ON_BACKBONE:
        variables = {name: tree.get("backbone", {}) for name, tree in variables.items()}
    backbone = None if config.new_weights else variables
    return dataclasses.replace(
        Start.of(meta, own=False), backbone=backbone, path=config.init_from
    )


def preprocessing(
    config: ml_collections.ConfigDict, scaling: str
) -> preprocess.Preprocessing:
    """The record of how images become the input of the config's network."""
    return preprocess.Preprocessing(
        view=config.data.view,
        size=config.data.size,
        scaling=scaling,
        grid=config.data.crop_grid if config.data.view == "crops" else 1,
    )


def initialise(
    model: nn.Module,
    described: Mapping[str, Any],
    *,
    size: int,
    seed: int,
    start: Start,
) -> dict[str, Any]:
    """The network's initial `params` and `batch_stats`, on the host.

    Args:
      model: the network.
      described: what `registry.build` made it from.
      size: of the images, in pixels.
      seed: of the new weights.
      start: its backbone takes the place of a new one, without classification layers.

    Raises:
      UserError: the images are too small for the backbone, or that of `start` does not
        fit.
    """
    image = jnp.zeros((1, size, size, 3))
    rng = jax.random.key(seed)
    backbone = registry.get_backbone(described["backbone"], variant=start.variant)
    try:
        features, expected = jax.eval_shape(
            functools.partial(backbone.init_with_output, train=False), rng, image
        )
        left = math.prod(features.shape)
    # What shape errors raise when a layer is left without pixels.
    except (TypeError, ValueError, ZeroDivisionError):
        left = 0
    if left == 0:
        raise UserError(
            f"images of {size} pixels are too small for {described['backbone']}, no "
            "feature map is left: give a larger --config.data.size"
        )
    init = jax.jit(functools.partial(model.init, train=False))
    variables = {"batch_stats": {}} | jax.device_get(init(rng, image))
    if other := set(variables) - {"params", "batch_stats"}:
        raise UserError(
            f"{described['backbone']} has variables {sorted(other)}: expected only "
            "params and batch_stats, which are all that training keeps"
        )
    if start.backbone is not None:
        for collection, layers in expected.items():
            found = start.backbone[collection]
            found = {name: found[name] for name in found if name in layers}
            check_fits(found, layers, f"the backbone in {start.path}")
            tree = variables[collection]
            if described["kind"] in registry.ON_BACKBONE:
                tree = tree["backbone"]
            tree.update(found)
    return variables


def _check_same_splits(run: dict[str, Any], config: ml_collections.ConfigDict) -> None:
    """Two ways of splitting one folder would mix its splits."""
    if config.data.name == "toy":
        return
    if run["directory"] != splits.resolve(config.data.dir):
        return
    pretrained_on, data = run["data"], config.data.to_dict()
    if not sets.share_images(pretrained_on["name"], data["name"]):
        return
    if any(pretrained_on[key] != data[key] for key in ("fractions", "group_by")):
        raise UserError(
            f"{config.init_from} was trained on the same folder split by "
            f"fractions={pretrained_on['fractions']}, "
            f"group_by={pretrained_on['group_by']!r}; another split would test on "
            "images that the backbone was trained on: give the same values"
        )
