"""The arguments of `fdftnet predict`. Imports nothing heavy: help is instant."""

import argparse
import dataclasses

_DESCRIPTION = """\
Says of pictures and videos whether they show a real or a fake face, or why it
cannot be said. Prints a line for each input; --csv and --json keep all that is
known.
"""

_EPILOG = """\
A picture with several faces is as fake as the face that looks most so; a video
as the person who does. With --csv and --json, a row for each of them follows
that of the input. An input that cannot be judged is 'undecided', with a reason:
no face was found, the face is too small, the file is damaged. It has no score.

An output that exists is refused unless --replace is given, and one that is also
an input always. In CSV and JSON a path is written as it is, in UTF-8. One that
is not UTF-8 is its file: address, with its bytes as %NN; a relative one that
begins with = + - @ or file: gets ./ in front. Other text of CSV that begins
with = + - @ gets an apostrophe, so that no spreadsheet takes it for a formula.

exit code: 0, also where some inputs are undecided; 3 where all are; 2 for a
mistake in the command; 130 after Ctrl-C.
"""


@dataclasses.dataclass(frozen=True)
class Options:
    """What the command was given; see its help."""

    detector: str
    paths: list[str]
    csv: str | None = None
    json: str | None = None
    faces: str = "auto"
    threshold: float | None = None
    workers: int = 0
    plots: str | None = None
    explain: str | None = None
    replace: bool = False
    null: bool = False
    recursive: bool = False
    program: bool = False
    debug: bool = False


def add_predict(subparsers) -> None:
    """Adds `predict` to the commands; its `run` takes the arguments.

    `run` returns the exit code, and raises UserError and Interrupted.
    """
    parser = subparsers.add_parser(
        "predict",
        help="say of pictures and videos whether they are real or fake",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("detector", help="file of `fdftnet export`, or 'toy'")
    parser.add_argument(
        "paths",
        nargs="+",
        metavar="PATH",
        help="image, video, folder (with all below it), pattern such as 'a/**/*.jpg', "
        "or - for a list on standard input, a file a line",
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--csv", metavar="F", help="write the rows to F instead (- is standard output)"
    )
    where.add_argument(
        "--json",
        metavar="F",
        help="the same as one JSON document, with what they rest on",
    )
    parser.add_argument(
        "--faces",
        choices=("auto", "whole", "crop"),
        default="auto",
        help="crop: find the faces and score each; whole: score the picture as it is; "
        "auto (default): as the detector was trained",
    )
    parser.add_argument(
        "--threshold",
        type=float,
        metavar="T",
        help="fake from this probability on: the calibrated one, or the raw score of a "
        "detector that is not calibrated (default: the detector's own)",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=0,
        metavar="N",
        help="threads that read files (default: one for each core)",
    )
    parser.add_argument(
        "--plots", metavar="DIR", help="draw the timeline of each video into DIR"
    )
    parser.add_argument(
        "--explain",
        metavar="DIR",
        help="draw what the network looks at, of each image, into DIR",
    )
    parser.add_argument(
        "--replace",
        action="store_true",
        help="replace outputs that exist (never an input, nor a folder with other "
        "files)",
    )
    parser.add_argument(
        "--null",
        action="store_true",
        help="the list on standard input has a NUL after each name (find -print0)",
    )
    parser.add_argument(
        "--recursive",
        action="store_true",
        help="the list on standard input may name folders, for all that is below them",
    )
    parser.add_argument(
        "--program",
        action="store_true",
        help="run the program in the detector's file, not the package's network: for a "
        "backbone of your own, or another version; only files that you trust",
    )
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from fdftnet_jax.prediction import run

    names = [field.name for field in dataclasses.fields(Options)]
    return run.predict(Options(**{name: getattr(arguments, name) for name in names}))
