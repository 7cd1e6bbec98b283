"""A small run that prints what it begins to do: `marked_run.py CACHE WORKDIR`."""

import sys

import jax
import small_runs

from experiments import launch
from fdftnet_jax import datasets
from fdftnet_jax.checkpoint import Checkpoints
from fdftnet_jax.training import loop, steps


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
    config = small_runs.marked_config(cache)
    launch.run(lambda: loop.train_and_evaluate(config, workdir))


if __name__ == "__main__":
    main()
