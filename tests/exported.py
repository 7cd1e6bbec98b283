"""Runs that tests export, and what their evaluation says."""

import csv

import numpy as np

from fdftnet_jax import datasets
from fdftnet_jax.data import images
from fdftnet_jax.detector import detector, file, network
from fdftnet_jax.evaluation import calibration, results, scoring
from fdftnet_jax.run import Run


def evaluated(workdir):
    """Evaluates the test split as the command does; path in the split -> row."""
    scores = scoring.score_split(Run(workdir), "test")
    calibrated = calibration.for_run(Run(workdir))
    report = results.report(scores, calibrated, resamples=10)
    _, table, *_ = results.write(report, scores, calibrated, Run(workdir))
    with table.open(newline="") as rows:
        return {row["path"]: row for row in csv.DictReader(rows)}


def pictures(workdir):
    """The test split: path in it -> [h, w, 3] uint8."""
    data = datasets.prepare(Run(workdir).best.lineage.data_config({}))
    return {
        record["path"]: images.decode_png(record["image"])
        for record in data.source("test")
    }


def column(rows, name):
    return np.array([float(row[name]) for row in rows.values()])


def rewritten(path, target, change):
    """A file whose digest is right: `change` may change arrays and card."""
    arrays, card, _ = file.read(path)
    change(arrays, card)
    file.write(target, arrays, card)
    return target


def stablehlo(program, arrays, size):
    """A program as the file's array of bytes."""
    made = network.export(program, arrays, size).serialize()
    return np.frombuffer(made, np.uint8)


def without_program(path, target):
    """The same detector, with a program that no jax reads."""

    def change(arrays, _):
        arrays[detector.STABLEHLO] = arrays[detector.STABLEHLO][:100]

    return rewritten(path, target, change)
