"""The fields of an ablation: one thing varies, all else stays.

Each file beside this one says what varies. The backbone of a seed is pre-trained once
and shared by all values, and by all ablations in the same --workdir.
"""

import ml_collections

from configs import grid


def get_config(name: str, varies: str, levels: str) -> ml_collections.ConfigDict:
    """Returns the fields.

    Args:
      name: of the ablation and its files.
      varies: the field of training/defaults.py that varies in fine-tuning; several
        that vary together have a slash between them.
      levels: comma list of its values, with the same slashes.
    """
    config = grid.get_config()
    config.seeds = 3
    # One of each.
    config.backbone = "squeezenet"
    config.dataset = "toy"
    # Of the files that are written.
    config.name = name
    # A field of training/defaults.py for fine-tuning, or several with a slash between
    # them.
    config.varies = varies
    # Comma list of its values, with the same slashes.
    config.levels = levels
    # Comma list of what these are called; '' is as they are given.
    config.names = ""
    # Under the axis, and above the column.
    config.label = varies
    # Whether the axis is logarithmic.
    config.log_axis = False
    return config
