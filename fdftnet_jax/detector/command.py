"""The arguments of `fdftnet export` and `fdftnet show`. Imports nothing heavy."""

import argparse


def add_export(subparsers) -> None:
    """Adds `export` to the commands; its `run` takes the arguments."""
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


def add_show(subparsers) -> None:
    """Adds `show` to the commands; its `run` takes the arguments."""
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


def _export(arguments: argparse.Namespace) -> int:
    import os
    import sys

    from fdftnet_jax import run
    from fdftnet_jax.detector import export, file

    # A backbone of your own is found where `python -m experiments.pretrain` found it.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    with run.Run(arguments.workdir) as trained:
        found = export.write(
            trained,
            arguments.detector,
            name=arguments.name,
            licence=arguments.licence,
            replace=arguments.replace,
        )
    # The package alone does not know a backbone of somebody's own.
    program = "--program " if ":" in found.card["model"]["backbone"] else ""
    size = file.locate(arguments.detector).stat().st_size
    print(
        f"{arguments.detector}  {size / 1e6:.1f} MB\n"
        f"what it is:  fdftnet show {arguments.detector}\n"
        f"use it:      fdftnet predict {program}{arguments.detector} FILE"
    )
    return 0


def _show(arguments: argparse.Namespace) -> int:
    import json

    from fdftnet_jax.detector import card, file

    found = file.read(arguments.detector)
    if arguments.json:
        print(json.dumps({"sha256": found.digest, **found.card}, indent=2))
        return 0
    try:
        print(card.text(found.card, found.digest))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise file.tampered(arguments.detector, error) from error
    return 0
