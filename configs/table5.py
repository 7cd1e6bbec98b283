r"""Table 5 of the paper, or a part of it.

    python -m experiments.table5 --config=configs/table5.py

Four backbones on the toy with one seed, eight runs, by estimate 3 hours on two CPU
cores, a quarter of one with `--config.backbones=squeezenet`. The paper's own case needs
its data and GPUs:

    python -m experiments.table5 --config=configs/table5.py --config.recipe=paper \
        --config.datasets=pggan,deepfakes,face2face --config.seeds=3 \
        --config.data.pggan.dir=PATH --config.data.deepfakes.dir=PATH \
        --config.data.face2face.dir=PATH

Every field of training/defaults.py can be set, for one phase
(--config.pretrain.NAME=VALUE, --config.finetune.NAME=VALUE) or for both
(--config.both.NAME=VALUE).
"""

import ml_collections

from configs import grid


def get_config() -> ml_collections.ConfigDict:
    """Returns the fields of the grid."""
    config = grid.get_config()
    # Comma lists: every backbone on every data set. Both families of the toy at once.
    config.backbones = "squeezenet,shallownetv3,resnet50v2,xception"
    config.datasets = "toy"
    return config
