r"""Table 5 of the paper, or a part of it.

python -m experiments.table5 --config=configs/table5.py

python -m experiments.table5 --config.backbones=xception --config.recipe=paper \
        --config.datasets=pggan,deepfakes --config.data.pggan.dir=PATH \
        --config.data.deepfakes.dir=PATH --workdir=runs/xception
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
