r"""Ways to adapt a pre-trained backbone to a new forgery, on the same data and budget.

    python -m experiments.compare --config=configs/compare.py:xception,folder \
        --config.old.dir=OLD --config.new.dir=NEW --workdir=runs/compare

The argument is `BACKBONE,DATA`. Without one it compares on the toy's two families with
SqueezeNet in 29 runs, by estimate two hours on two CPU cores. A backbone is pre-trained
on the old forgery for each seed; every method adapts it to the new one, with and
without replay of old images, and is scored on the test splits of both.
"""

import ml_collections

from configs import base, grid


def get_config(argument: str = "squeezenet,toy") -> ml_collections.ConfigDict:
    """Returns the config of `BACKBONE,DATA`."""
    model, _ = base.parse(argument)
    config = grid.get_config()
    config.backbone = model.model.backbone
    # What every method starts from: '' for a backbone that is pre-trained on the old
    # forgery, or published weights or a file of them, as `init_from` takes them. Then
    # the old forgery is known by replay alone, and nothing of it can be forgotten.
    config.start = ""
    # Method -> number of seeds; 0 leaves it out. The methods are those of
    # experiments/compare.py; `no_regression` is the default itself where that is not
    # the recipe from ImageNet's weights.
    del config.seeds
    config.seeds = ml_collections.ConfigDict(
        {
            "fdftnet": 3,
            "no_regression": 0,
            "full_finetune": 3,
            "paper": 3,
            "frozen": 1,
            "linear_probe": 1,
            "feature_probe": 1,
            "l2_sp": 1,
            "scratch": 1,
        }
    )
    # Replayed images of the old forgery, per class: a comma list, 0 for none.
    config.replays = "200,0"
    # Images of each class of the new forgery that the methods learn from, at most: a
    # comma list, and a figure shows what more of them are worth; '' for the number that
    # the config of each method has.
    config.shots = ""
    # Generators of the new forgery, with commas between them: each is held out of the
    # training in turn, by every method, and a second table says how it fares.
    config.hold_out = ""
    # The data of both forgeries: fields of the section `data` of training/defaults.py.
    config.old = grid.open_fields(base.get_config().data)
    config.new = grid.open_fields(base.get_config().data)
    config.old.name = config.new.name = model.data.name
    if model.data.name == "toy":
        config.old.family, config.new.family = "upsampled", "blended"
    else:
        # The new forgery has no pre-training.
        config.new.fractions.update(train=0.0, validation=0.15, test=0.35, finetune=0.5)
        config.old.fractions.update(train=0.6, validation=0.1, test=0.3, finetune=0.0)
    # The same budget for all methods: the length of the cosine schedule.
    config.pretrain.epochs = 15
    config.finetune.epochs = 20
    return config
