r"""Fits a probe of a backbone's features, the baseline that a fine-tuning has to beat.

    python -m experiments.finetune \
        --config=configs/feature_probe.py:efficientnet_lite0,folder \
        --config.data.dir=PATH --config.init_from=imagenet --workdir=runs/probe

The argument is `BACKBONE,DATA`. The mean and deviation of the frozen backbone's feature
maps of many depths are computed once, and kept; a logistic regression on them follows,
on those of windows of compressed and scaled versions of each picture, too. It takes
minutes.
"""

import ml_collections

from configs import finetune
from fdftnet_jax.training import defaults


def get_config(argument: str = "squeezenet,toy") -> ml_collections.ConfigDict:
    """Returns the config of `BACKBONE,DATA`."""
    config = finetune.get_config(argument)
    config.update_from_flattened_dict(defaults.probe(config.model.backbone))
    return config
