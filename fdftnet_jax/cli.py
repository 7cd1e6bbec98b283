"""The command `fdftnet`: its arguments, and what it does with them.

Imports nothing heavy: help is instant.
"""

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import fdftnet_jax
from fdftnet_jax import launch

_ADAPT = """\
Makes a detector of a new forgery from a folder of real pictures and one of
forged ones. The pictures are split: 70 % are learned from, 15 % set the
threshold, 15 % test it once. With fewer than 400 of a class to learn from, a
regression on what a network of many photographs sees is fitted, in minutes;
with more, that network is trained, with FDFtNet's branches, and what the
regression says is added. Pictures of one kind are what it learns: real and
forged ones should differ in nothing but the forgery, not in size, format or
source.

Where a detector got pictures wrong, --corrections teaches it: give the CSV file
that `fdftnet predict --csv` wrote with one more column, label, in which you
wrote real or fake beside the mistakes; or a folder with copies in real/ and
fake/. All of them are trained on, each up to ten times in an epoch, all
together at most a tenth as often as the other pictures. They need others beside
them: --old, --real and --fake, or all three.
"""

_ADAPT_EPILOG = """\
AUROC is the share of all pairs of a real and a fake picture in which the fake
one has the higher score: 1 is perfect, 0.5 is chance. Pictures are called fake
from the threshold on at which as many real ones of validation are called fake
as fake ones real. Loss and accuracy of an epoch are those of one window in the
middle of each validation picture; the test takes all of a picture. The report
beside F says the rest. With --old and a detector to start from, an old forgery
that may have been forgotten beyond --max-forgetting keeps the file from being
written. Without --old, what a detector said before holds it: some of what it
knew stays. Where a regression would be replaced by a network (400 pictures or
more, --method fdftnet, --epochs), or a network by a regression, --old has to be
given.

Ctrl-C stops; the same command goes on. On two CPU cores 1,500 pictures of
256x256 take a quarter of an hour or more, by --method probe three minutes; 200
take about a minute.

exit code: 0; 4 where no file was written, for what was forgotten; 2 for a
mistake in the command; 130 after Ctrl-C.
"""

_CHECK = """\
Tests a detector on sets of pictures. Where its file states how well it did on
the same pictures, by its latest adaptation that tested them, a loss is told.
"""

_CHECK_EPILOG = """\
Of each SET the pictures are scored that `fdftnet adapt` tests and never trains
on: 15 % of them, chosen by their pixels, wherever they lie. AUROC is the share
of all pairs of a real and a fake picture in which the fake one has the higher
score.

exit code: 0; 4 where a detector does worse than its file states; 2 for a
mistake in the command.
"""

_PREDICT = """\
Says of pictures and videos whether they show a real or a fake face, or why it
cannot be said. Prints a line for each input; --csv and --json keep all that is
known.
"""

_PREDICT_EPILOG = """\
A picture with several faces is as fake as the face that looks most so. A video
is as fake as the person who does, by the mean logit over the frames; deviation
is the standard deviation of these logits. With --csv and --json, a row for each
face or person follows that of the input. An input that cannot be judged is
'undecided', with a reason: no face was found, the face is too small, the file
is damaged. It has no score. With a detector that has two thresholds, what has a
score between them is 'undecided' too, as it is too close to call.

An output that exists is refused unless --replace is given, and one that is also
an input always. In CSV and JSON a path is written as it is, in UTF-8. One that
is not UTF-8 is its file: address, with its bytes as %NN; a relative one that
begins with = + - @ or file: gets ./ in front. Other text of CSV that begins
with = + - @ gets an apostrophe, so that no spreadsheet takes it for a formula.

exit code: 0, also where some inputs are undecided; 3 where none could be
judged; 2 for a mistake in the command; 130 after Ctrl-C.
"""

_SERVE = """\
Judges pictures and videos in the browser, and for programs over HTTP. They are
sent to this machine alone, and deleted as soon as they are judged.
"""

_SERVE_EPILOG = """\
The page takes pictures that are dropped, chosen or pasted. POST /v1/predict
answers with what `fdftnet predict --json` writes; /openapi.json describes it.
Only this machine reaches the server. Another --host lets others in, in plain
HTTP, and demands a token; FDFTNET_TOKEN may hold it instead of --token, which
other users of the machine can see.

exit code: 130 after Ctrl-C, which ends it; 2 for a mistake in the command.
"""


class _Parser(argparse.ArgumentParser):
    """Says in one line what is wrong with the arguments."""

    def error(self, message: str) -> NoReturn:
        launch.fail(f"{message}; see {self.prog} --help")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
      argv: the arguments; None takes those of the process.

    Returns:
      The exit code (see `launch`).
    """
    launch.start(after_signal="begins again")
    arguments = parser().parse_args(argv)
    return launch.finish(
        lambda: arguments.run(arguments), debug=arguments.debug, traceback=False
    )


def parser() -> argparse.ArgumentParser:
    """Builds the parser; `run` of what it parses takes that and returns a code."""
    parser = _Parser(
        prog="fdftnet",
        description="Tells real faces from forged ones, with a detector that "
        "experiments.pretrain or experiments.finetune has trained.",
        epilog="fdftnet COMMAND --help says more. Try: fdftnet predict toy FILE",
    )
    parser.add_argument(
        "--version", action="version", version=f"%(prog)s {fdftnet_jax.__version__}"
    )
    subparsers = parser.add_subparsers(
        title="commands", metavar="COMMAND", required=True, parser_class=_Parser
    )
    _add_adapt(subparsers)
    _add_predict(subparsers)
    _add_serve(subparsers)
    _add_export(subparsers)
    _add_show(subparsers)
    _add_check(subparsers)
    for command in subparsers.choices.values():
        command.add_argument(
            "--debug", action="store_true", help="show the traceback of an error"
        )
    return parser


def _add_adapt(subparsers) -> None:
    parser = subparsers.add_parser(
        "adapt",
        help="make a detector of a new forgery from two folders of pictures",
        description=_ADAPT,
        epilog=_ADAPT_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--real", default="", metavar="DIR", help="folder of real pictures"
    )
    parser.add_argument(
        "--fake", default="", metavar="DIR", help="folder of forged pictures"
    )
    parser.add_argument(
        "--corrections",
        default="",
        metavar="C",
        help="CSV file of predict with a column label, or a folder with real/ or fake/",
    )
    parser.add_argument(
        "--out", required=True, metavar="F", help="file to write: face.safetensors"
    )
    parser.add_argument(
        "--from",
        dest="start",
        default="imagenet",
        metavar="START",
        help="a detector's file, the workdir of a run, or imagenet (default): "
        "EfficientNet-Lite0 with the weights of its authors",
    )
    parser.add_argument(
        "--old",
        action="append",
        default=[],
        metavar="DIR",
        help="folder with real/ and fake/ of a forgery that must stay known: a part of "
        "it is mixed in, another is tested; can be given several times",
    )
    parser.add_argument(
        "--faces",
        choices=("auto", "whole", "crop"),
        default="auto",
        help="crop: cut the faces out of pictures and videos first; whole: take "
        "pictures as they are; auto (default): as the detector of --from works, "
        "without one crop where there are videos",
    )
    parser.add_argument(
        "--group-by",
        default="picture",
        metavar="RULE",
        help="what must not be split apart, such as the pictures of a person: picture "
        "(default), folder (those of one folder), or a regular expression whose first "
        "group, found in the path below DIR, names it",
    )
    parser.add_argument(
        "--max-forgetting",
        type=_share,
        default=0.02,
        metavar="X",
        help="the largest loss of AUROC on each --old (default: 0.02), by the upper "
        "end of its 95 %% interval",
    )
    parser.add_argument(
        "--max-wrong",
        type=_less_than_half,
        metavar="X",
        help="leave pictures that are too close to call undecided, as few as keep the "
        "wrong verdicts among the others, on validation pictures, within this share, "
        "such as 0.02 (default: decide all)",
    )
    parser.add_argument(
        "--force", action="store_true", help="write the file though more was forgotten"
    )
    parser.add_argument(
        "--workdir",
        default="",
        metavar="DIR",
        help="keep the run here (default: cache)",
    )
    parser.add_argument(
        "--method",
        choices=("auto", "probe", "fdftnet"),
        default="auto",
        help="probe: fit a regression on the features of a network, in minutes; "
        "fdftnet: train that network, too, and use both; auto (default): probe from "
        "imagenet, or from a probe, with fewer than 400 pictures of a class to train "
        "on, else fdftnet",
    )
    parser.add_argument(
        "--epochs",
        type=_positive,
        default=0,
        metavar="N",
        help="passes over the pictures, by fdftnet (default: 32)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of all that is random"
    )
    parser.add_argument(
        "--replace", action="store_true", help="replace a file that exists"
    )
    parser.set_defaults(run=_adapt)


def _share(text: str) -> float:
    # What is no number is a mistake like a number outside.
    with contextlib.suppress(ValueError):
        if 0 <= float(text) <= 1:
            return float(text)
    raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, found {text!r}")


def _less_than_half(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 < float(text) < 0.5:
            return float(text)
    raise argparse.ArgumentTypeError(
        f"expected a number above 0 and below 0.5, found {text!r}"
    )


def _positive(text: str) -> int:
    with contextlib.suppress(ValueError):
        if int(text) >= 1:
            return int(text)
    raise argparse.ArgumentTypeError(f"expected a whole number from 1, found {text!r}")


def _add_predict(subparsers) -> None:
    parser = subparsers.add_parser(
        "predict",
        help="say of pictures and videos whether they are real or fake",
        description=_PREDICT,
        epilog=_PREDICT_EPILOG,
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
    where.add_argument(
        "--parquet",
        metavar="DIR",
        help="the same as shards of Parquet, which the same command resumes: for "
        "millions of files, also at s3:// and other addresses",
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
        help="fake from this probability on, and real below it: the calibrated one, or "
        "the raw score of a detector that is not calibrated (default: the detector's "
        "own, which may be two)",
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
    scale = parser.add_argument_group("with --parquet")
    scale.add_argument(
        "--shard-size",
        type=_positive,
        default=1000,
        metavar="N",
        help="inputs of a shard (default: 1000)",
    )
    scale.add_argument(
        "--path-column",
        default="path",
        metavar="NAME",
        help="of the paths, where PATH is a table .parquet or .csv (default: path)",
    )
    scale.add_argument(
        "--ray",
        action="store_true",
        help="on the Ray cluster of RAY_ADDRESS, else with Ray on this machine",
    )
    scale.add_argument(
        "--ray-actors",
        type=_positive,
        default=0,
        metavar="N",
        help="networks (default: one for each GPU, else for each machine)",
    )
    scale.add_argument(
        "--ray-gpus",
        type=float,
        metavar="G",
        help="GPUs of each network (default: 1 where there are any)",
    )
    parser.set_defaults(run=_predict)


def _add_serve(subparsers) -> None:
    parser = subparsers.add_parser(
        "serve",
        help="judge pictures and videos in the browser, and for programs over HTTP",
        description=_SERVE,
        epilog=_SERVE_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "detector",
        nargs="?",
        default="toy",
        help="file of `fdftnet export` or `adapt`, or 'toy' (default)",
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="H",
        help="address to listen on (default: 127.0.0.1, for this machine alone)",
    )
    parser.add_argument(
        "--port",
        type=int,
        default=8765,
        metavar="N",
        help="port to listen on (default: 8765; 0 for one that is free)",
    )
    parser.add_argument(
        "--token",
        default=os.environ.get("FDFTNET_TOKEN") or None,
        metavar="T",
        help="what each request has to bring, of 16 characters or more",
    )
    parser.add_argument(
        "--root",
        metavar="DIR",
        help="let programs name files below DIR instead of sending them",
    )
    parser.add_argument(
        "--corrections",
        metavar="DIR",
        help="keep pictures that the page's user says were judged wrongly, in DIR/real "
        "and DIR/fake, for `fdftnet adapt --corrections DIR`",
    )
    parser.add_argument(
        "--faces",
        choices=("auto", "whole", "crop"),
        default="auto",
        help="as in `fdftnet predict`",
    )
    parser.add_argument(
        "--program",
        action="store_true",
        help="run the program in the detector's file; only files that you trust",
    )
    parser.add_argument(
        "--no-open", action="store_true", help="do not open the browser"
    )
    parser.set_defaults(run=_serve)


def _add_export(subparsers) -> None:
    parser = subparsers.add_parser(
        "export",
        help="make one portable file of a run's best checkpoint",
        description="Makes one file of a run's best checkpoint: network, weights, "
        "preprocessing, threshold, and a card that says what it was trained on.",
    )
    parser.add_argument("workdir", help="folder of a pre-training or fine-tuning run")
    parser.add_argument("detector", help="file to write, such as face.safetensors")
    parser.add_argument("--name", default="", help="of the detector (default: WORKDIR)")
    parser.add_argument(
        "--licence",
        default="",
        metavar="TEXT",
        help="under which conditions the training data allow to use it",
    )
    parser.add_argument(
        "--replace", action="store_true", help="replace a file that exists"
    )
    parser.set_defaults(run=_export)


def _add_show(subparsers) -> None:
    parser = subparsers.add_parser(
        "show",
        help="print what a detector is, was trained on, and how well it does",
        description="Prints the card of a detector, once its bytes are known to be "
        "those that were written.",
    )
    parser.add_argument("detector", help="file of `fdftnet export`, or 'toy'")
    parser.add_argument(
        "--json", action="store_true", help="print the whole card as JSON"
    )
    parser.set_defaults(run=_show)


def _add_check(subparsers) -> None:
    parser = subparsers.add_parser(
        "check",
        help="test a detector on sets of pictures, against what its file states",
        description=_CHECK,
        epilog=_CHECK_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("detector", help="file of `fdftnet adapt`")
    parser.add_argument(
        "sets", nargs="+", metavar="SET", help="folder with real/ and fake/"
    )
    parser.add_argument(
        "--all",
        action="store_true",
        help="score all pictures of each SET: for pictures that no detector learned "
        "from",
    )
    parser.add_argument(
        "--max-loss",
        type=_share,
        default=0.02,
        metavar="X",
        help="the largest loss of AUROC against what the file states (default: 0.02)",
    )
    parser.set_defaults(run=_check)


def _adapt(arguments: argparse.Namespace) -> int:
    # (The imports take seconds.)
    sources = (arguments.real, arguments.fake, *arguments.old, arguments.corrections)
    launch.say(f"reading {', '.join(filter(None, sources)) or 'nothing'}")
    from fdftnet_jax.adaptation import adapt

    return adapt.adapt(adapt.Options.of(arguments))


def _check(arguments: argparse.Namespace) -> int:
    from fdftnet_jax.adaptation import check

    return check.check(check.Options.of(arguments))


def _predict(arguments: argparse.Namespace) -> int:
    from fdftnet_jax.prediction import run

    options = run.Options.of(arguments)
    if options.ray and options.parquet is None:
        launch.fail("--ray writes shards of results; add --parquet=DIR")
    if options.parquet is not None:
        from fdftnet_jax.scale import run as at_scale

        return at_scale.predict(options)
    return run.predict(options)


def _serve(arguments: argparse.Namespace) -> int:
    from fdftnet_jax.serving import run

    return run.serve(run.Options.of(arguments))


def _export(arguments: argparse.Namespace) -> int:
    from fdftnet_jax.detector import export, file
    from fdftnet_jax.run import Run

    # A backbone of your own is found where `python -m experiments.pretrain` found it.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    with Run(arguments.workdir) as run:
        written = export.write(
            run,
            arguments.detector,
            name=arguments.name,
            licence=arguments.licence,
            replace=arguments.replace,
        )
    # The package alone does not know a backbone of somebody's own.
    program = "--program " if ":" in written.card["model"]["backbone"] else ""
    size = file.locate(arguments.detector).stat().st_size
    print(
        f"{arguments.detector}  {size / 1e6:.1f} MB\n"
        f"what it is:  fdftnet show {arguments.detector}\n"
        f"use it:      fdftnet predict {program}{arguments.detector} FILE"
    )
    return 0


def _show(arguments: argparse.Namespace) -> int:
    from fdftnet_jax.detector import card, file

    contents = file.read(arguments.detector)
    if arguments.json:
        print(json.dumps({"sha256": contents.digest, **contents.card}, indent=2))
        return 0
    try:
        print(card.text(contents.card, contents.digest))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise file.tampered(arguments.detector, error) from error
    return 0


if __name__ == "__main__":
    sys.exit(main())
