"""Pre-trains a backbone with its own top on the old forgery.

    python -m experiments.pretrain --config=configs/pretrain.py:squeezenet,folder \
        --config.data.dir=PATH --workdir=runs/base

The argument is `BACKBONE,DATA[,paper]`. The defaults warm up to a learning rate at
which all backbones train, clip the gradient, and run for at most 60 epochs of batches
of 32; `paper` follows section 4.1 to the letter.
"""

import ml_collections

from configs import base


def get_config(argument: str = "squeezenet,toy") -> ml_collections.ConfigDict:
    """Returns the config of `BACKBONE,DATA[,paper]`."""
    config, recipe = base.parse(argument)
    config.model.kind = "classifier"
    config.trainable = "all"
    config.data.train_split = "train"
    if not recipe:
        config.optimizer.learning_rate = 0.03
        config.optimizer.warmup_epochs = 2.0
        config.optimizer.clip_norm = 1.0
        config.batch_size = 32
        config.epochs = 60
    return config
