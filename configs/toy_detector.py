"""The detector that the package carries, `fdftnet predict toy`.

    python -m experiments.make_toy_detector

SqueezeNet is pre-trained on both families of toy forgeries, and FDFtNet is fine-tuned
on it, with one block. Stored as float16, all of it takes 3 MB.
"""

import ml_collections

from configs import finetune, pretrain


def get_config() -> ml_collections.ConfigDict:
    """Returns the configs of both trainings, `pretrain` and `finetune`."""
    config = ml_collections.ConfigDict()
    config.pretrain = pretrain.get_config("squeezenet,toy")
    config.pretrain.epochs = 6
    config.finetune = finetune.get_config("squeezenet,toy")
    config.finetune.model.num_blocks = 1
    config.finetune.epochs = 8
    # Both trainings see the same forgeries: there is no older one to mix in.
    config.finetune.data.replay = 0
    for data in (config.pretrain.data, config.finetune.data):
        data.family = "both"
        data.toy_examples.train = 2000
        data.toy_examples.validation = 250
        data.toy_examples.test = 500
        data.toy_examples.finetune = 1000
    return config
