r"""Fits a probe of a backbone's features, the baseline that a fine-tuning has to beat.

    python -m experiments.finetune \
        --config=configs/feature_probe.py:efficientnet_lite0,folder \
        --config.data.dir=PATH --config.init_from=imagenet --workdir=runs/probe

The argument is `BACKBONE,DATA`. The mean and deviation of the frozen backbone's feature
maps of several depths are computed once, and kept; a logistic regression on them
follows, whose penalty is chosen by cross-validation in the training images. It takes
seconds.
"""

import ml_collections

from configs import finetune

# What differs from a fine-tuning; the features are those of the pictures as they are.
CHANGES = {
    "model.kind": "linear",
    "trainable": "head",
    "model.taps": True,
    "optimizer.name": "logistic",
    "optimizer.backbone_rate": 1.0,
    "release_epoch": 0,
    "epochs": 1,
    "augment.zoom": 0.0,
    "augment.rotation": 0.0,
    "augment.translation": 0,
    "augment.flip": False,
    "augment.cutout_alpha": 0,
    "augment.jpeg": 0.0,
    "augment.rescale": 0.0,
}


def get_config(argument: str = "squeezenet,toy") -> ml_collections.ConfigDict:
    """Returns the config of `BACKBONE,DATA`."""
    config = finetune.get_config(argument)
    config.update_from_flattened_dict(CHANGES)
    return config
