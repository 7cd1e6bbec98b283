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
import numpy as np

from fdftnet_jax import checkpoint
from fdftnet_jax.data import caches, preprocess, splits
from fdftnet_jax.detector import file, network
from fdftnet_jax.errors import UserError
from fdftnet_jax.models import registry
from fdftnet_jax.records import CheckpointRecord, Lineage, TrainedOn
from fdftnet_jax.run import Run
from fdftnet_jax.weights import pretrained, published

# Fields of `config.data` that deal the images of a folder to its splits.
_OF_SPLITS = ("fractions", "group_by")


@dataclasses.dataclass(frozen=True)
class Start:
    """Start of a run: its backbone, and what that has seen.

    Attributes:
      variant: of the backbone (see `registry.get_backbone`).
      scaling: of the images (see `preprocess.scale`).
      lineage: every data set of ours that the backbone has seen.
      weights: the file that the backbone comes from in the end, None where it was
        trained from new weights.
      backbone: its `params` and `batch_stats`, None for new ones.
      heads: those of the whole network, None where only the backbone is taken.
      path: where the backbone was read.
    """

    variant: str = ""
    scaling: str = "minus_one_one"
    lineage: Lineage = dataclasses.field(default_factory=Lineage)
    weights: pretrained.WeightsInfo | None = None
    backbone: dict[str, Any] | None = None
    heads: dict[str, Any] | None = None
    path: str = ""

    @classmethod
    def of(cls, record: CheckpointRecord) -> "Start":
        """Start of another run, from this checkpoint."""
        return cls(
            variant=record.model["variant"],
            scaling=record.preprocessing.scaling,
            lineage=record.lineage,
            weights=record.weights,
        )

    @classmethod
    def resumed(cls, record: CheckpointRecord) -> "Start":
        """Start of this checkpoint's own run, without the arrays."""
        return dataclasses.replace(cls.of(record), lineage=record.lineage.before)


def start(config: ml_collections.ConfigDict) -> Start:
    """Reads what `config.init_from` names: a run, a detector, or a file of weights.

    Raises:
      UserError: there is no such run or file, it does not fit the config, or FDFtNet
        would be without a pre-trained backbone.
    """
    by_name = config.init_from in published.NAMES and not os.path.exists(
        config.init_from
    )
    if not config.init_from:
        probe = config.model.kind == "linear" and config.trainable == "head"
        if config.model.kind == "fdftnet" or probe:
            raise UserError(
                "a head is trained on a pre-trained backbone: give the workdir of "
                "experiments.pretrain, or a file of weights, with "
                "--config.init_from=PATH, or published weights by name, such as "
                "--config.init_from=imagenet"
            )
        found = Start()
    elif file.is_detector(config.init_from):
        return _detector(config)
    elif by_name or pretrained.is_weights_file(config.init_from):
        path = os.path.abspath(config.init_from)
        if by_name:
            cache = caches.cache_dir(config.data.cache_dir)
            path = published.path_of(config.init_from, config.model.backbone, cache)
        params, batch_stats, info = pretrained.load(path, config.model.backbone)
        found = Start(
            variant=info.variant,
            scaling=info.scaling,
            weights=info,
            backbone={"params": params, "batch_stats": batch_stats},
            path=config.init_from,
        )
    else:
        return _run(config)
    if config.init_heads:
        raise UserError(
            f"init_heads takes all layers of a network, and {config.init_from!r} is no "
            "run and no detector: give one with --config.init_from=PATH"
        )
    # The scaling of weights from elsewhere is what their kind expects; theirs may not.
    return dataclasses.replace(found, scaling=config.data.scaling or found.scaling)


def _run(config: ml_collections.ConfigDict) -> Start:
    with Run(config.init_from) as run:
        record, variables, latest = run.best, run.variables, run.latest()
    if latest is not None and not latest.progress.finished:
        warnings.warn(
            f"{config.init_from} has not finished: taking its best backbone so far",
            stacklevel=3,
        )
    for data_set in record.lineage:
        _check_same_splits(data_set, config)
    start = Start.of(record)
    return _trained(config, start, record.model, record.preprocessing, variables)


def _detector(config: ml_collections.ConfigDict) -> Start:
    contents = file.read(config.init_from)
    try:
        card = contents.card
        arrays = {
            name: array.astype(np.float32)
            for name, array in contents.arrays.items()
            if name.startswith(("params/", "batch_stats/"))
        }
        start = Start(
            variant=card["model"].get("variant", ""),
            scaling=card["preprocessing"]["scaling"],
            lineage=Lineage(
                tuple(
                    TrainedOn.of_card(of, card["config"]["data"], card["faces"])
                    for of in card["trained_on"]
                )
            ),
            weights=card["weights"]
            and pretrained.WeightsInfo.from_dict(card["weights"]),
        )
        trained = preprocess.Preprocessing.from_dict(card["preprocessing"])
        variables = network.nested(arrays)
        return _trained(config, start, card["model"], trained, variables)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise file.tampered(config.init_from, error) from error


def _trained(
    config: ml_collections.ConfigDict,
    start: Start,
    model: Mapping[str, Any],
    trained: preprocess.Preprocessing,
    variables: dict[str, Any],
) -> Start:
    """The start with the weights of a trained network, as far as the config takes them.

    Args:
      config: of the new run.
      start: what is known of the network.
      model: what it was made from.
      trained: its preprocessing.
      variables: its `params` and `batch_stats`.

    Raises:
      UserError: the config asks for something else.
    """
    name = model["backbone"]
    if name != config.model.backbone:
        raise UserError(
            f"{config.init_from} holds the backbone {name!r}, the config asks for "
            f"{config.model.backbone!r}: use the config of the same backbone"
        )
    # View, decoding and size are a new run's own choice.
    if config.data.scaling not in ("", trained.scaling):
        raise UserError(
            f"{config.init_from} was trained on images scaled as {trained.scaling!r}, "
            f"the config asks for {config.data.scaling!r}: leave data.scaling out"
        )
    if config.data.size != trained.size:
        warnings.warn(
            f"{config.init_from} was trained at {trained.size}x{trained.size} pixels, "
            f"this run takes {config.data.size}x{config.data.size}",
            stacklevel=4,
        )
    backbone = variables
    if model["kind"] in registry.ON_BACKBONE:
        backbone = {part: tree.get("backbone", {}) for part, tree in variables.items()}
    heads = None
    if config.init_heads and config.model.regression and not model.get("regression"):
        raise UserError(
            f"{config.init_from} has no regression beside its network, and init_heads "
            "takes all layers of it: give --config.model.regression=False"
        )
    if config.init_heads:
        # Its regression may be left out, which the rest does not depend on.
        heads = {
            part: {
                name: layers
                for name, layers in tree.items()
                if name != "regression" or config.model.regression
            }
            for part, tree in variables.items()
        }
    return dataclasses.replace(
        start,
        backbone=None if config.new_weights else backbone,
        heads=heads,
        path=config.init_from,
    )


def preprocessing(
    config: ml_collections.ConfigDict, scaling: str
) -> preprocess.Preprocessing:
    """The record of how images become the input of the config's network."""
    of_crops = {
        "grid": config.data.crop_grid,
        "mirror": config.data.crop_mirror,
        "train_size": config.data.train_size,
    }
    return preprocess.Preprocessing(
        view=config.data.view,
        size=config.data.size,
        scaling=scaling,
        decoding=config.data.decoding,
        **(of_crops if config.data.view == "crops" else {}),
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
    if start.heads is not None:
        for collection, tree in variables.items():
            found = start.heads.get(collection, {})
            checkpoint.check_fits(found, tree, f"the network in {start.path}")
            variables[collection] = found
    elif start.backbone is not None:
        for collection, layers in expected.items():
            found = start.backbone[collection]
            found = {name: found[name] for name in found if name in layers}
            checkpoint.check_fits(found, layers, f"the backbone in {start.path}")
            tree = variables[collection]
            if described["kind"] in registry.ON_BACKBONE:
                # Beside FDFtNet it stays as it is here.
                if "regression" in tree:
                    tree["regression"]["backbone"].update(found)
                tree = tree["backbone"]
            tree.update(found)
    return variables


def _check_same_splits(run: TrainedOn, config: ml_collections.ConfigDict) -> None:
    """Raises UserError where the same folder would be split in another way."""
    if config.data.name == "toy":
        return
    if not run.shares_images(splits.resolve(config.data.dir), config.data.name):
        return
    if any(run.data[key] != config.data.to_dict()[key] for key in _OF_SPLITS):
        raise UserError(
            f"{config.init_from} was trained on the same folder split by "
            f"fractions={run.data['fractions']}, "
            f"group_by={run.data['group_by']!r}; another split would test on "
            "images that the backbone was trained on: give the same values"
        )
