"""A command that waits at dark frames: `waiting_run.py INPUT OUTPUT`."""

import sys

import drawn_videos
import face_crop_runs

from experiments import launch
from fdftnet_jax.faces import preparation


def main():
    source, output = sys.argv[1:]
    sys.argv[1:] = []
    launch.run(
        lambda: preparation.prepare(
            face_crop_runs.crop_config(),
            source,
            output,
            {"stub": drawn_videos.Waiting},
        )
    )


if __name__ == "__main__":
    main()
