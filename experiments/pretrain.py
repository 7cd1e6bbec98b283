"""Pre-trains a backbone: `python -m experiments.pretrain --help`."""

from experiments import launch

if __name__ == "__main__":
    launch.run_training("configs/pretrain.py:squeezenet,toy")
