"""Whether the backbone should be frozen while FDFtNet is fine-tuned.

    python -m experiments.ablate --config=configs/ablation/frozen.py

Three runs a seed, about 1.5 hours on two CPU cores with the default 3 seeds. Both
are fine-tuned at the same learning rate.
"""

import ml_collections

from configs.ablation import base


def get_config() -> ml_collections.ConfigDict:
    """Returns the config: the backbone is frozen, as in the paper, or trained too."""
    config = base.get_config("frozen", "trainable", "head,all")
    config.names = "frozen,trained"
    config.label = "backbone"
    return config
