"""How many stages the Fine-Tune Transformer needs.

    python -m experiments.ablate --config=configs/ablation/stages.py

Six runs a seed, by estimate 3 hours on two CPU cores with the default 3 seeds.
"""

import ml_collections

from configs.ablation import base


def get_config() -> ml_collections.ConfigDict:
    """Returns the config: M from none to 4; the paper has 3."""
    config = base.get_config("stages", "model.num_stages", "0,1,2,3,4")
    config.label = "M, stages of the Fine-Tune Transformer"
    return config
