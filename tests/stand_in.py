"""A detector for the tests of prediction: quick, and known in closed form."""

import csv

import numpy as np
from scipy import special

from fdftnet_jax import cli
from fdftnet_jax.data import preprocess
from fdftnet_jax.verdicts import Thresholds

# Calibrated P(fake) = 1 / (1 + exp(-(z / TEMPERATURE + SHIFT))).
TEMPERATURE, SHIFT = 2.0, -0.25


class StandIn:
    """Finds red pictures fake: z is the mean of red less that of blue, over 16."""

    threshold = 0.5
    digest = "0" * 64

    def __init__(
        self,
        *,
        calibrated=True,
        faces=None,
        toy=False,
        lower=0.5,
        notes=(),
        **preprocessing,
    ):
        self.thresholds = Thresholds(lower, self.threshold)
        self.preprocessing = preprocess.Preprocessing(**{"size": 8, **preprocessing})
        self.card = {
            "name": "stand-in",
            "toy": toy,
            "faces": faces,
            "calibration": {"notes": list(notes)} if calibrated else None,
        }
        self._calibrated = calibrated
        self.batches = []

    def logits(self, views):
        assert views.dtype == np.uint8
        self.batches.append(views.shape)
        means = views.reshape(len(views), -1, 3).mean(1, dtype=np.float64)
        return (means[:, 0] - means[:, 2]) / 16

    def probability(self, z):
        return special.expit(z / TEMPERATURE + SHIFT) if self._calibrated else None

    def expected(self, image):
        """The logit of a picture, [h, w, 3] uint8."""
        view = self.preprocessing(image)
        return float(self.logits(view if view.ndim == 4 else view[None]).mean())


def predict(*arguments, detector="detector"):
    """Runs `fdftnet predict`; returns its exit code."""
    parsed = cli.parser().parse_args(["predict", *map(str, (detector, *arguments))])
    return parsed.run(parsed)


def rows(path):
    """The rows of a CSV file, and only those of whole inputs."""
    with open(path, newline="") as file:
        found = list(csv.DictReader(file))
    return found, [row for row in found if not row["face"]]
