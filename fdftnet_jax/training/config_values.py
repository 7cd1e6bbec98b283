"""What the values of a run's config may be, checked before any work begins."""

import math
from collections.abc import Iterable
from typing import Any

import ml_collections

from fdftnet_jax import checks
from fdftnet_jax.data import images, preprocess, splits, toy
from fdftnet_jax.errors import UserError
from fdftnet_jax.models import fdftnet, registry
from fdftnet_jax.ops import residuals
from fdftnet_jax.paper_sets import faceforensics, sets
from fdftnet_jax.training import feed, freezing, optimizer

_RANGES: checks.Ranges = {
    "seed": (int, 0, 2**31 - 1),
    "batch_size": (int, 1, math.inf),
    "epochs": (int, 1, math.inf),
    "patience": (int, 1, math.inf),
    "steps_per_call": (int, 1, math.inf),
    "data.max_rejected": (float, 0, 1),
    **{f"data.limits.{split}": (int, 0, math.inf) for split in splits.SPLITS},
    "data.toy_seed": (int, 0, math.inf),
    "data.shots": (int, 0, math.inf),
    "data.size": (int, 1, math.inf),
    "data.train_size": (int, 0, math.inf),
    "data.memory_megabytes": (int, 0, math.inf),
    "data.device_megabytes": (int, 0, math.inf),
    "data.threads": (int, 0, math.inf),
    "data.crop_grid": (int, 1, 16),
    "data.replay": (int, 0, math.inf),
    "release_epoch": (int, 0, math.inf),
    "distillation": (float, 0, math.inf),
    "model.num_blocks": (int, 1, math.inf),
    "model.num_stages": (int, 0, 4),
    "model.first_stride": (int, 1, 2),
    "model.ftt_size": (int, 0, math.inf),
    "optimizer.learning_rate": (float, 0, math.inf),
    "optimizer.momentum": (float, 0, 1),
    "optimizer.weight_decay": (float, 0, math.inf),
    "optimizer.warmup_epochs": (float, 0, math.inf),
    "optimizer.clip_norm": (float, 0, math.inf),
    "optimizer.l2_sp": (float, 0, math.inf),
    "optimizer.backbone_rate": (float, 0, math.inf),
    "calibration.fpr": (float, 0, 1),
    "calibration.max_wrong": (float, 1e-6, 0.499999),
    "calibration.prior": (float, 0, 0.999),
    "augment.zoom": (float, 0, 0.99),
    "augment.rotation": (float, 0, 180),
    "augment.translation": (int, 0, math.inf),
    "augment.cutout_alpha": (int, 0, math.inf),
    "augment.cutout_beta": (int, 1, math.inf),
    "augment.jpeg": (float, 0, 1),
    "augment.blur": (float, 0, 1),
    "augment.rescale": (float, 0, 1),
}

# Field -> what it may be. Validation selects and test judges: neither may train.
_CHOICES: dict[str, Iterable[Any]] = {
    "data.name": ("folder", "toy", *sets.NAMES),
    "data.compression": faceforensics.COMPRESSIONS,
    "data.duplicates": ("error", "drop"),
    "data.family": ("both", *toy.FAMILIES),
    "data.train_split": ("train", "finetune"),
    "data.view": preprocess.VIEWS,
    "data.decoding": images.DECODINGS,
    "data.scaling": ("", *preprocess.SCALINGS),
    "model.kind": registry.KINDS,
    "model.ftt_view": fdftnet.VIEWS,
    "model.ftt_filter": ("", *residuals.FILTERS),
    "model.taps": (False, True),
    "model.block_taps": (False, True),
    "model.regression": (False, True),
    "class_balance": feed.BALANCES,
    "new_weights": (False, True),
    "init_heads": (False, True),
    "keep": ("best", "last"),
    "data.crop_mirror": (False, True),
    "trainable": freezing.PHASES,
    "optimizer.name": optimizer.NAMES,
    "dtype": registry.DTYPES,
    "calibration.rule": ("eer", "fpr", "band"),
    "augment.flip": (False, True),
}


def check(config: ml_collections.ConfigDict) -> None:
    """Raises UserError for values that no run can have.

    Args:
      config: all fields of `training/defaults.py`. (The rules on a folder's paths and
        the names of backbones are checked where they are used.)
    """
    checks.check(config, _RANGES, _CHOICES)
    if config.data.replay_dir and not config.data.replay:
        raise UserError(
            f"data.replay_dir is {config.data.replay_dir!r} with data.replay=0: "
            "expected a number of images per class; give for example "
            "--config.data.replay=200"
        )
    if config.distillation and not config.init_heads:
        raise UserError(
            f"distillation is {config.distillation} with init_heads=False: expected a "
            "network that judges already; give one with --config.init_from=PATH "
            "--config.init_heads=True"
        )
    if config.model.block_taps and not config.model.taps:
        raise UserError(
            "model.block_taps says which taps there are, and model.taps is False: "
            "expected --config.model.taps=True"
        )
    if config.model.regression and (
        config.model.kind != "fdftnet" or config.new_weights
    ):
        raise UserError(
            "model.regression is True, which is for FDFtNet on a backbone that was "
            f"trained before, with model.kind={config.model.kind!r} and new_weights="
            f"{config.new_weights}: expected --config.model.regression=False"
        )
    network = (config.model.kind, config.model.backbone)
    if config.data.train_size and network == ("classifier", "shallownetv3"):
        raise UserError(
            f"data.train_size is {config.data.train_size} with the classifier "
            "shallownetv3, whose dense layers fit images of one size alone: expected "
            "--config.data.train_size=0"
        )
    closed_form = config.optimizer.name == "logistic"
    frozen = config.trainable == "head" and not config.release_epoch
    frozen = frozen and config.epochs == 1
    if closed_form and not (config.model.kind == "linear" and frozen):
        raise UserError(
            "optimizer.name is 'logistic', which fits one dense layer on a frozen "
            "backbone without epochs: expected --config.model.kind=linear "
            "--config.trainable=head --config.release_epoch=0 --config.epochs=1"
        )
    of_backbone = {"l2_sp": 0, "backbone_rate": 1}
    for name, without in of_backbone.items():
        value = config.optimizer[name]
        if value != without and config.model.kind not in registry.ON_BACKBONE:
            kinds = " or ".join(registry.ON_BACKBONE)
            raise UserError(
                f"optimizer.{name} is {value} with model.kind={config.model.kind!r}, "
                f"which has no backbone below other layers: expected the kind {kinds}, "
                f"or --config.optimizer.{name}={without}"
            )
