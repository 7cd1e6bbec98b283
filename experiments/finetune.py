"""Fine-tunes FDFtNet on a frozen backbone: `python -m experiments.finetune --help`."""

from experiments import launch

if __name__ == "__main__":
    launch.run_training("configs/finetune.py:squeezenet,toy")
