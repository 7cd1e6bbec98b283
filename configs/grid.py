"""The fields that all grids of runs share: configs/table5.py, configs/ablation/."""

import ml_collections
from ml_collections import config_dict

from configs import base


def get_config() -> ml_collections.ConfigDict:
    """Returns them with their defaults."""
    config = ml_collections.ConfigDict()
    # Number of seeds: 0, 1, ...; from two on there is an interval.
    config.seeds = 1
    # 'default', or a third word of the argument of configs/finetune.py: 'paper', which
    # is one of configs/pretrain.py, too, or 'imagenet'.
    config.recipe = "default"
    # What replaces the values of configs/pretrain.py, of configs/finetune.py and of
    # both, whatever the backbone and the data: --config.finetune.epochs=2.
    config.pretrain = open_fields(base.get_config())
    config.finetune = open_fields(base.get_config())
    config.both = open_fields(base.get_config())
    # By data set, its folder, and N and Cutout's beta in place of those that
    # configs/finetune.py has for it.
    config.data = ml_collections.ConfigDict(
        {
            "toy": _settings(),
            "folder": _settings(),
            "pggan": _settings(),
            "deepfakes": _settings(),
            "face2face": _settings(),
            "dfd": _settings(),
        }
    )
    return config


def _settings():
    return {
        "dir": config_dict.placeholder(str),
        "num_blocks": config_dict.placeholder(int),
        "cutout_beta": config_dict.placeholder(int),
    }


def open_fields(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The same fields without values: None keeps what the run's config file says."""
    fields = ml_collections.ConfigDict()
    for name, value in config.items():
        if isinstance(value, ml_collections.ConfigDict):
            fields[name] = open_fields(value)
        else:
            fields[name] = config_dict.placeholder(type(value))
    return fields
