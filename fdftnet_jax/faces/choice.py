"""Chooses the faces of a picture that are cut out, for training and prediction."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fdftnet_jax.faces.detection import Face, FaceDetector, Square, square_around

# Reasons for which a picture has no crop.
NO_FACE = "no face"
UNSURE = "low confidence"
TOO_SMALL = "face too small"
# Faces below this share of the picture's shorter side are not looked for,
_SMALLEST_SHARE = 1 / 20
# nor those below this share of `min_size`, nor below this many pixels.
_SMALLEST_OF_MIN, _LEAST = 1 / 2, 24


# What `experiments.prepare_faces` leaves beside its crops, and what of it makes a crop.
PREPARATION = "preparation.json"
RECORDED = (
    *("detector", "detector_version", "faces"),
    *("margin", "min_size", "min_confidence"),
)


@dataclasses.dataclass(frozen=True)
class FaceRules:
    """What determines the crops of a picture; see `configs/prepare_faces.py`.

    The defaults are those of that file, with the cascade's own confidence.
    """

    detector: str = "cascade"
    faces: str = "largest"
    margin: float = 0.2
    min_size: int = 64
    min_confidence: float = 5.0


class Chosen(NamedTuple):
    """The faces of a picture that are cut out, or why there are none."""

    faces: list[Face]  # The largest first.
    squares: list[Square]  # What is cut out around each.
    reason: str  # NO_FACE, UNSURE, TOO_SMALL, or '' where there are faces.
    detail: str  # The surest one's confidence, or the largest one's pixels.


def find(image: np.ndarray, detect: FaceDetector, rules: FaceRules) -> Chosen:
    """Finds the faces of a picture that are cut out, and the squares around them.

    Args:
      image: [height, width, 3] uint8 RGB.
      detect: what `rules.detector` names.
      rules: which of them, and how.
    """
    height, width, _ = image.shape
    smallest = max(
        _LEAST,
        rules.min_size * _SMALLEST_OF_MIN,
        min(height, width) * _SMALLEST_SHARE,
    )
    faces, reason, detail = choose(detect(image, round(smallest)), rules)
    squares = [square_around(face, rules.margin, height, width) for face in faces]
    return Chosen(faces, squares, reason, detail)


def choose(faces: Sequence[Face], rules: FaceRules) -> tuple[list[Face], str, str]:
    """Chooses the faces of a picture that are cut out.

    Returns:
      The faces, largest first; where there are none, why not, in the words of
      `rejected.csv`, and a detail.
    """
    if not faces:
        return [], NO_FACE, ""
    sure = [face for face in faces if face.confidence >= rules.min_confidence]
    if not sure:
        return [], UNSURE, f"{max(face.confidence for face in faces):.4g}"
    sides = [min(face.width, face.height) for face in sure]
    large = [f for f, side in zip(sure, sides, strict=True) if side >= rules.min_size]
    if not large:
        return [], TOO_SMALL, f"{max(sides)} pixels"
    large.sort(key=lambda f: (-f.width * f.height, -f.confidence, f))
    return large[:1] if rules.faces == "largest" else large, "", ""


def recorded_rules(directory: str) -> dict[str, Any] | None:
    """The rules that the face crops of a folder were cut by; None where nobody knows.

    Args:
      directory: of the images: an output of `experiments.prepare_faces`, or one above
        several that were prepared alike; '' for the toy.
    """
    if not directory:
        return None
    paths = [Path(directory) / PREPARATION]
    if not paths[0].exists():
        paths = sorted(Path(directory).glob(f"*/{PREPARATION}"))
    recorded = []
    for path in paths:
        try:
            record = json.loads(path.read_text())
            recorded.append({name: record[name] for name in RECORDED})
        # Somebody else's file of that name.
        except (OSError, ValueError, KeyError, TypeError):
            return None
    alike = recorded and all(rules == recorded[0] for rules in recorded)
    return recorded[0] if alike else None
