"""Fine-tunes FDFtNet on a pre-trained backbone with a few shots per class of a forgery.

    python -m experiments.finetune --config=configs/finetune.py:squeezenet,folder \
        --config.data.dir=PATH --config.init_from=runs/base --workdir=runs/fdft

The argument is `BACKBONE,DATA[,RECIPE]`. Without a recipe the defaults differ from
section 4.1 in learning rate, warm-up, batch and length; the backbone is frozen for two
epochs and then trained at a fifth of the learning rate; and images of the old forgery
are mixed in. `paper` follows section 4.1 to the letter. `imagenet` starts from the
weights of that name and trains all of the network on windows at native resolution; it
is what `efficientnet_lite0` does by default on photographs.

N and Cutout are those of the data set: `deepfakes`, `face2face` and `dfd` have N = 4
and beta = 10; `pggan` and all others beta = 5 and, with `paper`, N = 2.
"""

import ml_collections

from configs import base
from fdftnet_jax.training import defaults


def get_config(argument: str = "squeezenet,toy") -> ml_collections.ConfigDict:
    """Returns the config of `BACKBONE,DATA[,RECIPE]`."""
    config, recipe = base.parse(argument, ("paper", "imagenet"))
    config.model.kind = "fdftnet"
    config.trainable = "head"
    config.data.train_split = "finetune"
    config.data.shots = 1000
    config.augment.zoom = 0.2
    config.augment.rotation = 0.2
    config.augment.translation = 2
    config.augment.flip = True
    config.augment.cutout_alpha = 3
    videos = config.data.name in ("deepfakes", "face2face", "dfd")
    config.augment.cutout_beta = 10 if videos else 5
    if recipe == "paper":
        config.model.num_blocks = 4 if videos else 2
    else:
        config.optimizer.learning_rate = 0.05
        config.optimizer.warmup_epochs = 2.0
        config.optimizer.clip_norm = 1.0
        config.release_epoch = 2
        config.optimizer.backbone_rate = 0.2
        config.data.replay = 200
        config.batch_size = 32
        config.epochs = 60
        photographs = config.data.name != "toy"
        if recipe or (config.model.backbone == "efficientnet_lite0" and photographs):
            config.update_from_flattened_dict(defaults.FROM_IMAGENET)
    if config.model.backbone == "vit":
        # What its positions were trained for, or near it.
        config.data.size = 224
        config.data.train_size = 0
    return config
