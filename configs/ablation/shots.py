"""How many images of each class FDFtNet needs.

    python -m experiments.ablate --config=configs/ablation/shots.py

Six runs a seed, by estimate an hour on two CPU cores with the default 3 seeds. All
train for as many epochs, so fewer images mean fewer steps.
"""

import ml_collections

from configs.ablation import base


def get_config() -> ml_collections.ConfigDict:
    """Returns the config: 10 to 1,000 images a class; the paper has 1,000."""
    config = base.get_config("shots", "data.shots", "10,30,100,300,1000")
    config.label = "images of each class"
    config.log_axis = True
    return config
