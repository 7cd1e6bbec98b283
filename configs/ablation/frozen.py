"""Whether the backbone should be frozen while FDFtNet is fine-tuned.

    python -m experiments.ablate --config=configs/ablation/frozen.py

Four runs a seed, by estimate 2 hours on two CPU cores with the default 3 seeds. All are
fine-tuned at the same learning rate.
"""

import ml_collections

from configs.ablation import base


def get_config() -> ml_collections.ConfigDict:
    """Returns the config: frozen as in the paper, trained late, or from the start."""
    levels = "head/0,head/20,all/0"
    config = base.get_config("frozen", "trainable/release_epoch", levels)
    config.names = "frozen,trained from epoch 20,trained"
    config.label = "backbone"
    return config
