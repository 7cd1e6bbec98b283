"""Whether the backbone should be frozen while FDFtNet is fine-tuned.

    python -m experiments.ablate --config=configs/ablation/frozen.py

Four runs a seed, by estimate 2 hours on two CPU cores with the default 3 seeds. A
backbone that is trained has a fifth of the learning rate.
"""

import ml_collections

from configs.ablation import base


def get_config() -> ml_collections.ConfigDict:
    """Returns the config: frozen (the paper), released (default), or never frozen."""
    levels = "head/0,head/2,all/0"
    config = base.get_config("frozen", "trainable/release_epoch", levels)
    config.names = "frozen,released after 2 epochs,trained"
    config.label = "backbone"
    return config
