"""How many MBblockV3 FDFtNet needs on the backbone's features.

    python -m experiments.ablate --config=configs/ablation/blocks.py

Five runs a seed, by estimate 2.5 hours on two CPU cores with the default 3 seeds.
"""

import ml_collections

from configs.ablation import base


def get_config() -> ml_collections.ConfigDict:
    """Returns the config: N from 1 to 4; the paper has 2 (PGGAN) and 4."""
    config = base.get_config("blocks", "model.num_blocks", "1,2,3,4")
    config.label = "N, MBblockV3 on the backbone"
    return config
