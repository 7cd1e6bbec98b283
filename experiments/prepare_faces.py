"""Cuts faces out of videos, for training and evaluation.

    python -m experiments.prepare_faces --input=VIDEOS --output=CROPS

VIDEOS is a video or a folder of videos; `a/b/003.mp4` becomes `CROPS/a/b/003/` with
`<frame>_<face>.png`. Writes CROPS/manifest.csv, rejected.csv and preparation.json. The
same command goes on where it stopped; with other values it needs --replace. A CROPS
that holds other files is refused.
"""

from pathlib import Path

from absl import flags

from experiments import launch
from fdftnet_jax.errors import counted

_INPUT = flags.DEFINE_string("input", None, "A video, or a folder.", required=True)
_REPLACE = flags.DEFINE_bool(
    "replace", False, "Replace crops that were prepared with other values."
)
_OUTPUT = flags.DEFINE_string("output", None, "Folder of the crops.", required=True)


def main() -> None:
    """Prepares, and prints what came out."""
    from fdftnet_jax.faces import preparation

    found = preparation.prepare(
        flags.FLAGS.config, _INPUT.value, _OUTPUT.value, replace=_REPLACE.value
    )
    output = Path(_OUTPUT.value)
    again = f", {found.changed} of them again (changed)" if found.changed else ""
    reasons = ", ".join(
        f"{number} {reason}" for reason, number in found.rejected.items()
    )
    print(
        f"{counted(found.videos, 'video')}: {found.new} prepared "
        f"now{again}, {found.videos - found.new - found.unreadable} before, "
        f"{found.unreadable} unreadable; {found.seconds:.1f} s\n"
        f"  crops     {found.crops}, listed in {output / 'manifest.csv'}\n"
        f"  rejected  {reasons or 'nothing'}, listed in {output / 'rejected.csv'}"
    )
    if found.left_aside:
        number = counted(sum(found.left_aside.values()), "file")
        suffixes = ", ".join(
            f"{count} {suffix or 'without a suffix'}"
            for suffix, count in found.left_aside.items()
        )
        print(f"  no videos {number} left aside: {suffixes}")
    print(f"train on them:\n  {_training(output)}")


def _training(output: Path) -> str:
    """Command that trains on the crops."""
    if all((output / name).is_dir() for name in ("real", "fake")):
        return (
            "python -m experiments.pretrain "
            "--config=configs/pretrain.py:squeezenet,folder "
            f"--config.data.dir={output} --config.data.group_by=folder "
            "--workdir=runs/base"
        )
    return (
        f"experiments.pretrain and experiments.finetune, --config.data.dir={output}, "
        "where it is a data set that they know, such as a folder of real/ and fake/"
    )


if __name__ == "__main__":
    launch.run(main, "configs/prepare_faces.py", fields="configs/prepare_faces.py")
