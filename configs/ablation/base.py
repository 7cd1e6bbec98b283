"""The fields of an ablation: one thing varies, all else stays.

Each file beside this one says what varies. The backbone of a seed is pre-trained once
and shared by all values, and by all ablations in the same --workdir.
"""

import ml_collections

from configs import grid


def get_config(name: str, varies: str, values: str) -> ml_collections.ConfigDict:
    """Returns the fields.

    Args:
      name: of the ablation and its files.
      varies: the field of configs/base.py that varies in fine-tuning; several that vary
        together have a slash between them.
      values: comma list of its values, with the same slashes.
    """
    config = grid.get_config()
    config.seeds = 3
    config.backbone = "squeezenet"
    config.dataset = "toy"
    config.name = name
    config.varies = varies
    config.values = values
    # Comma list of what the values are called; '' is as they are given.
    config.names = ""
    # Under the axis, and above the column.
    config.label = varies
    # Whether the axis is logarithmic.
    config.log_axis = False
    return config
