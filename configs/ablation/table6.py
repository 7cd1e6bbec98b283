r"""Table 6 of the paper: FDFtNet with and without its Fine-Tune Transformer.

    python -m experiments.ablate --config=configs/ablation/table6.py \
        --config.dataset=deepfakes --config.data.deepfakes.dir=PATH \
        --config.recipe=paper

That is the paper's case. Without these options it is Xception on the toy, three runs a
seed, by estimate 3.5 hours on two CPU cores with the default 3 seeds.
"""

import ml_collections

from configs.ablation import base


def get_config() -> ml_collections.ConfigDict:
    """Returns the config: M is 0 or 3."""
    config = base.get_config("table6", "model.num_stages", "0,3")
    config.backbone = "xception"
    config.names = "without FTT,with FTT"
    config.label = "Fine-Tune Transformer"
    return config
