"""What Cutout brings: none, the paper's two settings, and one as strong as CIFAR's.

    python -m experiments.ablate --config=configs/ablation/cutout.py

Six runs a seed, by estimate 3 hours on two CPU cores with the default 3 seeds.
"""

import ml_collections

from configs.ablation import base


def get_config() -> ml_collections.ConfigDict:
    """Returns the config: (alpha, beta), 0..alpha squares of 4 * U{1..beta} pixels."""
    fields = "augment.cutout_alpha/augment.cutout_beta"
    config = base.get_config("cutout", fields, "0/5,1/5,3/5,3/10,5/16")
    config.names = "off,1 / 5,3 / 5,3 / 10,5 / 16"
    config.label = "Cutout, alpha / beta"
    return config
