r"""Fine-tunes FDFtNet on the backbone of a pre-training run.

    python -m experiments.finetune --config=configs/finetune.py:squeezenet,folder \
        --config.data.dir=PATH --config.init_from=runs/base --workdir=runs/fdft

PATH holds real/ and fake/. Every field of training/defaults.py is a flag,
--config.NAME=VALUE. The same command goes on where it stopped.
"""

from experiments import launch

if __name__ == "__main__":
    launch.run_training("configs/finetune.py:squeezenet,toy")
