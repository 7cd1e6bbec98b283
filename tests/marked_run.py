"""A small run that prints what it begins to do: `marked_run.py CACHE WORKDIR`."""

import sys

import jax
import small_runs

from experiments import launch
from fdftnet_jax import datasets
from fdftnet_jax.training import loop, steps
from fdftnet_jax.training.checkpoint import Checkpoints


def say(phase):
    print(phase, flush=True)


def marked(phase, function):
    def call(*arguments, **options):
        say(phase)
        return function(*arguments, **options)

    return call


def main():
    datasets.prepare = marked("prepare", datasets.prepare)
    Checkpoints.save = marked("save", Checkpoints.save)
    steps.evaluate = marked("evaluate", steps.evaluate)
    pmap_steps = steps.pmap_steps

    def marked_steps(task):
        train, evaluate = pmap_steps(task)
        return marked("train", train), evaluate

    steps.pmap_steps = marked_steps
    cache, workdir = sys.argv[1:]
    sys.argv[1:] = []
    say(f"start on {jax.device_count()}")
    launch.run(
        lambda: loop.train_and_evaluate(
            small_runs.config(cache, epochs=6, patience=6), workdir
        )
    )


if __name__ == "__main__":
    main()
