"""Cuts the faces out of a picture, as those that the detector was trained on."""

import dataclasses
import math
import threading
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from fdftnet_jax.errors import UserError
from fdftnet_jax.faces import choice
from fdftnet_jax.faces.choice import FaceRules
from fdftnet_jax.faces.detection import DETECTORS, FaceDetector, Square

# Of two boxes, the smaller is no other face where this share of it is in the larger.
_SAME_FACE = 0.5


Box = tuple[int, int, int, int]  # x, y, width, height, in pixels.


class CutFace(NamedTuple):
    """A face of a picture, cut out."""

    crop: np.ndarray  # [side, side, 3] uint8, a copy.
    box: Box  # Where the face is.
    confidence: float  # Of the face detector's own range.
    square: Square  # Where the crop is.


def rules_of(card_rules: Mapping[str, Any] | None) -> FaceRules:
    """Takes the rules by which faces are cut out from a detector's card.

    All faces are taken, also where the training took the largest alone: a forged face
    need not be the largest one of a picture.

    Args:
      card_rules: those of the card (`detector`, `margin`, `min_size` in pixels and
        `min_confidence`; other keys are ignored); None for the defaults of
        `configs/prepare_faces.py`.

    Raises:
      UserError: a rule is missing, or the face detector is unknown.
    """
    if card_rules is None:
        return FaceRules(faces="all")
    names = ("detector", "margin", "min_size", "min_confidence")
    if missing := [name for name in names if name not in card_rules]:
        raise UserError(
            f"expected the detector's card to say {', '.join(names)} of its faces, "
            f"found no {' and no '.join(missing)}; export the detector again, or give "
            "--faces=whole"
        )
    if card_rules["detector"] not in DETECTORS:
        raise UserError(
            f"expected faces of one of the detectors {sorted(DETECTORS)}, found "
            f"{card_rules['detector']!r} on the detector's card; cut the faces out "
            "yourself, and give --faces=whole"
        )
    rules = FaceRules(**{name: card_rules[name] for name in names}, faces="all")
    # By default, 0 stands for the face detector's own.
    own = DETECTORS[rules.detector].min_confidence
    confidence = rules.min_confidence or own
    return dataclasses.replace(rules, min_confidence=confidence)


def find(image: np.ndarray, rules: FaceRules) -> tuple[list[CutFace], str]:
    """Finds the faces of a picture; may be called from several threads.

    The crops are those that `experiments.prepare_faces` makes by these rules. Of boxes
    that lie in one another for more than half of the smaller, the largest is kept.

    Args:
      image: [height, width, 3] uint8 RGB.
      rules: see `rules_of`.

    Returns:
      The faces, the largest first (ties: the surest, then by x and y), and why there
      are none: '' where there are some.

    Raises:
      UserError: the face detector's packages are missing.
    """
    detect = _local.detector(rules.detector)
    chosen = choice.find(image, detect, rules)
    faces: list[CutFace] = []
    for face, square in zip(chosen.faces, chosen.squares, strict=True):
        box = face.x, face.y, face.width, face.height
        if all(_common(box, other.box) <= _SAME_FACE for other in faces):
            crop = square.cut(image).copy()
            faces.append(CutFace(crop, box, face.confidence, square))
    return faces, _in_words(chosen, rules)


def _common(small: Box, large: Box) -> float:
    """The share of one box's pixels that are in another, too."""
    sides = (
        min(small[i] + small[i + 2], large[i] + large[i + 2]) - max(small[i], large[i])
        for i in (0, 1)
    )
    return math.prod(max(side, 0) for side in sides) / (small[2] * small[3])


def _in_words(chosen: choice.Chosen, rules: FaceRules) -> str:
    least = {
        choice.UNSURE: f"confidence {chosen.detail}, at least {rules.min_confidence:g}",
        choice.TOO_SMALL: f"{chosen.detail}, at least {rules.min_size}",
    }
    words = {choice.NO_FACE: "no face found", choice.UNSURE: "no sure face"}
    if not chosen.reason:
        return ""
    reason = words.get(chosen.reason, chosen.reason)
    detail = least.get(chosen.reason)
    return f"{reason} ({detail})" if detail else reason


class _Local(threading.local):
    """Each thread's own face detectors: none of them may be used by several threads."""

    def __init__(self) -> None:
        self._detectors: dict[str, FaceDetector] = {}

    def detector(self, name: str) -> FaceDetector:
        if name not in self._detectors:
            with _constructing:
                self._detectors[name] = DETECTORS[name]()
        return self._detectors[name]


# Constructing one redirects standard error, for the whole process.
_constructing = threading.Lock()
_local = _Local()
