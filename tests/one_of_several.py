"""A small run as a command, which tells of the images that it reads.

`one_of_several.py CALL FLAGS`: before its batch of number CALL (0 for never) it is sent
a SIGTERM.
"""

import signal
import sys

import small_runs

from experiments import launch
from fdftnet_jax.training import feed


def main():
    stopped_in = int(sys.argv.pop(1))
    take, calls = feed.Feed.take, []

    def told(self, number):
        indices, batch = take(self, number)
        calls.append(1)
        print("batch", *indices.ravel(), flush=True)
        if len(calls) == stopped_in:
            signal.raise_signal(signal.SIGTERM)
        return indices, batch

    feed.Feed.take = told
    launch.run_training(f"configs/pretrain.py:{small_runs.BACKBONE},toy")


if __name__ == "__main__":
    main()
