"""The demo: an old forgery, a new one, and 200 + 200 images to learn it from.

    python -m experiments.demo --seeds=3

SqueezeNet is pre-trained on `toy/upsampled`; FDFtNet is fine-tuned on `toy/blended`.
"""

import ml_collections

from configs import finetune, pretrain


def get_config() -> ml_collections.ConfigDict:
    """Returns the configs of both trainings, `pretrain` and `finetune`."""
    config = ml_collections.ConfigDict()
    config.pretrain = pretrain.get_config("squeezenet,toy")
    config.pretrain.data.family = "upsampled"
    config.pretrain.epochs = 6
    config.finetune = finetune.get_config("squeezenet,toy")
    config.finetune.data.family = "blended"
    config.finetune.data.shots = 200
    config.finetune.epochs = 30
    for data in (config.pretrain.data, config.finetune.data):
        data.toy_examples.train = 2000
        data.toy_examples.validation = 250
        data.toy_examples.test = 500
        data.toy_examples.finetune = 200
    return config
