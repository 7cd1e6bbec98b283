r"""Pre-trains a backbone with its own top.

    python -m experiments.pretrain --config=configs/pretrain.py:squeezenet,folder \
        --config.data.dir=PATH --workdir=runs/base

PATH holds real/ and fake/. Every field of training/defaults.py is a flag,
--config.NAME=VALUE. The same command goes on where it stopped.
"""

from experiments import launch

if __name__ == "__main__":
    launch.run_training("configs/pretrain.py:squeezenet,toy")
